from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn

from smolcluster.data.dataset import Dataset
from smolcluster.model import export
from smolcluster.model.gpt import GPT
from smolcluster.model.simplenn import SimpleNN


class Tied(nn.Module):
    """Two names for one matrix, and a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
        self.second.weight = self.first.weight
        self.register_buffer("offset", torch.ones(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(self.first(x)) + self.offset  # type: ignore[no-any-return, operator]


def flattened(module: nn.Module) -> torch.Tensor:
    """All parameters as views into one buffer, as they are in training."""
    flat = torch.cat([p.detach().reshape(-1) for p in module.parameters()])
    start = 0
    for p in module.parameters():
        p.data = flat[start : start + p.numel()].view_as(p)
        start += p.numel()
    return flat


def test_a_shared_tensor_is_written_once(features: Dataset, tmp_path: Path) -> None:
    export.as_program(Tied(), tmp_path, features)
    assert sorted(load_file(tmp_path / "model.safetensors")) == ["first.bias", "first.weight", "offset", "second.bias"]


def test_views_into_one_buffer_are_written_one_by_one(features: Dataset, tmp_path: Path) -> None:
    model = SimpleNN(hidden=8)
    module = model.build(features.info)
    flat = flattened(module)
    model.export(module, tmp_path, features)
    weights = load_file(tmp_path / "model.safetensors")
    assert torch.equal(torch.cat([weights[name].reshape(-1) for name, _ in module.named_parameters()]), flat)
    inputs = torch.from_numpy(features.train.batch(range(3)).inputs)
    before = torch.export.load(tmp_path / "model.pt2").module()(inputs)
    flat.zero_()
    assert torch.equal(torch.export.load(tmp_path / "model.pt2").module()(inputs), before)
    assert (tmp_path / "model.safetensors").stat().st_size < 4 * flat.numel() + 1000


def test_another_precision_is_exported_as_float32(features: Dataset, tokens: Dataset, tmp_path: Path) -> None:
    module = SimpleNN(hidden=8).build(features.info).double()
    export.as_program(module, tmp_path, features)
    assert {tensor.dtype for tensor in load_file(tmp_path / "model.safetensors").values()} == {torch.float32}
    gpt = GPT(model_dim=8, num_layers=1, num_heads=2, ff_dim=8, max_seq_len=8)
    gpt.export(gpt.build(tokens.info).double(), tmp_path, tokens)
    assert {tensor.dtype for tensor in load_file(tmp_path / "model.safetensors").values()} == {torch.float32}
    assert next(module.parameters()).dtype == torch.float64


def test_files_are_as_readable_as_any(features: Dataset, tmp_path: Path) -> None:
    export.as_program(Tied(), tmp_path, features)
    (tmp_path / "usual").touch()
    usual = (tmp_path / "usual").stat().st_mode
    assert {path.name: path.stat().st_mode for path in tmp_path.iterdir()} == dict.fromkeys(
        ("model.pt2", "model.safetensors", "usual"), usual
    )
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}

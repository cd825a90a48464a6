import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from smolcluster.data.dataset import Dataset
from smolcluster.errors import ConfigError
from smolcluster.model.custom import Custom

CODE = """
import torch

def make(width=1):
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, width))

def informed(info):
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, info.num_classes))

def wrong():
    return 3

class Choosing(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = torch.nn.Linear(12, 2)

    def forward(self, x):
        x = x.flatten(1)
        return self.inner(x) if x.sum().item() > 0 else self.inner(-x)
"""


@pytest.fixture(autouse=True)
def their_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "their_model.py").write_text(CODE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "their_model", raising=False)


def test_keyword_arguments(features: Dataset) -> None:
    module = Custom(target="their_model:make", kwargs={"width": 7}).build(features.info)
    assert module(torch.zeros(2, 3, 4)).shape == (2, 7)


def test_info_where_it_is_asked_for(features: Dataset) -> None:
    assert Custom(target="their_model:informed").build(features.info)(torch.zeros(2, 3, 4)).shape == (2, 2)


@pytest.mark.parametrize(
    ("target", "kwargs", "reason"),
    [
        ("their_model:wrong", {}, r"must make a torch\.nn\.Module, made a int"),
        ("their_model:nothing", {}, r"has no attribute 'nothing'"),
        ("nowhere.at.all:f", {}, r"No module named 'nowhere'"),
        ("their_model:make", {"height": 1}, r"does not take these arguments: .*'height'"),
        ("their_model:torch", {}, r"must name something callable"),
    ],
)
def test_what_cannot_be_built(target: str, kwargs: dict[str, int], reason: str, features: Dataset) -> None:
    with pytest.raises(ConfigError, match=rf"^model\.target={target}: .*{reason}"):
        Custom(target=target, kwargs=kwargs).build(features.info)


def test_tokens_need_a_length() -> None:
    def problems(kind: str, **fields: object) -> list[str]:
        spec = SimpleNamespace(data=SimpleNamespace(kind=kind))
        return [problem.key for problem in Custom(target="a:b", **fields).problems(spec)]  # type: ignore[arg-type]

    assert problems("tokens") == ["model.max_seq_len"]
    assert problems("tokens", max_seq_len=8) == problems("features") == []


def test_a_target_of_the_wrong_form_is_a_problem() -> None:
    spec = SimpleNamespace(data=SimpleNamespace(kind="features"))
    (problem,) = Custom(target="my/model.py").problems(spec)  # type: ignore[arg-type]
    assert problem.key == "model.target"


def test_export(features: Dataset, tmp_path: Path, check_program: Callable[..., None]) -> None:
    model = Custom(target="their_model:make")
    module = model.build(features.info)
    model.export(module, tmp_path, features)
    check_program(module, tmp_path, features)


def test_what_cannot_be_traced_is_exported_as_weights(
    features: Dataset, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = Custom(target="their_model:Choosing")
    module = model.build(features.info)
    folder = tmp_path / "export"
    folder.mkdir()
    model.export(module, folder, features)
    assert [file.name for file in folder.iterdir()] == ["model.safetensors"]
    assert torch.equal(load_file(folder / "model.safetensors")["inner.weight"], module.inner.weight)
    assert "export/ has the weights, and no model.pt2: torch.export cannot trace Choosing" in caplog.text

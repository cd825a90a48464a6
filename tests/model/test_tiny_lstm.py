from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from smolcluster.data.dataset import DataInfo, Dataset
from smolcluster.model.tiny_lstm import TinyLSTM


def test_the_sizes(describe: Callable[..., DataInfo]) -> None:
    module = TinyLSTM().build(describe(512, 32))
    lstm = 4 * 128 * (64 + 128 + 2)
    assert sum(p.numel() for p in module.parameters()) == 512 * 64 + lstm + 129 * 512
    assert module(torch.zeros(3, 32, dtype=torch.int64)).shape == (3, 32, 512)


def test_a_position_sees_what_is_before_and_nothing_behind(describe: Callable[..., DataInfo]) -> None:
    torch.manual_seed(0)
    module = TinyLSTM(num_layers=2).build(describe(20, 8))
    ids = torch.randint(0, 20, (3, 8))
    other = ids.clone()
    other[:, 4] = (other[:, 4] + 1) % 20
    one, two = module(ids), module(other)
    torch.testing.assert_close(one[:, :4], two[:, :4])
    assert not torch.allclose(one[:, 7], two[:, 7], atol=1e-6)


@pytest.mark.parametrize("num_layers", [1, 2])
def test_dropout_acts_in_training_only(num_layers: int, describe: Callable[..., DataInfo]) -> None:
    module = TinyLSTM(num_layers=num_layers, dropout=0.5).build(describe(20, 8))
    ids = torch.randint(0, 20, (3, 8))
    assert not torch.equal(module(ids), module(ids))
    module.eval()
    assert torch.equal(module(ids), module(ids))


def test_export(tokens: Dataset, tmp_path: Path, check_program: Callable[..., None]) -> None:
    model = TinyLSTM(num_layers=2, dropout=0.1, max_seq_len=8)
    folder = tmp_path / "out"
    folder.mkdir()
    module = model.build(tokens.info)
    model.export(module, folder, tokens)
    files = sorted(file.name for file in folder.iterdir())
    assert files == ["model.pt2", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]
    check_program(module, folder, tokens)

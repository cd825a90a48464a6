from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from smolcluster.data import tokenizer as tokenizers
from smolcluster.data.dataset import Blocks, DataInfo, Dataset, Features


def tokens_info(vocab_size: int, seq_length: int) -> DataInfo:
    return DataInfo(kind="tokens", input_shape=(seq_length,), vocab_size=vocab_size, seq_length=seq_length)


@pytest.fixture
def describe() -> Callable[[int, int], DataInfo]:
    """(vocabulary, length) to what a model is told of token data."""
    return tokens_info


@pytest.fixture
def tokens(tmp_path: Path) -> Dataset:
    """Blocks of 8 tokens of a vocabulary of 260, with its tokenizer."""
    folder = tmp_path / "tokenizer"
    folder.mkdir()
    tokenizer = tokenizers.make("bpe:260", ["the cat sat on the mat " * 5], folder)
    stream = np.random.default_rng(0).integers(0, 260, 100).astype(np.uint16)
    part = Blocks(stream=stream, seq_length=8)
    return Dataset.of([part, part], tokens_info(260, 8), num_samples=None, tokenizer=tokenizer)


@pytest.fixture
def features() -> Dataset:
    """Ten inputs of shape [3, 4] in two classes."""
    inputs = np.random.default_rng(0).normal(size=(10, 3, 4)).astype(np.float32)
    part = Features(inputs=inputs, targets=np.arange(10) % 2)
    return Dataset.of([part, part], DataInfo(kind="features", input_shape=(3, 4), num_classes=2), num_samples=None)


@pytest.fixture
def check_program() -> Callable[[torch.nn.Module, Path, Dataset], None]:
    """The exported program gives the module's logits, to the bit, for batches of other sizes."""

    def check(module: torch.nn.Module, folder: Path, dataset: Dataset) -> None:
        from safetensors.torch import load_file

        program = torch.export.load(folder / "model.pt2").module()
        was_training = module.training
        module.eval()
        for size in (1, 5, 7):
            inputs = torch.from_numpy(dataset.train.batch(range(size)).inputs)
            assert torch.equal(program(inputs), module(inputs))
        module.train(was_training)
        weights = load_file(folder / "model.safetensors")
        assert all(torch.equal(weights[name], value) for name, value in module.state_dict().items())

    return check

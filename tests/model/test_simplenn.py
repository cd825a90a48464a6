from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from smolcluster.data.dataset import DataInfo, Dataset
from smolcluster.model.simplenn import SimpleNN


@pytest.mark.parametrize(("shape", "num_parameters"), [((28, 28), 101_770), ((64,), 9_610)])
def test_the_seeds_network(shape: tuple[int, ...], num_parameters: int) -> None:
    """784-128-10 on MNIST, 64-128-10 on digits."""
    module = SimpleNN().build(DataInfo(kind="features", input_shape=shape, num_classes=10))
    assert sum(p.numel() for p in module.parameters()) == num_parameters
    assert module(torch.zeros(3, *shape)).shape == (3, 10)


def test_it_is_linear_relu_linear() -> None:
    torch.manual_seed(0)
    module = SimpleNN(hidden=5).build(DataInfo(kind="features", input_shape=(2, 3), num_classes=4))
    x = torch.randn(7, 2, 3)
    (w1, b1, w2, b2) = module.parameters()
    expected = torch.clamp(x.reshape(7, 6) @ w1.T + b1, min=0) @ w2.T + b2
    torch.testing.assert_close(module(x), expected)


def test_export(features: Dataset, tmp_path: Path, check_program: Callable[..., None]) -> None:
    model = SimpleNN(hidden=16)
    module = model.build(features.info)
    model.export(module, tmp_path, features)
    assert module.training
    assert sorted(file.name for file in tmp_path.iterdir()) == ["model.pt2", "model.safetensors"]
    check_program(module, tmp_path, features)


def test_what_it_takes() -> None:
    assert SimpleNN.accepts == ("features",)

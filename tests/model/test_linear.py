import pytest
import torch

from smolcluster.model.nn import linear as linear_module
from smolcluster.model.nn.linear import Linear, linear


@pytest.fixture
def convolution(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """As on a processor with AVX-512; holds the number of convolutions made."""
    calls = [0]
    conv2d = torch.nn.functional.conv2d

    def counted(*args: object) -> torch.Tensor:
        calls[0] += 1
        return conv2d(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(linear_module, "_has_faster_convolution", lambda: True)
    monkeypatch.setattr(linear_module.F, "conv2d", counted)
    return calls


@pytest.mark.parametrize("shape", [(2, 128, 12), (32, 8, 12), (256, 12), (4, 2, 64, 12)])
def test_a_convolution_is_the_same_function(shape: tuple[int, ...], convolution: list[int]) -> None:
    torch.manual_seed(0)
    x, layer = torch.randn(shape, requires_grad=True), Linear(12, 20)
    weight, bias = layer.weight.detach().double().requires_grad_(), layer.bias.detach().double().requires_grad_()
    exact = x.detach().double().requires_grad_()
    out, reference = layer(x), torch.nn.functional.linear(exact, weight, bias)
    assert convolution == [1]
    torch.testing.assert_close(out, reference.float(), rtol=1e-5, atol=1e-6)
    slope = torch.randn(out.shape)
    out.backward(slope)
    reference.backward(slope.double())
    for ours, theirs in ((x, exact), (layer.weight, weight), (layer.bias, bias)):
        assert ours.grad is not None
        assert theirs.grad is not None
        torch.testing.assert_close(ours.grad, theirs.grad.float(), rtol=1e-4, atol=1e-5)


def test_without_a_bias(convolution: list[int]) -> None:
    x, weight = torch.randn(2, 128, 4), torch.randn(3, 4)
    torch.testing.assert_close(linear(x, weight), x @ weight.T)
    assert convolution == [1]


@pytest.mark.parametrize(
    "x",
    [torch.zeros(1, 128, 4), torch.zeros(257, 4), torch.zeros(256, 4, dtype=torch.float64), torch.zeros(2, 4)],
    ids=["few", "uneven", "float64", "tiny"],
)
def test_where_it_stays_a_product(x: torch.Tensor, convolution: list[int]) -> None:
    assert linear(x, torch.zeros(3, 4, dtype=x.dtype)).shape == (*x.shape[:-1], 3)
    assert convolution == [0]


def test_autocast_is_left_alone(convolution: list[int]) -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert linear(torch.zeros(256, 4), torch.zeros(3, 4)).dtype == torch.bfloat16
    assert convolution == [0]


def test_a_processor_without_it(monkeypatch: pytest.MonkeyPatch, convolution: list[int]) -> None:
    monkeypatch.setattr(linear_module, "_has_faster_convolution", lambda: False)
    linear(torch.zeros(256, 4), torch.zeros(3, 4))
    assert convolution == [0]

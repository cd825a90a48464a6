"""Flat buffers: views, tied and frozen parameters, buffers, names, digests."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from smolcluster.errors import CheckpointError
from smolcluster.train.flat import FlatModel


class Net(nn.Module):
    """Tied and frozen parameters, running statistics."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(7, 4)
        self.norm = nn.BatchNorm1d(4)
        self.frozen = nn.Linear(4, 4).requires_grad_(False)
        self.head = nn.Linear(4, 7, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.head(self.frozen(self.norm(self.embedding(ids))))


def test_parameters_and_gradients_are_views() -> None:
    net = Net()
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    flat = FlatModel(net)
    assert flat.manifest.numel == 7 * 4 + 4 + 4, "tied once, frozen not at all"
    assert all(torch.equal(p, before[name]) for name, p in net.named_parameters())
    flat.parameters.fill_(0.5)
    assert bool((net.head.weight == 0.5).all())
    flat.parameters.normal_()
    net(torch.tensor([1, 2, 3])).sum().backward()
    assert net.head.weight.grad is not None
    assert torch.equal(flat.manifest.named(flat.gradients)["embedding.weight"], net.head.weight.grad)
    flat.gradients.zero_()
    assert float(net.norm.weight.grad.abs().sum()) == 0


def test_buffers_travel() -> None:
    a, b = Net(), Net()
    first, second = FlatModel(a), FlatModel(b)
    a.train()(torch.tensor([1, 2, 3, 4]))
    second.load_buffers(first.buffers())
    assert torch.equal(a.norm.running_mean, b.norm.running_mean)
    assert int(b.norm.num_batches_tracked) == 1
    assert torch.equal(a.frozen.weight, b.frozen.weight)


def test_named_state_and_digest() -> None:
    a, b = FlatModel(Net()), FlatModel(Net())
    assert a.digest() != b.digest()
    b.load_named_state({name: tensor.clone() for name, tensor in a.named_state().items()}, "x")
    assert a.digest() == b.digest()
    state = a.named_state()
    with pytest.raises(CheckpointError, match=r"x does not fit the model: missing \['norm.bias'\]"):
        b.load_named_state({name: tensor for name, tensor in state.items() if name != "norm.bias"}, "x")
    with pytest.raises(CheckpointError, match=r"norm.bias has shape \(5,\) there, \(4,\) in the model"):
        b.load_named_state({**state, "norm.bias": torch.zeros(5)}, "x")


def test_refuses_what_it_cannot_hold() -> None:
    with pytest.raises(CheckpointError, match="no trainable parameters"):
        FlatModel(nn.ReLU())
    mixed = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2).double())
    with pytest.raises(CheckpointError, match="must have one type"):
        FlatModel(mixed)

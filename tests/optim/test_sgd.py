"""SGD on a flat tensor is torch.optim.SGD."""

from __future__ import annotations

import pytest
import torch

from smolcluster.optim.sgd import SGD


@pytest.mark.parametrize(
    ("momentum", "nesterov", "weight_decay"),
    [(0.0, False, 0.0), (0.0, False, 0.1), (0.9, False, 0.0), (0.9, True, 0.1)],
)
def test_equals_torch(momentum: float, nesterov: bool, weight_decay: float) -> None:
    torch.manual_seed(0)
    flat = torch.randn(500, dtype=torch.float64)
    reference = flat.clone().requires_grad_(True)
    optimizer = torch.optim.SGD([reference], lr=0.05, momentum=momentum, nesterov=nesterov, weight_decay=weight_decay)
    ours = SGD(lr=0.05, momentum=momentum, nesterov=nesterov, weight_decay=weight_decay)
    state = {name: torch.zeros_like(flat) for name in ours.state_names}
    for count in range(1, 21):
        gradient = torch.randn(500, dtype=torch.float64)
        reference.grad = gradient.clone()
        optimizer.step()
        ours.step(flat, gradient.clone(), state, count=count, lr=0.05)
        assert torch.allclose(flat, reference.detach(), rtol=0, atol=1e-14)

"""AdamW on a flat tensor is torch.optim.AdamW, bit for bit."""

from __future__ import annotations

import torch

from smolcluster.optim.adamw import AdamW


def test_equals_torch() -> None:
    torch.manual_seed(0)
    flat = torch.randn(1000)
    reference = flat.clone().requires_grad_(True)
    optimizer = torch.optim.AdamW([reference], lr=3e-3, weight_decay=0.1, betas=(0.8, 0.95), eps=1e-6, fused=True)
    ours = AdamW(lr=3e-3, weight_decay=0.1, beta1=0.8, beta2=0.95, eps=1e-6)
    state = {name: torch.zeros_like(flat) for name in ours.state_names}
    for count in range(1, 21):
        gradient = torch.randn(1000)
        reference.grad = gradient.clone()
        optimizer.step()
        ours.step(flat, gradient, state, count=count, lr=3e-3)
        assert torch.equal(flat, reference.detach())


def test_a_slice_is_updated_as_in_the_whole() -> None:
    """Elementwise: any partition of the flat buffer gives the same numbers."""
    ours, whole, gradient = AdamW(), torch.randn(100), torch.randn(100)
    parts = [whole[:37].clone(), whole[37:].clone()]
    state = {name: torch.zeros(100) for name in ours.state_names}
    states = [{name: torch.zeros(len(part)) for name in ours.state_names} for part in parts]
    ours.step(whole, gradient, state, count=1, lr=0.1)
    for part, own, piece in zip(parts, states, (gradient[:37], gradient[37:]), strict=True):
        ours.step(part, piece.clone(), own, count=1, lr=0.1)
    assert torch.equal(torch.cat(parts), whole)

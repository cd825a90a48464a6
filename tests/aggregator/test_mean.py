"""The weighted mean: its definition, its order, its preconditions."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from smolcluster.aggregator.mean import Mean
from smolcluster.errors import AggregationError


@given(st.lists(st.integers(1, 1000), min_size=1, max_size=8), st.integers(0, 2**32 - 1))
def test_is_the_weighted_mean(weights: list[int], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    updates = torch.randn(len(weights), 17, dtype=torch.float64, generator=generator)
    mean = Mean()(list(updates), weights)
    expected = (updates * torch.tensor(weights, dtype=torch.float64)[:, None]).sum(0) / sum(weights)
    assert torch.allclose(mean, expected, atol=1e-12)


def test_leaves_its_inputs_alone_and_one_update_as_it_is() -> None:
    updates = [torch.randn(5), torch.randn(5)]
    before = [update.clone() for update in updates]
    Mean()(updates, [1, 3])
    assert all(torch.equal(a, b) for a, b in zip(updates, before, strict=True))
    assert torch.equal(Mean()(updates[:1], [7]), updates[0])


def test_golden() -> None:
    x = [
        (1, 2.4, -0.7),
        (1.2, 1.7, -0.8),
        (0.7, 2.3, -1.3),
        (1.1, 2.2, -0.6),
        (0.9, 1.8, -1.4),
        (1.4, 2.1, -1.1),
        (-6, 9, 4),
    ]
    mean = Mean()([torch.tensor(v, dtype=torch.float64) for v in x], [1] * 7)
    assert mean.tolist() == pytest.approx([0.042857, 3.071429, -0.271429], abs=1e-6)


def test_needs_something() -> None:
    with pytest.raises(AggregationError, match="at least one update"):
        Mean()([], [])
    with pytest.raises(AggregationError, match="with 0"):
        Mean()([torch.zeros(2)], [0])

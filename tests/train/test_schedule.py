"""Learning rates: pinned values, and the edges."""

from __future__ import annotations

import pytest

from smolcluster.train.schedule import Constant, Cosine

GOLDEN = [
    (0, 6e-6), (49, 3e-4), (99, 6e-4), (100, 6e-4), (325, 5.20918831e-4), (550, 3.3e-4), (775, 1.39081169e-4),
    (999, 6.00016449e-5), (1000, 6e-5), (5000, 6e-5),
]  # fmt: skip


@pytest.mark.parametrize(("step", "rate"), GOLDEN)
def test_golden(step: int, rate: float) -> None:
    assert Cosine(warmup_steps=100, min_lr=6e-5).lr(6e-4, step, 1000) == pytest.approx(rate, rel=1e-8)
    assert Cosine(warmup_steps=100).lr(6e-4, step, 1000) == pytest.approx(rate, rel=1e-8), "a tenth is the default"


def test_edges() -> None:
    assert Cosine(warmup_steps=0, min_lr=0).lr(1.0, 0, 10) == 1.0
    short = Cosine(warmup_steps=10, min_lr=0.1)
    assert [short.lr(1.0, step, 5) for step in (4, 9, 10)] == [0.5, 1.0, 0.1], "warm-up longer than the run"
    assert Cosine().lr(1.0, 0, 120) == pytest.approx(1 / 12), "a tenth of a short run"
    assert Cosine().lr(1.0, 0, 5000) == pytest.approx(1 / 100), "never more than a hundred steps"
    assert Constant(warmup_steps=2).lr(0.4, 0, 9) == 0.2
    assert Constant(warmup_steps=2).lr(0.4, 7, 9) == 0.4

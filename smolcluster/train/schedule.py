"""Learning rate over time: a pure function of the number of optimizer steps done. Imports no torch."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from smolcluster.errors import Problem
from smolcluster.spec.schema import Range

if TYPE_CHECKING:
    from smolcluster.spec.run import RunSpec


@dataclass(frozen=True, kw_only=True)
class Cosine:
    """``schedule=cosine``: linear warm-up to the peak, then half a cosine down to ``min_lr``."""

    warmup_steps: Annotated[int | None, Range(ge=0, le=10**9, unit="optimizer steps")] = None
    """Steps of linear warm-up; 0: none; null: a tenth of the run, at most 100."""
    min_lr: Annotated[float | None, Range(ge=0, le=100)] = None
    """Learning rate at the end and after it; null: a tenth of the peak."""

    def problems(self, spec: RunSpec) -> Iterable[Problem]:
        if self.min_lr is not None and self.min_lr > spec.optim.lr:
            rule = f"must be <= optim.lr={spec.optim.lr:g}: the schedule goes down to it"
            yield Problem(key="schedule.min_lr", value=self.min_lr, rule=rule, nearest=f"{spec.optim.lr / 10:g}")

    def lr(self, peak: float, step: int, num_steps: int) -> float:
        """The rate for optimizer step ``step`` (from 0) of ``num_steps``.

        With warm-up W, end T, peak p and minimum m: p(t+1)/W for t < W; m + (1 + cos(pi (t-W)/(T-W))) (p-m)/2
        up to T; m after it. Where T <= W the peak is held up to W.

        >>> round(Cosine(warmup_steps=100, min_lr=6e-5).lr(6e-4, 325, 1000), 12)
        0.000520918831
        """
        warmup = min(100, num_steps // 10) if self.warmup_steps is None else self.warmup_steps
        low = peak / 10 if self.min_lr is None else self.min_lr
        if step < warmup:
            return peak * (step + 1) / warmup
        if step >= num_steps:
            return low
        progress = (step - warmup) / (num_steps - warmup)
        return low + 0.5 * (1 + math.cos(math.pi * progress)) * (peak - low)


@dataclass(frozen=True, kw_only=True)
class Constant:
    """``schedule=constant``: linear warm-up to the peak, then the peak."""

    warmup_steps: Annotated[int, Range(ge=0, le=10**9, unit="optimizer steps")] = 0
    """Steps of linear warm-up; 0: none."""

    def problems(self, spec: RunSpec) -> Iterable[Problem]:
        return ()

    def lr(self, peak: float, step: int, num_steps: int) -> float:
        """The rate for optimizer step ``step`` (from 0).

        >>> Constant(warmup_steps=4).lr(1.0, 1, 100), Constant().lr(1.0, 0, 100)
        (0.5, 1.0)
        """
        return peak * min(1.0, (step + 1) / self.warmup_steps) if self.warmup_steps else peak

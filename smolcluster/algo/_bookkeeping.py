"""What several algorithms do with what their workers send: count it, judge it, average it."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, TypeVar

from smolcluster.messages import Push, Update
from smolcluster.ports import Aggregator, Member

if TYPE_CHECKING:
    from torch import Tensor

U = TypeVar("U", Push, Update)

RATE_SMOOTHING = 0.2
"""Weight of the newest measurement in a worker's speed (half-life 3.1 measurements)."""


class Tally(Counter[str]):
    """Counts under ``kind`` or ``kind/worker``; plain data, so that a checkpoint can hold it."""

    def refused(self, name: str) -> bool:
        """Count a refusal; whether one of an unasked message is worth a line in the journal: ten, then each 100th."""
        self[f"refused/{name}"] += 1
        return self[f"refused/{name}"] <= 10 or self[f"refused/{name}"] % 100 == 0

    def by_worker(self, kind: str) -> Mapping[str, int]:
        """Worker -> count of that kind.

        >>> Tally({"late/worker1": 2, "late/worker0": 1, "pushes": 9}).by_worker("late")
        {'worker0': 1, 'worker1': 2}
        """
        prefix = f"{kind}/"
        return {key.removeprefix(prefix): n for key, n in sorted(self.items()) if key.startswith(prefix)}

    def totals(self) -> Mapping[str, int]:
        """The counts that are of no worker."""
        return {key: n for key, n in sorted(self.items()) if "/" not in key}


class Speeds:
    """Samples per second of each worker, smoothed; the weights by which a batch is shared out."""

    def __init__(self, *, even: bool) -> None:
        self.even = even
        self._rates: dict[str, float] = {}

    def observe(self, name: str, num_samples: int, seconds: float) -> None:
        rate = num_samples / max(seconds, 1e-6)
        before = self._rates.get(name, rate)
        self._rates[name] = before + RATE_SMOOTHING * (rate - before)

    def forget(self, name: str) -> None:
        self._rates.pop(name, None)

    def weights(self, names: Sequence[str]) -> list[float]:
        """One weight per name: all equal, or the measured speeds once every name has one.

        >>> speeds = Speeds(even=False)
        >>> speeds.observe("a", 30, 1.0)
        >>> speeds.weights(["a", "b"])
        [1.0, 1.0]
        >>> speeds.observe("b", 10, 1.0)
        >>> speeds.weights(["a", "b"])
        [30.0, 10.0]
        """
        if self.even or any(name not in self._rates for name in names):
            return [1.0] * len(names)
        return [self._rates[name] for name in names]


def fault(update: Update | Push, gradient: Tensor) -> str:
    """Why an update whose counts are right must not be averaged; empty where nothing is wrong with it."""
    if not all(0 <= seconds < math.inf for seconds in (update.compute_s, update.wait_s)):
        return "impossible times"
    tensors = [gradient] if update.buffers is None else [gradient, update.buffers]
    if not all(math.isfinite(number) for number in (update.loss, *(float(tensor.norm()) for tensor in tensors))):
        return "not finite"
    return ""


def detached(update: U) -> U:
    """A copy that does not lie in receive buffers, which are few: for what may have to wait."""
    buffers = update.buffers
    return replace(update, gradient=update.gradient.clone(), buffers=None if buffers is None else buffers.clone())


def combine(
    aggregate: Aggregator, updates: Sequence[Update | Push], weights: Sequence[float], items: Sequence[int]
) -> tuple[Tensor, Tensor | None]:
    """One gradient of several, by ``weights``, and their running statistics by ``items``, where all have some."""
    statistics = [update.buffers for update in updates if update.buffers is not None]
    buffers = aggregate(statistics, items) if len(statistics) == len(updates) else None
    return aggregate([update.gradient for update in updates], weights), buffers


def mean_loss(updates: Sequence[Update | Push]) -> float:
    """Mean loss per item."""
    return sum(update.loss * update.num_items for update in updates) / sum(update.num_items for update in updates)


def strange(member: Member) -> str:
    """Why a worker with another fingerprint cannot take part."""
    return f"{member.name} has built another model or data than the server (versions of Python or data differ?)"

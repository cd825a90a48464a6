"""What several algorithms keep of their workers: counts by kind and worker, and measured speeds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

RATE_SMOOTHING = 0.2
"""Weight of the newest measurement in a worker's speed (half-life 3.1 measurements)."""


class Tally(Counter[str]):
    """Counts under ``kind`` or ``kind/worker``; plain data, so that a checkpoint can hold it."""

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

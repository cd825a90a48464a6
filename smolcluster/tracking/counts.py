"""Adding up what nodes count: bytes and samples over restarts, and means over numbers that may be none."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from smolcluster.tracking.fields import finite, whole


@dataclass
class Counter:
    """A count that a node keeps since its process started, carried on over restarts of that process."""

    before: int = 0
    now: int = 0

    def see(self, value: object) -> None:
        self.now = max(self.now, whole(value) or 0)

    def restart(self) -> None:
        self.before, self.now = self.before + self.now, 0

    @property
    def total(self) -> int:
        return self.before + self.now


class Traffic:
    """Bytes at the sockets of every node, from counts that each node keeps since its process started.

    ``uncompressed`` is what ``sent`` would have been; a node that does not say is taken to compress nothing.
    Where nodes say null, sockets that are not ours carry the data (``algo=ddp``): all figures are None then, for
    a part of them would be taken for the whole.
    """

    def __init__(self) -> None:
        self.counted = True
        self._sent: dict[str, Counter] = defaultdict(Counter)
        self._received: dict[str, Counter] = defaultdict(Counter)
        self._uncompressed: dict[str, Counter] = defaultdict(Counter)

    def see(self, node: str, counts: Mapping[str, Any]) -> None:
        self.counted = self.counted and counts.get("sent", 0) is not None
        self._sent[node].see(counts.get("sent"))
        self._received[node].see(counts.get("received"))
        if "uncompressed" in counts:
            self._uncompressed[node].see(counts["uncompressed"])

    def restart(self, node: str) -> None:
        for counters in (self._sent, self._received, self._uncompressed):
            if node in counters:
                counters[node].restart()

    def of(self, node: str) -> tuple[int, int] | tuple[None, None]:
        """Bytes sent and received by ``node``."""
        if not self.counted:
            return None, None
        return self._sent[node].total, self._received[node].total

    def total(self) -> dict[str, int | None]:
        if not self.counted:
            return dict.fromkeys(("sent", "received", "uncompressed"))
        plain = sum(self._uncompressed.get(node, counter).total for node, counter in self._sent.items())
        return {
            "sent": sum(counter.total for counter in self._sent.values()),
            "received": sum(counter.total for counter in self._received.values()),
            "uncompressed": plain,
        }


@dataclass
class Mean:
    """A running mean of the numbers that are finite, and their largest."""

    total: float = 0.0
    count: int = 0
    largest: float = -math.inf

    def see(self, value: object) -> None:
        found = finite(value)
        if found is not None:
            self.total, self.count, self.largest = self.total + found, self.count + 1, max(self.largest, found)

    @property
    def mean(self) -> float | None:
        return self.total / self.count if self.count else None

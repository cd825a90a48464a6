"""Links in virtual time: a fluid that flows through what each link, and each node's way out and in, lets pass.

Messages of one node to another keep their order; those of different pairs flow at the same time and share what they
have in common fairly (max-min). Every passage is a token bucket: ``bytes_per_s`` steadily, and after a rest a burst at
its peak. A message arrives half a round trip after its last byte has passed.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from smolcluster.sim.figures import Channel, Figures

Pair: TypeAlias = tuple[str, str]
NOTHING_LEFT = 1e-6
"""Bytes; less is rounding."""


@dataclass
class Bucket:
    """One passage, and what is left of its burst."""

    channel: Channel
    tokens: float = field(init=False)

    def __post_init__(self) -> None:
        self.tokens = self.channel.burst_bytes

    @property
    def speed(self) -> float:
        return self.channel.peak if self.tokens > NOTHING_LEFT else self.channel.bytes_per_s

    def pass_on(self, per_s: float, seconds: float) -> None:
        earned = self.tokens + (self.channel.bytes_per_s - per_s) * seconds
        self.tokens = min(self.channel.burst_bytes, max(0.0, earned))

    def empty_in(self, per_s: float) -> float:
        """Seconds until the burst is over at that speed."""
        drain = per_s - self.channel.bytes_per_s
        return self.tokens / drain if self.tokens > NOTHING_LEFT and drain > 0 else float("inf")


def fair(flows: Mapping[Pair, Sequence[str]], capacity: Mapping[str, float]) -> dict[Pair, float]:
    """Max-min fair speeds of ``flows`` (each with the passages that it goes through).

    >>> fair({("a", "s"): ["a out", "s in"], ("b", "s"): ["b out", "s in"]}, {"a out": 1, "b out": 9, "s in": 6})
    {('a', 's'): 1.0, ('b', 's'): 5.0}
    """
    speeds = dict.fromkeys(flows, 0.0)
    left, open_ = dict(capacity), set(flows)
    while open_:
        users = {name: [flow for flow in open_ if name in flows[flow]] for name in left}
        room = {name: left[name] / len(using) for name, using in users.items() if using}
        tight = min(room, key=lambda name: room[name])
        more = room[tight]
        for flow in open_:
            speeds[flow] += more
            for name in flows[flow]:
                left[name] -= more
        open_ -= set(users[tight])
        left = {name: max(0.0, value) for name, value in left.items() if name != tight}
    return speeds


@dataclass
class Parcel:
    """A message on its way."""

    left: float
    delay_s: float
    arrive: Callable[[], None]


class Network:
    """Carries parcels between the nodes of ``figures``."""

    def __init__(self, figures: Figures, loop: asyncio.AbstractEventLoop) -> None:
        self.figures, self.loop = figures, loop
        self.queues: dict[Pair, deque[Parcel]] = {}
        self.buckets: dict[str, Bucket] = {}
        for (one, other), link in figures.links.items():
            self.buckets[f"{one} -> {other}"] = Bucket(link.channel)
        for name in figures.nodes:
            for index, (way, doors) in enumerate((("out", figures.outlets), ("in", figures.inlets))):
                channels = [link.channel for pair, link in figures.links.items() if pair[index] == name]
                self.buckets[f"{name} {way}"] = Bucket(door(doors.get(name), channels))
        self.speeds: dict[Pair, float] = {}
        self.since = 0.0
        self._timer: asyncio.TimerHandle | None = None

    def send(self, one: str, other: str, num_bytes: int, arrive: Callable[[], None]) -> None:
        """Queue a message; ``arrive`` is called when all of it is there."""
        self.advance()
        delay = self.figures.links[one, other].round_trip_s / 2
        self.queues.setdefault((one, other), deque()).append(Parcel(float(num_bytes), delay, arrive))
        self.plan()

    def advance(self) -> None:
        """Let flow what has flowed since the last look; deliver what is through."""
        elapsed, self.since = self.loop.time() - self.since, self.loop.time()
        for name, bucket in self.buckets.items():
            bucket.pass_on(self._load(name), elapsed)
        for pair, speed in self.speeds.items():
            self.queues[pair][0].left -= speed * elapsed
        for queue in self.queues.values():
            while queue and queue[0].left <= NOTHING_LEFT:
                parcel = queue.popleft()
                self.loop.call_later(parcel.delay_s, parcel.arrive)

    def _load(self, name: str) -> float:
        """Bytes per second that go through a passage now."""
        return sum(speed for pair, speed in self.speeds.items() if name in passages(pair))

    def plan(self) -> None:
        """Speeds from now on, and when to look again."""
        flows = {pair: passages(pair) for pair, queue in self.queues.items() if queue}
        used = {name for path in flows.values() for name in path}
        self.speeds = fair(flows, {name: self.buckets[name].speed for name in used})
        if self._timer is not None:
            self._timer.cancel()
        if not flows:
            return
        ends = [self.queues[pair][0].left / speed for pair, speed in self.speeds.items()]
        changes = [self.buckets[name].empty_in(self._load(name)) for name in used]
        self._timer = self.loop.call_later(max(min(*ends, *changes), 1e-9), self._look)

    def _look(self) -> None:
        self.advance()
        self.plan()


def passages(pair: Pair) -> tuple[str, str, str]:
    """What a message goes through: its sender's way out, the link, its receiver's way in."""
    one, other = pair
    return f"{one} out", f"{one} -> {other}", f"{other} in"


def door(measured: Channel | None, channels: Sequence[Channel]) -> Channel:
    """A node's way out or in: as measured, else as wide as its widest link."""
    if measured is not None:
        return measured
    if not channels:
        return Channel(bytes_per_s=float("inf"))
    return max(channels, key=lambda channel: channel.bytes_per_s)

"""A role alone with a script: every message it gets is written down in the test, and so is every second that passes."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor

from smolcluster.messages import Message
from smolcluster.ports import (
    AlgorithmState,
    Applied,
    Gradient,
    Member,
    Received,
    Role,
    Span,
    Step,
    View,
    ViewChanged,
    Weights,
)

T = TypeVar("T")
Script = Generator[Received | ViewChanged | None, None, None]
SERVER = Member(name="server", role="server", rank=0, joined=1)


def worker(rank: int, joined: int = 1) -> Member:
    return Member(name=f"worker{rank}", role="worker", rank=rank, joined=joined)


class OverError(Exception):
    """The script has ended before the role has."""


class Delivered:
    done = True

    async def wait(self, within: float) -> None:
        return


@dataclass
class Table:
    """Peers, clock and journal of a role, and what it has said to whom so far."""

    workers: Sequence[Member]
    me: Member = SERVER
    time: float = 0.0
    sent: list[tuple[str, Message]] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)
    states: list[AlgorithmState] = field(default_factory=list)
    events: list[dict[str, Any]] = field(default_factory=list)
    commit_s: float = 0.0
    waited_s: float = 0.0

    def __post_init__(self) -> None:
        self.view = View(generation=1, members=(SERVER, *self.workers))

    def play(self, role: Role, learner: Vector, script: Script) -> None:
        """Run the role until it ends by itself or the script does."""
        self.script = script
        coroutine = role.run(self, learner, self, self)
        try:
            while True:
                coroutine.send(None)
        except (StopIteration, OverError):
            return
        finally:
            coroutine.close()

    def change(self, *workers: Member, reason: str = "test") -> ViewChanged:
        """Another membership: it holds at once, and the role hears of it when the script says."""
        before = {(m.name, m.joined) for m in self.view.members}
        self.view = View(generation=self.view.generation + 1, members=(SERVER, *workers))
        after = {(m.name, m.joined) for m in self.view.members}
        lost, joined = (tuple(sorted(name for name, _ in part)) for part in (before - after, after - before))
        return ViewChanged(self.view, lost, joined, reason)

    def said(self, to: str, kind: type[T]) -> list[T]:
        return [message for name, message in self.sent if name == to and isinstance(message, kind)]

    def journal(self, kind: str) -> list[dict[str, Any]]:
        return [event for event in self.events if event["kind"] == kind]

    # --- peers, clock, journal ----------------------------------------------------------------------------

    def send(self, to: str, message: Message) -> Delivered:
        self.sent.append((to, message))
        return Delivered()

    async def next(self, until: float, waiting_for: str) -> Received | ViewChanged | None:
        """The script's next event; its None means that nothing comes before ``until``."""
        try:
            event = next(self.script)
        except StopIteration:
            raise OverError(waiting_for) from None
        if event is None:
            self.time = max(self.time, until)
        return event

    def traffic(self) -> Mapping[str, int]:
        return {}

    def now(self) -> float:
        return self.time

    async def sleep(self, seconds: float) -> None:
        self.time += seconds

    async def commit(self, step: Step, state: AlgorithmState) -> None:
        self.time += self.commit_s
        self.steps.append(step)
        self.states.append(state)

    def event(self, kind: str, **fields: Any) -> None:
        self.events.append({"kind": kind, **fields})


class Vector:
    """A learner of two numbers that goes down its gradient at rate 1; it notes how it was asked to."""

    fingerprint = "same"
    num_params = 2
    max_items = 1
    num_samples = 12

    def __init__(self, *, statistics: bool = False) -> None:
        self.version = self.num_steps = 0
        self.theta = torch.zeros(2, dtype=torch.float64)
        self.statistics = torch.zeros(1, dtype=torch.float64) if statistics else None
        self.applied: list[tuple[list[float], float]] = []

    async def compute(self, work: Callable[[], T], passes: float = 1.0) -> T:
        return work()

    async def gradient(self, spans: Sequence[Span], *, step: int, rank: int) -> Gradient:
        num = sum(span.size for span in spans)
        ones = torch.ones(2, dtype=torch.float64)
        return Gradient(flat=ones, buffers=None, loss=1.0, num_samples=num, num_items=num, seconds=0.1)

    async def apply(self, gradient: Tensor, *, buffers: Tensor | None = None, lr_scale: float = 1.0) -> Applied:
        self.applied.append((gradient.tolist(), lr_scale))
        self.theta = self.theta - lr_scale * gradient
        self.statistics = self.statistics if buffers is None else buffers.clone()
        self.version += 1
        return Applied(grad_norm=1.0, clip=1.0, skipped=False, lr=lr_scale, norms={})

    async def load(self, weights: Weights, *, blend: float = 1.0) -> None:
        self.theta = self.theta.lerp(weights.parameters, blend)

    async def load_buffers(self, buffers: Tensor) -> None:
        self.statistics = buffers

    async def snapshot(self) -> Weights:
        return Weights(self.theta.clone(), None if self.statistics is None else self.statistics.clone())

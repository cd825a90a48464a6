"""A node in virtual time: what a role sees of it. Tensors have one number; sizes and times are the measured ones."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from smolcluster.errors import PeerLost
from smolcluster.messages import Message, tensor_fields
from smolcluster.ports import (
    AlgorithmState,
    Applied,
    Gradient,
    Member,
    Received,
    Span,
    Step,
    View,
    ViewChanged,
    Weights,
)
from smolcluster.sim.figures import Figures, NodeFigures
from smolcluster.sim.network import Network

T = TypeVar("T")
HEAD_BYTES = 300
"""A frame's header, its meta part and what encryption adds, about."""


class SimDelivery:
    """Implements :class:`smolcluster.ports.Delivery`."""

    def __init__(self, to: str) -> None:
        self._to = to
        self._arrived = asyncio.Event()

    @property
    def done(self) -> bool:
        return self._arrived.is_set()

    def complete(self) -> None:
        self._arrived.set()

    async def wait(self, within: float) -> None:
        try:
            async with asyncio.timeout(within):
                await self._arrived.wait()
        except TimeoutError:
            raise PeerLost(self._to, "sending", f"not taken within {within:g} s") from None


class SimPeers:
    """Implements :class:`smolcluster.ports.Peers` on a :class:`Network`."""

    def __init__(self, me: Member, view: View, network: Network, everybody: Mapping[str, SimPeers]) -> None:
        self.me, self.view, self.network, self.everybody = me, view, network, everybody
        self.waited_s = 0.0
        self.sent = self.received = 0
        self._inbox: asyncio.Queue[Received | ViewChanged] = asyncio.Queue()
        self._inbox.put_nowait(ViewChanged(view, (), tuple(m.name for m in view.members), "start"))

    def send(self, to: str, message: Message) -> SimDelivery:
        delivery = SimDelivery(to)
        peer = self.everybody[to]
        size = HEAD_BYTES + sum(self.network.figures.tensor_bytes[layout] for layout, _ in tensor_fields(message))

        def arrive() -> None:
            peer.received += size
            peer._inbox.put_nowait(Received(self.me, message))
            delivery.complete()

        if to == self.me.name:
            arrive()
        else:
            self.sent += size
            self.network.send(self.me.name, to, size, arrive)
        return delivery

    async def next(self, until: float, waiting_for: str) -> Received | ViewChanged | None:
        event = await self._event(until)
        if isinstance(event, Received) and any(layout == "gradient" for layout, _ in tensor_fields(event.message)):
            await asyncio.sleep(self.network.figures.handling_s)
        return event

    async def _event(self, until: float) -> Received | ViewChanged | None:
        loop = asyncio.get_running_loop()
        began = loop.time()
        try:
            if not self._inbox.empty():
                return self._inbox.get_nowait()
            async with asyncio.timeout_at(None if until == float("inf") else until):
                return await self._inbox.get()
        except TimeoutError:
            return None
        finally:
            self.waited_s += loop.time() - began

    def traffic(self) -> Mapping[str, int]:
        return {"sent": self.sent, "received": self.received, "uncompressed": self.sent}


class Ring:
    """Where the learners of one run meet to average gradients with torch.distributed."""

    def __init__(self, figures: Figures, size: int) -> None:
        self.size, self._waiting = size, list[asyncio.Future[None]]()
        links = figures.links.values()
        num_bytes = figures.tensor_bytes["gradient"] * 2 * (size - 1) / max(size, 1)
        slowest = min((link.channel.bytes_per_s for link in links), default=float("inf"))
        trip = max((link.round_trip_s for link in links), default=0.0)
        self.seconds = num_bytes / slowest + (size - 1) * (trip + figures.handling_s)

    async def meet(self) -> None:
        """Return when all have come and their gradients have gone round."""
        here: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(here)
        if len(self._waiting) == self.size:
            waiting, self._waiting = self._waiting, []
            for each in waiting:
                each.set_result(None)
        await here
        await asyncio.sleep(self.seconds)


class SimLearner:
    """Implements :class:`smolcluster.ports.GroupLearner`: everything takes its time and computes nothing."""

    fingerprint = "simulated"
    num_params = 1

    def __init__(self, figures: Figures, mine: NodeFigures, ring: Ring, *, alone: bool) -> None:
        self.version, self.num_steps = 0, 1
        self.num_samples, self.max_items = figures.num_samples, figures.max_items
        self._mine, self._ring = mine, ring
        self._per_sample_s = (mine.gradient_s if alone else mine.together_s) / figures.batch_size
        self._buffers = torch.ones(1, dtype=torch.float64) if "buffers" in figures.tensor_bytes else None
        self._thread = asyncio.Lock()
        self._flat = torch.ones(1)

    async def _take(self, seconds: float) -> None:
        async with self._thread:
            await asyncio.sleep(seconds)

    async def gradient(self, spans: Sequence[Span], *, step: int, rank: int) -> Gradient:
        count = sum(span.size for span in spans)
        seconds = count * self._per_sample_s
        await self._take(seconds)
        return Gradient(
            flat=self._flat, buffers=self._buffers, loss=1.0, num_samples=count, num_items=count, seconds=seconds
        )

    async def gradient_in_group(self, spans: Sequence[Span], *, step: int, rank: int, scale: float) -> Gradient:
        gradient = await self.gradient(spans, step=step, rank=rank)
        await self._ring.meet()
        return gradient

    async def apply(self, gradient: Tensor, *, buffers: Tensor | None = None, lr_scale: float = 1.0) -> Applied:
        await self._take(self._mine.apply_s)
        self.version += 1
        return Applied(grad_norm=1.0, clip=1.0, skipped=False, lr=1.0, norms={})

    async def load(self, weights: Weights, *, blend: float = 1.0) -> None:
        await self._take(self._mine.load_s)

    async def load_buffers(self, buffers: Tensor) -> None:
        await self._take(0.0)

    async def snapshot(self) -> Weights:
        await self._take(self._mine.snapshot_s)
        return Weights(self._flat.clone(), self._buffers)

    async def compute(self, work: Callable[[], T], *, passes: float = 1.0) -> T:
        await self._take(passes * self._mine.pass_s)
        return work()

    async def open_group(self) -> tuple[str, int]:
        return "simulated", 0

    async def join_group(self, host: str, port: int, rank: int, world_size: int) -> None:
        return

    async def leave_group(self) -> None:
        return

    def loopback_bytes(self) -> int | None:
        return None


class Commit(NamedTuple):
    """When a step was made, of how many samples, and what all nodes had sent by then."""

    time: float
    num_samples: int
    sent_bytes: int


class SimJournal:
    """Implements :class:`smolcluster.ports.Journal`: notes when each step was made."""

    def __init__(self, enough: Callable[[list[Commit]], bool], sent: Callable[[], int]) -> None:
        self._enough, self._sent = enough, sent
        self.commits: list[Commit] = []
        self.over = asyncio.Event()

    async def commit(self, step: Step, state: AlgorithmState) -> None:
        self.commits.append(Commit(asyncio.get_running_loop().time(), step.num_samples, self._sent()))
        if self._enough(self.commits):
            self.over.set()

    def event(self, kind: str, **fields: Any) -> None:
        return

"""A survey of the cluster: how long each node computes, and what each link carries. What nodes do for the doctor.

The server gives the orders, one at a time, so that no measurement disturbs another: first everybody computes at the
same time (as in training), then each alone, then each link is tried in each direction, then all links of the server
at once, and at last a few steps are made as in training. What is found goes up to the controller as ``measured`` lines
of the journal. A link that does not come about, or a node that dies, costs its own measurements only.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import statistics
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch.utils.flop_counter import FlopCounterMode

from smolcluster.algo._bookkeeping import strange
from smolcluster.comms.buffers import Layout
from smolcluster.errors import PeerLost
from smolcluster.messages import Carried, Echo, Finish, Join, Order, Probe, Work
from smolcluster.ports import Clock, Delivery, Journal, Learner, Member, Peers, Received, Span, ViewChanged

if TYPE_CHECKING:
    from smolcluster.spec.run import RunSpec

CHUNK_BYTES = 1 << 17
CHUNK = Layout("uint8", CHUNK_BYTES)
"""What a link is filled with, again and again; small enough for a slow link, large enough for a fast one."""
REST_S = 0.15
"""Before a link is filled: shapers have forgotten what was before, and TCP has not, as between two steps."""
STREAMS = 3
"""A link is filled so many times, each for its part of the time: what else machines do at the moment disturbs one."""
AHEAD = 16
"""Chunks that are on their way at a time."""
MIN_CHUNKS, MAX_SLOW = 8, 6.0
"""A slow link carries at least so many chunks, unless that takes so many times as long as a measurement should."""
PINGS = 20
MIN_REPEATS, MAX_REPEATS = 3, 200
SETTLED = 0.4
"""Part of a measurement that passes before a link is taken to have settled: shapers let a first burst through."""
ORDER_S = 60.0
"""Longest time for one order, besides what it has to compute."""


class Throughput(NamedTuple):
    """What went through a link: steadily ``bytes_per_s``, and ``burst_bytes`` more at first, at ``peak_per_s``."""

    bytes_per_s: float
    burst_bytes: float
    peak_per_s: float


def throughput(arrivals: Sequence[float], chunk_bytes: int) -> Throughput:
    """From the times at which equal chunks have arrived. How long it took until
    the first was there is no matter of speed; a burst of less than two chunks cannot be told from that.

    >>> throughput([1.0, 2.0, 3.0, 4.0, 5.0], 100)
    Throughput(bytes_per_s=100.0, burst_bytes=0.0, peak_per_s=100.0)
    >>> throughput([0.5, 0.625, 0.75, 1.75, 2.75, 3.75, 4.75], 100)
    Throughput(bytes_per_s=100.0, burst_bytes=275.0, peak_per_s=800.0)
    """
    settled = max(0, min(int(len(arrivals) * SETTLED), len(arrivals) - 2))
    seconds = arrivals[-1] - arrivals[settled]
    rate = (len(arrivals) - 1 - settled) * chunk_bytes / max(seconds, 1e-9)
    burst = len(arrivals) * chunk_bytes - rate * (arrivals[-1] - arrivals[0])
    if burst < 2 * chunk_bytes:
        return Throughput(rate, 0.0, rate)
    early = int(burst // chunk_bytes)
    peak = (early - 1) * chunk_bytes / max(arrivals[early - 1] - arrivals[0], 1e-9)
    return Throughput(rate, burst, max(rate, peak))


class Surveyor:
    """One node of a survey. The server gives the orders and carries out its own."""

    def __init__(self, spec: RunSpec, me: Member, tensor_bytes: Mapping[str, int]) -> None:
        self.batch_size, self.seconds = spec.batch_size, float(spec.pipeline.seconds)
        self.patience_s, self.reach_s = spec.comms.timeout_s, spec.comms.connect_timeout_s
        self.me, self.tensor_bytes = me, dict(tensor_bytes)
        self.present: dict[str, Member] = {}
        self.arrived: dict[tuple[str, int], list[float]] = {}
        self.answers: dict[tuple[str, int], asyncio.Future[str]] = {}
        self.numbers = itertools.count(1)
        self.working: set[asyncio.Task[None]] = set()
        self.steps = itertools.count()
        noise = torch.Generator().manual_seed(0)  # no link makes it smaller
        self.chunk = torch.randint(0, 256, (CHUNK_BYTES,), dtype=torch.uint8, generator=noise)

    async def run(self, peers: Peers, learner: Learner, clock: Clock, journal: Journal) -> None:
        self.peers, self.learner, self.clock, self.journal = peers, learner, clock, journal
        self.zero = (await learner.snapshot()).parameters.zero_()
        learner.num_steps = 10**9
        reading = asyncio.create_task(self.read(), name="reading")
        tasks = {reading}
        if self.me.role == "server":
            tasks.add(asyncio.create_task(self.conduct(), name="survey"))
        else:
            peers.send(peers.view.named("server")[0].name, Join(fingerprint=learner.fingerprint))
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            for task in (*tasks, *self.working):
                task.cancel()
            await asyncio.gather(*tasks, *self.working, return_exceptions=True)

    # --- what comes in -----------------------------------------------------------------------------------

    async def read(self) -> None:
        """Until the server says that all is measured."""
        while True:
            match await self.peers.next(float("inf"), "orders"):
                case Received(_, Finish()):
                    return
                case Received(sender, Probe() as probe):
                    self.take(sender, probe)
                case Received(sender, Echo(number=number, index=index)):
                    self.answered(f"{sender.name} {index}", number)
                case Received(sender, Carried(number=number, reason=reason)):
                    self.answered(sender.name, number, reason)
                case Received(_, Order() as order):
                    task = asyncio.create_task(self.obey(order))
                    self.working.add(task)
                    task.add_done_callback(self.working.discard)
                case Received(sender, Work() as work):
                    await self.answer_work(sender, work)
                case Received(sender, Join(fingerprint=theirs)):
                    self.present[sender.name] = sender
                    if theirs != self.learner.fingerprint:
                        self.tell("failed", source=sender.name, task="to train", peer="", reason=strange(sender))
                case ViewChanged(_, lost, _, reason):
                    self.part(lost, reason)
                case _:
                    continue

    def take(self, sender: Member, probe: Probe) -> None:
        """Note when a chunk has arrived; the first part of a measurement is its announcement."""
        if probe.chunk is not None or probe.index == 0:
            self.arrived.setdefault((sender.name, probe.number), []).append(self.clock.now())
        if probe.last:
            self.peers.send(sender.name, Echo(number=probe.number, index=probe.index))
            times = self.arrived.pop((sender.name, probe.number), [])
            if len(times) > MIN_CHUNKS // 2:
                found = throughput(times[1:], CHUNK_BYTES)._asdict()
                self.tell("carried", sender=sender.name, number=probe.number, **found)

    def answered(self, who: str, number: int, reason: str = "") -> None:
        future = self.answers.pop((who, number), None)
        if future is not None and not future.done():
            future.set_result(reason)

    def part(self, names: Sequence[str], reason: str) -> None:
        for name in names:
            self.present.pop(name, None)
            for who, number in list(self.answers):
                if who.split()[0] == name:
                    self.answered(who, number, f"{name} is gone: {reason}")

    def tell(self, what: str, **figures: Any) -> None:
        self.journal.event("measured", step=None, what=what, **figures)

    # --- the server's orders -----------------------------------------------------------------------------

    async def conduct(self) -> None:
        """The whole survey, in order."""
        await self.assemble()
        names = [self.me.name, *(m.name for m in sorted(self.present.values(), key=lambda m: m.rank))]
        facts = {"num_samples": self.learner.num_samples, "max_items": self.learner.max_items}
        self.tell("samples", **facts, tensor_bytes=self.tensor_bytes)
        await self.order([(name, "compute together", "") for name in names[1:]])
        for name in names:
            await self.order([(name, "compute alone", "")])
        pairs = [(one, other) for one in names for other in names if one != other]
        lost = {pair for pair in pairs if await self.order([(pair[0], "reach", pair[1])])}
        for one, other in pairs:
            for _ in range(STREAMS if (one, other) not in lost else 0):
                await self.order([(one, "stream", other)])
        if len(names) > 2:
            await self.order([(name, "stream", self.me.name) for name in names[1:]])
            await self.order([(self.me.name, "stream", name) for name in names[1:]])
        if not lost & {(self.me.name, name) for name in names}:
            await self.rehearse(names[1:])
        for member in self.peers.view.named("worker"):
            self.peers.send(member.name, Finish(reason="done"))

    async def assemble(self) -> None:
        """Wait for the workers; one that cannot reach this node is left out."""
        until = self.clock.now() + self.reach_s
        while self.clock.now() < until and any(m.name not in self.present for m in self.peers.view.named("worker")):
            await self.clock.sleep(0.05)

    async def order(self, orders: Sequence[tuple[str, str, str]]) -> bool:
        """Have these carried out at the same time, and wait until that is done; whether one of them has failed."""
        number = next(self.numbers)
        there = [each for each in orders if each[0] in (self.me.name, *self.present)]
        return any(await asyncio.gather(*(self.one(number, *each) for each in there)))

    async def one(self, number: int, name: str, what: str, peer: str) -> str:
        """One node carries out one order; why it could not, or empty."""
        order = Order(number=number, what=what, peer=peer)
        if name == self.me.name:
            reason = await self.carry_out(order)
        else:
            self.peers.send(name, order)
            reason = await self.answer(name, number, ORDER_S + self.reach_s + MAX_SLOW * self.seconds)
        if reason:
            self.tell("failed", source=name, task=what, peer=peer, reason=reason)
        return reason

    async def answer(self, who: str, number: int, within: float) -> str:
        """Wait for an answer; the reason why there is none, or empty."""
        future = self.answers[who, number] = asyncio.get_running_loop().create_future()
        try:
            async with asyncio.timeout(within):
                reason: str = await future
                return reason
        except TimeoutError:
            return f"no answer within {within:g} s"
        finally:
            self.answers.pop((who, number), None)

    async def rehearse(self, workers: Sequence[str]) -> None:
        """A few steps as a parameter server makes them, without tensors: what they cost besides computing."""
        size = min(self.batch_size, self.learner.num_samples)
        times, until = list[float](), self.clock.now() + self.seconds
        while len(times) < MIN_REPEATS or (self.clock.now() < until and len(times) < MAX_REPEATS):
            began, number = self.clock.now(), next(self.numbers)
            await self.learner.snapshot()
            for name in workers:
                self.peers.send(name, Work(step=number, version=0, blend=1.0, spans=(0, 0, size)))
            answers = (self.answer(name, number, self.patience_s + ORDER_S) for name in workers)
            if any(await asyncio.gather(*answers)):
                return
            await self.learner.apply(self.zero)
            times.append(self.clock.now() - began)
            self.tell("round", number=number, seconds=times[-1])  # as a step is told of

    async def answer_work(self, sender: Member, work: Work) -> None:
        """What a worker does in a step."""
        gradient = await self.learner.gradient([Span(*work.spans)], step=work.step, rank=self.me.rank)
        self.peers.send(sender.name, Carried(number=work.step, reason=""))
        self.tell("part", number=work.step, seconds=gradient.seconds)

    # --- carrying out ------------------------------------------------------------------------------------

    async def obey(self, order: Order) -> None:
        reason = await self.carry_out(order)
        self.peers.send(self.peers.view.named("server")[0].name, Carried(number=order.number, reason=reason))

    async def carry_out(self, order: Order) -> str:
        """Why it could not be done, or empty."""
        try:
            match order.what:
                case "reach":
                    return await self.reach(order.number, order.peer)
                case "stream":
                    return await self.stream(order.number, order.peer)
                case _:
                    await self.compute(order.what)
        except PeerLost as lost:
            return lost.reason
        return ""

    async def compute(self, how: str) -> None:
        """Gradients of one batch each; alone, the optimizer's step and copies of the weights besides."""
        gradient_s = await self.timed(self.gradient, 1.0)
        figures = {"gradient_s": gradient_s}
        if how.endswith("alone"):
            weights = await self.learner.snapshot()
            figures |= {
                "apply_s": await self.timed(lambda: self.learner.apply(self.zero), 0.2),
                "snapshot_s": await self.timed(self.learner.snapshot, 0.1),
                "load_s": await self.timed(lambda: self.learner.load(weights), 0.1),
                "pass_s": await self.timed(lambda: self.learner.compute(self.zero.clone), 0.1),
                "flops": await self.flops(),
            }
        self.tell(how, **figures)

    async def gradient(self) -> None:
        size = min(self.batch_size, self.learner.num_samples)
        await self.learner.gradient([Span(0, 0, size)], step=next(self.steps), rank=self.me.rank)

    async def flops(self) -> int:
        """Floating point operations of one gradient, as far as torch counts them (matrix products, convolutions)."""
        counter = FlopCounterMode(display=False)
        counting = contextlib.ExitStack()
        await self.learner.compute(lambda: counting.enter_context(counter))  # in the thread that is to compute
        try:
            await self.gradient()
        finally:
            await self.learner.compute(counting.close)
        return int(counter.get_total_flops())

    async def timed(self, work: Callable[[], Awaitable[object]], share: float) -> float:
        """Median seconds of ``work``, repeated for ``share`` of a measurement's time; the first is not counted."""
        await work()
        times: list[float] = []
        until = self.clock.now() + share * self.seconds
        while len(times) < MIN_REPEATS or (self.clock.now() < until and len(times) < MAX_REPEATS):
            began = self.clock.now()
            await work()
            times.append(self.clock.now() - began)
        return statistics.median(times)

    async def reach(self, number: int, peer: str) -> str:
        """The round trip of the smallest message, as the median of several."""
        times = []
        for index in range(PINGS):
            began = self.clock.now()
            self.peers.send(peer, Probe(number=number, index=index, last=1))
            reason = await self.answer(f"{peer} {index}", number, self.reach_s if index == 0 else self.patience_s)
            if reason:
                return reason
            times.append(self.clock.now() - began)
        self.tell("reached", peer=peer, round_trip_s=statistics.median(times[1:]))
        return ""

    async def stream(self, number: int, peer: str) -> str:
        """Fill the link for a while; the other end says what came through."""
        await self.clock.sleep(REST_S)
        self.peers.send(peer, Probe(number=number, index=0, last=0))
        on_the_way: list[Delivery] = []
        index = 0
        for index in self.chunks_for(self.clock.now()):
            on_the_way.append(self.peers.send(peer, Probe(number=number, index=index, last=0, chunk=self.chunk)))
            if len(on_the_way) > AHEAD:
                await on_the_way.pop(0).wait(self.patience_s + MAX_SLOW * self.seconds)
        self.peers.send(peer, Probe(number=number, index=index + 1, last=1))
        return await self.answer(f"{peer} {index + 1}", number, self.patience_s + MAX_SLOW * self.seconds)

    def chunks_for(self, began: float) -> Iterator[int]:
        """Numbers of the chunks to send: until the time is over, and some more on a slow link."""
        for index in itertools.count(1):
            elapsed = self.clock.now() - began
            if elapsed > self.seconds / STREAMS * (MAX_SLOW if index <= MIN_CHUNKS else 1.0):
                return
            yield index

"""``algo=edp``: elastic data parallelism, an asynchronous parameter server (DistBelief, Dean et al. 2012).

Nobody waits for anybody. Workers lease batches from the server, push the gradient of each, and pull the weights
every ``worker_update_interval`` pushes. A gradient was taken at weights of version v; when it arrives the server
stands at V >= v, and s = V - v is its staleness, in optimizer steps. ``gradient_accumulation_size`` gradients make
one optimizer step:

    G = sum_i n_i phi(s_i) g_i / sum_i n_i phi(s_i),   lr = eta * sum_i n_i phi(s_i) / sum_i n_i

with phi(s) = 1 / (1 + s) (``staleness_scaling=inverse``) or 1. The *learning rate* is scaled down, because an
Adam-type optimizer does not notice when all gradients are. A gradient older than ``max_staleness`` is refused
and its sender gets the weights. Staleness is measured at arrival for admission and again at the step for
scaling. One worker with interval 1 and no accumulation is bit for bit ``algo=single``.

Failure. A lease of a worker that dies goes back and is done by another; one that was refused is consumed and
counted. Workers may leave and join at any time, and nothing stops for it. A worker that answers nothing for
``max_wait_s`` loses its leases to those that have none. Without the server the run ends; its checkpoint knows which
samples are done, and goes on with any number of workers. While the server evaluates or saves, pushes wait.
"""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, NamedTuple, NoReturn

from smolcluster.algo._bookkeeping import Tally, combine, detached, fault, mean_loss, strange
from smolcluster.algo._leases import Lease, Leases
from smolcluster.comms.staleness import admit
from smolcluster.compressor.int8 import Int8
from smolcluster.data.order import Course, course_for
from smolcluster.errors import PeerLost, Problem, RunFailed
from smolcluster.messages import Busy, Finish, Grant, Join, Params, Pull, Push
from smolcluster.ports import (
    Algorithm,
    AlgorithmState,
    Clock,
    Delivery,
    Journal,
    Learner,
    Member,
    Peers,
    Received,
    Span,
    Step,
    ViewChanged,
    Weights,
)
from smolcluster.spec.schema import Range

if TYPE_CHECKING:
    from torch import Tensor

    from smolcluster.ports import Aggregator
    from smolcluster.spec.run import RunSpec

LEASES_AHEAD = 2
"""Leases that a worker holds at a time: it starts on the next batch while the last gradient travels."""


@dataclass(frozen=True, kw_only=True)
class EDP(Algorithm):
    """Parameters of the asynchronous parameter server."""

    links: ClassVar[str] = "star"
    has_server: ClassVar[bool] = True
    takes_guests: ClassVar[bool] = True
    sparing: ClassVar[Mapping[str, Any]] = {"use_quantization": True}

    worker_update_interval: Annotated[int, Range(ge=1, le=10**6, unit="pushes")] = 1
    """A worker pulls the weights after every so many pushes."""
    gradient_accumulation_size: Annotated[int, Range(ge=1, le=1024, unit="gradients")] = 1
    """Gradients that make one optimizer step."""
    max_staleness: Annotated[int | None, Range(ge=0, le=10**9, unit="optimizer steps")] = 50
    """Older gradients are refused; null: none is."""
    staleness_scaling: Literal["none", "inverse"] = "none"
    """How the learning rate shrinks with staleness s: not at all, or 1 / (1 + s)."""
    flush_s: Annotated[float, Range(gt=0, le=86400, unit="seconds")] = 10.0
    """A partly filled buffer makes its step when nothing has come for so long."""
    max_wait_s: Annotated[float, Range(gt=0, le=10**6, unit="seconds")] = 600.0
    """No push from anybody for so long ends the run, naming who holds leases."""
    use_quantization: bool = False
    """Gradients travel in 8 bits (symmetric chunks of 256, stochastic rounding)."""

    def problems(self, spec: RunSpec) -> Iterable[Problem]:
        if self.flush_s >= self.max_wait_s:
            rule = f"must be < algo.max_wait_s={self.max_wait_s:g}"
            yield Problem(key="algo.flush_s", value=self.flush_s, rule=rule, nearest=f"{self.max_wait_s / 2:g}")
        if self.use_quantization and spec.train.precision == "64":
            rule = "must be false with train.precision=64: 8 bits are no test of exactness"
            yield Problem(key="algo.use_quantization", value=True, rule=rule, nearest="false")

    def batches_per_step(self, num_workers: int) -> int:
        return 1  # a lease is one worker's batch; steps are made of gradient_accumulation_size leases

    def gradient_bytes(self, num_params: int) -> int | None:
        """Bytes of a gradient on the wire, where it is encoded."""
        return Int8().encoded_bytes(num_params) if self.use_quantization else None

    def role(self, spec: RunSpec, me: Member, num_samples: int, state: AlgorithmState | None) -> Server | Worker:
        if me.role == "worker":
            return Worker(self, spec.seed, patience_s=self.max_wait_s + spec.comms.timeout_s)
        return Server(self, course_for(spec, num_samples), spec.aggregator, state)


class Buffered(NamedTuple):
    """A gradient that waits for its optimizer step."""

    push: Push
    lease: Lease


class Server:
    """Holds theta, the optimizer and the leases; theta's version V is the number of optimizer steps."""

    def __init__(self, algo: EDP, course: Course, aggregate: Aggregator, state: AlgorithmState | None) -> None:
        self.algo, self.max_steps, self.aggregate = algo, course.max_steps, aggregate
        before = state.plain if state else {}
        self.leases = Leases(replace(course, max_steps=None), before or None)
        self.counts = Tally(before.get("counts"))
        self.histogram = Counter({int(s): n for s, n in before.get("staleness", {}).items()})
        self.ready: dict[str, Member] = {}
        self.turned_away: set[Member] = set()
        self.overdue: set[str] = set()
        self.buffer: list[Buffered] = []
        self.current: Weights | None = None
        self.compute_s = self.wait_s = 0.0

    async def run(self, peers: Peers, learner: Learner, clock: Clock, journal: Journal) -> None:
        self.peers, self.learner, self.clock, self.journal = peers, learner, clock, journal
        steps = learner.version + math.ceil(self.leases.remaining / self.algo.gradient_accumulation_size)
        learner.num_steps = steps if self.max_steps is None else min(steps, self.max_steps)
        heard = clock.now()
        while not self.finished():
            until = heard + (self.algo.flush_s if self.buffer else self.algo.max_wait_s)
            came = await self.take(await peers.next(until, self.waiting_for()))
            now = clock.now()
            heard = now if came else heard
            if len(self.buffer) >= self.algo.gradient_accumulation_size or (self.buffer and self.idle(now, until)):
                await self.apply()
                heard = clock.now()  # the time that an evaluation took is nobody's fault
            elif not came and now >= until:
                self.reassign()
                heard = now
        for member in peers.view.named("worker"):
            peers.send(member.name, Finish(reason="done"))

    def finished(self) -> bool:
        """All samples are done, or all steps are."""
        if self.max_steps is not None and self.learner.version >= self.max_steps:
            self.buffer.clear()
            return True
        return self.leases.exhausted and not self.buffer

    def idle(self, now: float, until: float) -> bool:
        """Nothing more can come, or has come for ``flush_s``."""
        return now >= until or self.leases.exhausted

    def waiting_for(self) -> str:
        holders = self.leases.holders()
        return f"pushes of {', '.join(holders)}" if holders else "workers to join"

    def reassign(self) -> None:
        """Nothing came for ``max_wait_s``: give overdue leases to workers that have none; RunFailed without any."""
        holders = self.leases.holders()
        idle = [member for name, member in self.ready.items() if name not in holders]
        if not (holders and idle):
            silence = f"no push for {self.algo.max_wait_s:g} s"
            raise RunFailed(f"server: version {self.learner.version}: {silence}; {self.waiting_for()}")
        for name in holders:
            self.ready.pop(name, None)
            self.overdue.add(name)
            samples = self.leases.take_back(name)
            self.journal.event("overdue", step=self.learner.version, peer=name, samples=samples)
        for member in idle:
            self.fill(member)

    # --- what comes in -----------------------------------------------------------------------------------

    async def take(self, event: Received | ViewChanged | None) -> bool:
        """Do what an event asks for; whether there was one."""
        match event:
            case Received(sender, Push() as push):
                await self.admit(sender, push)
            case Received(sender, Pull() as pull):
                await self.send_weights(sender, "pull", than=pull.version)
            case Received(sender, Join() as join):
                await self.welcome(sender, join)
            case ViewChanged(_, lost, joined, reason):
                for name in lost:
                    self.part(name, reason)
                for name in joined:
                    self.journal.event("member", step=self.learner.version, peer=name, reason=reason)
            case Received(sender, message):
                self.refuse(sender.name, "unexpected", f"{type(message).__name__} is not for a server")
        return event is not None

    async def admit(self, sender: Member, push: Push) -> None:
        """Accept, or refuse and count: pushes = accepted + stale + future + duplicate + not finite + malformed."""
        self.counts["pushes"] += 1
        lease = self.leases.end(push.lease, sender.name)
        if lease is None:
            await self.surprise(sender, push)
            return
        self.grant(sender)
        size = lease.span.size
        if push.num_samples != size or not 0 < push.num_items <= size * self.learner.max_items or push.version < 0:
            told = f"{push.num_samples} samples, {push.num_items} items, version {push.version}"
            self.refuse(sender.name, "malformed", f"{told}; leased {size}", samples=size)
            return
        verdict, _, reason = admit(self.learner.version, push.version, self.algo.max_staleness)
        if verdict != "accept":
            self.refuse(sender.name, verdict, reason, samples=size)
            await self.send_weights(sender, verdict)
            return
        push, reason = await self.learner.compute(lambda: self.unpack(push), passes=3.0)
        if reason:
            self.refuse(sender.name, "nonfinite" if reason == "not finite" else "malformed", reason, samples=size)
            return
        self.compute_s, self.wait_s = self.compute_s + push.compute_s, self.wait_s + push.wait_s
        self.counts["accepted"] += 1
        self.counts[f"accepted/{sender.name}"] += 1
        self.buffer.append(Buffered(push, lease))

    async def surprise(self, sender: Member, push: Push) -> None:
        """A push for a lease that is not out to its sender: refused; who was overdue is there again."""
        if sender.name in self.overdue:
            self.overdue.discard(sender.name)
            self.refuse(sender.name, "late", f"lease {push.lease} was given to another")
            self.ready[sender.name] = sender
            await self.send_weights(sender, "late")
            self.fill(sender)
            return
        kind = "duplicate" if self.leases.answered(push.lease, sender.name) else "malformed"
        self.refuse(sender.name, kind, f"lease {push.lease} is not out to it")

    def unpack(self, push: Push) -> tuple[Push, str]:
        """The decoded push, and what is wrong with it. Computes: not for the event loop."""
        if self.algo.use_quantization:
            gradient = Int8().decode(push.gradient, self.learner.num_params)
            push = replace(push, gradient=gradient, buffers=None if push.buffers is None else push.buffers.clone())
        elif self.algo.gradient_accumulation_size > 1:
            push = detached(push)  # it may wait long, and the memory that it came in is wanted for the next
        return push, fault(push, push.gradient)

    def refuse(self, name: str, kind: str, reason: str, samples: int = 0) -> None:
        self.counts[f"rejected_{kind}"] += 1
        if self.counts.refused(name) or samples:
            step = self.learner.version
            self.journal.event("rejected", step=step, peer=name, verdict=kind, reason=reason, samples=samples)

    async def welcome(self, sender: Member, join: Join) -> None:
        if join.fingerprint != self.learner.fingerprint:
            self.counts.refused(sender.name)
            if sender not in self.turned_away:
                self.turned_away.add(sender)
                reason = strange(sender)
                self.journal.event("rejected", step=self.learner.version, peer=sender.name, reason=reason)
                self.peers.send(sender.name, Finish(reason=reason))
            return
        if self.ready.get(sender.name) == sender:
            self.refuse(sender.name, "unexpected", "has joined already")
            return
        self.ready[sender.name] = sender
        self.journal.event("joined", step=self.learner.version, peer=sender.name, reason="ready")
        await self.send_weights(sender, "join")
        self.fill(sender)

    def part(self, name: str, reason: str) -> None:
        """A worker is gone: its leases are done by others."""
        self.ready.pop(name, None)
        self.overdue.discard(name)
        samples = self.leases.take_back(name)
        self.leases.forget(name)
        self.journal.event("lost", step=self.learner.version, peer=name, reason=reason, samples=samples)
        for member in self.ready.values():
            if self.leases.waiting and not self.leases.held(member.name):
                self.grant(member)

    # --- leases and weights ------------------------------------------------------------------------------

    def fill(self, member: Member) -> None:
        """As many leases as a worker may hold; who joins again and again is given no more."""
        for _ in range(LEASES_AHEAD - self.leases.held(member.name)):
            self.grant(member)

    def grant(self, member: Member) -> None:
        """Lease the next batch to a worker that is there, if there is one."""
        if self.present(member) and (lease := self.leases.take(member.name)) is not None:
            self.peers.send(member.name, Grant(leases=(lease.number, *lease.span)))

    def present(self, member: Member) -> bool:
        """It has joined, and is not about to be succeeded by another of its name."""
        return self.ready.get(member.name) == member == self.peers.view.get(member.name)

    async def send_weights(self, member: Member, reason: str, than: int = -1) -> None:
        """Weights and their version belong together: one snapshot per version serves everybody."""
        if not self.present(member):
            return
        if self.current is None:
            self.current = await self.learner.snapshot()
        parameters = self.current.parameters if than != self.learner.version else None
        version, buffers = self.learner.version, self.current.buffers
        self.peers.send(member.name, Params(version=version, reason=reason, parameters=parameters, buffers=buffers))

    # --- the optimizer step ------------------------------------------------------------------------------

    async def apply(self) -> None:
        """One step from the buffer, in order of arrival."""
        batch, self.buffer = self.buffer, []
        version = self.learner.version
        staleness = [version - b.push.version for b in batch]
        items = [b.push.num_items for b in batch]
        weights = [n * self.phi(s) for n, s in zip(items, staleness, strict=True)]
        pushes = [b.push for b in batch]
        gradient, buffers = await self.learner.compute(
            lambda: combine(self.aggregate, pushes, weights, items), passes=2.0 * len(pushes)
        )
        applied = await self.learner.apply(gradient, buffers=buffers, lr_scale=sum(weights) / sum(items))
        self.current = None
        self.histogram.update(staleness)
        step = Step(
            version=self.learner.version,
            loss=mean_loss(pushes),
            num_samples=sum(push.num_samples for push in pushes),
            num_items=sum(items),
            spans=[b.lease.span for b in batch],
            applied=applied,
            wait_share=self.wait_s / max(self.wait_s + self.compute_s, 1e-9),
            details={
                "staleness": {
                    "mean": sum(staleness) / len(staleness),
                    "max": max(staleness),
                    "histogram": {str(s): n for s, n in sorted(self.histogram.items())},
                },
                "pushes": self.counts.totals(),
                "accepted": self.counts.by_worker("accepted"),
                "refused": self.counts.by_worker("refused"),
            },
        )
        await self.journal.commit(step, self.state())

    def phi(self, staleness: int) -> float:
        return 1.0 / (1 + staleness) if self.algo.staleness_scaling == "inverse" else 1.0

    def state(self) -> AlgorithmState:
        """What is leased or buffered is not done: it is given out again after a restart."""
        plain: dict[str, Any] = {
            **self.leases.state(b.lease for b in self.buffer),
            "step": self.learner.version,
            "counts": dict(self.counts),
            "staleness": {str(s): n for s, n in self.histogram.items()},
        }
        return AlgorithmState(plain=plain)


class Worker:
    """Computes leased batches, pushes, and pulls now and then."""

    def __init__(self, algo: EDP, seed: int, patience_s: float) -> None:
        self.algo, self.seed, self.patience_s = algo, seed, patience_s
        self.leases: deque[tuple[int, Span]] = deque()
        self.version = -1
        self.over = False

    async def run(self, peers: Peers, learner: Learner, clock: Clock, journal: Journal) -> None:
        self.peers, self.learner, self.clock = peers, learner, clock
        self.server = peers.view.named("server")[0].name
        peers.send(self.server, Join(fingerprint=learner.fingerprint))
        sent: Delivery | None = None
        pushes, waited = 0, None
        while await self.prepared():
            waited = peers.waited_s if waited is None else waited
            number, span = self.leases.popleft()
            if sent is not None:
                await sent.wait(self.patience_s)  # its gradient lies where the next one will
            gradient = await learner.gradient([span], step=number, rank=peers.me.rank)
            encoded = await self.encode(gradient.flat, number)
            wait_s, waited = peers.waited_s - waited, peers.waited_s
            push = Push(
                lease=number,
                version=self.version,
                num_samples=gradient.num_samples,
                num_items=gradient.num_items,
                loss=gradient.loss,
                compute_s=gradient.seconds,
                wait_s=wait_s,
                gradient=encoded,
                buffers=gradient.buffers,
            )
            sent = peers.send(self.server, push)
            pushes += 1
            if pushes % self.algo.worker_update_interval == 0:
                await self.pull()

    async def encode(self, gradient: Tensor, counter: int) -> Tensor:
        if not self.algo.use_quantization:
            return gradient
        rank = self.peers.me.rank
        return await self.learner.compute(
            lambda: Int8().encode(gradient, seed=self.seed, rank=rank, counter=counter), passes=Int8.encoding_passes
        )

    async def prepared(self) -> bool:
        """Take what has come; wait while there is no lease or no weights. False when the run is over."""
        while not self.over:
            ready = bool(self.leases) and self.version >= 0
            event = await self.event(self.clock.now() if ready else self.clock.now() + self.patience_s)
            if event is None and ready:
                return True
            if event is None:
                self.give_up("a lease")
        return False

    async def pull(self) -> None:
        """Ask for the weights and wait for them."""
        self.peers.send(self.server, Pull(version=self.version))
        while not self.over and (event := await self.event(self.clock.now() + self.patience_s)) != "pull":
            if event is None:
                self.give_up("weights")

    def give_up(self, what: str) -> NoReturn:
        raise PeerLost(self.server, f"waiting for {what}", f"nothing came within {self.patience_s:g} s")

    async def event(self, until: float) -> str | None:
        """Do what the next message says and return what it was; None when nothing comes before ``until``."""
        match await self.peers.next(until, f"weights or leases from {self.server}"):
            case Received(_, Params(version=version, reason=reason, parameters=parameters, buffers=buffers)):
                if parameters is not None:
                    await self.learner.load(Weights(parameters, buffers))
                elif buffers is not None:
                    await self.learner.load_buffers(buffers)
                self.version = version
                return reason
            case Received(_, Grant(leases=numbers)):
                for i in range(0, len(numbers) - 3, 4):
                    self.leases.append((numbers[i], Span(*numbers[i + 1 : i + 4])))
                return "grant"
            case Received(_, Busy()):
                return "busy"
            case Received(_, Finish(reason=reason)):
                self.over = True
                if reason != "done":
                    raise RunFailed(reason)
                return "finish"
            case None:
                return None
            case _:
                return "other"

"""``algo=syncps``: synchronous parameter server (Li et al., OSDI'14; stragglers: Chen et al., arXiv 1604.00981).

In step t the server cuts the next global batch into a span per worker. Each worker sends the mean gradient over
its span; the server averages them, weighted by their numbers of items and in the order of the spans, makes one
optimizer step and broadcasts the weights. With ``worker_update_interval=1`` and ``polyak_alpha=1`` that equals
one process on the whole batch for any optimizer (docs/algorithms.md has the theorem and its conditions).

Weights travel every K = ``worker_update_interval`` steps, and workers blend: w <- alpha theta + (1 - alpha) w.
Between, gradients are fresh in step but up to K - 1 versions old in weights. All workers hold the same w, always;
the server keeps a copy of it where it differs from theta, for members that come later and for checkpoints.

Failure. Nobody changes weights before the server's optimizer step, which is the commit. A worker that *dies*
before its span has arrived has it done again by the others, in the same step, at the same weights. A
*straggler* (``timeout`` after the first arrival, or after the first that follows such a death) has its span dropped:
consumed and counted; it is given nothing new until it has answered, and then takes over the weights that the others
hold. A gradient that is not finite, or does not match what was asked for, is refused and counted. A worker that
joins, or comes back, is fed the weights and has a share from then on. Without the server the run ends; its
checkpoint goes on.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, NamedTuple

from smolcluster.algo._bookkeeping import Speeds, Tally, combine, detached, fault, mean_loss, strange
from smolcluster.data.order import Course, Walk, course_for, flatten, split, unflatten
from smolcluster.errors import PeerLost, Problem, RunFailed
from smolcluster.messages import Busy, Finish, Join, Update, Work
from smolcluster.ports import (
    Aggregator,
    Algorithm,
    AlgorithmState,
    Clock,
    Delivery,
    Gradient,
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

    from smolcluster.spec.run import RunSpec

MAX_EMPTY_STEPS = 10
"""So many steps in a row without a usable gradient mean that training has diverged."""
SERVER_RANK = 2**20
"""Stands for the server's rank in random number seeds: no worker has it."""


@dataclass(frozen=True, kw_only=True)
class SyncPS(Algorithm):
    """Parameters of the synchronous parameter server."""

    links: ClassVar[str] = "star"
    has_server: ClassVar[bool] = True
    takes_guests: ClassVar[bool] = True

    worker_update_interval: Annotated[int, Range(ge=1, le=10**6, unit="steps")] = 1
    """Weights travel to the workers every so many steps (K)."""
    polyak_alpha: Annotated[float, Range(gt=0, le=1)] = 1.0
    """The server's share in the workers' new weights."""
    timeout: Annotated[float | None, Range(gt=0, le=86400, unit="seconds")] = None
    """After the first gradient of a step has arrived, the others have that time; null: as long as it takes."""
    quorum: Annotated[int, Range(ge=1, le=1024, unit="workers")] = 1
    """Fewest workers whose gradients make a step when ``timeout`` is over."""
    sync_window: Annotated[int, Range(ge=1, le=10**6, unit="local steps")] = 1
    """Batches that each worker accumulates between two barriers."""
    sync_max_wait_s: Annotated[float, Range(gt=0, le=10**6, unit="seconds")] = 600.0
    """A step that is not complete after so long ends the run, naming who is missing."""
    shares: Literal["even", "speed"] = "even"
    """even: equal spans, bit-reproducible; speed: proportional to measured samples per second."""
    server_trains: bool = False
    """The server computes a share itself."""

    def problems(self, spec: RunSpec) -> Iterable[Problem]:
        num_workers = spec.cluster.size
        if self.quorum > num_workers:
            rule = f"must be <= {num_workers}, the number of workers"
            yield Problem(key="algo.quorum", value=self.quorum, rule=rule, nearest=str(num_workers))
        if self.timeout is not None and self.timeout >= self.sync_max_wait_s:
            rule = f"must be < algo.sync_max_wait_s={self.sync_max_wait_s:g}"
            yield Problem(key="algo.timeout", value=self.timeout, rule=rule, nearest=f"{self.sync_max_wait_s / 2:g}")

    @property
    def min_workers(self) -> int:
        return self.quorum

    def batches_per_step(self, num_workers: int) -> int:
        return (num_workers + self.server_trains) * self.sync_window

    def role(self, spec: RunSpec, me: Member, num_samples: int, state: AlgorithmState | None) -> Server | Worker:
        if me.role == "worker":
            return Worker(patience_s=self.sync_max_wait_s + spec.comms.timeout_s)
        return Server(self, course_for(spec, num_samples), spec.aggregator, state)


class Verdict(NamedTuple):
    """What the barrier says: go on, give up, or wait until a time; and why."""

    action: Literal["proceed", "abort", "wait"]
    until: float
    reason: str


def barrier(*, missing: int, arrived: int, began: float, first: float | None, now: float, algo: SyncPS) -> Verdict:
    """Whether a step is complete. ``missing`` spans are owed; gradients of ``arrived`` workers are usable.

    The straggler timeout runs from the ``first`` arrival, not from the beginning of the step: how long a
    gradient takes to compute and to send is not a straggler's fault.
    """
    if missing == 0:
        return Verdict("proceed", now, "all arrived")
    limit = began + algo.sync_max_wait_s
    late = limit if first is None or algo.timeout is None else min(first + algo.timeout, limit)
    if now < late:
        return Verdict("wait", late, "for all" if algo.timeout is None else "for stragglers")
    if algo.timeout is not None and arrived >= algo.quorum:
        return Verdict("proceed", now, f"straggler timeout of {algo.timeout:g} s")
    if now < limit:
        return Verdict("wait", limit, f"for a quorum of {algo.quorum}")
    return Verdict("abort", now, f"not complete after {algo.sync_max_wait_s:g} s")


@dataclass
class Round:
    """One step in progress. ``owed`` says who has which spans to send; ``orphans`` have nobody; ``own`` is the
    server's share that it has yet to compute. ``usable`` are the workers whose gradients will be averaged."""

    step: int
    began: float
    owed: dict[Span, str] = field(default_factory=dict)
    orphans: list[Span] = field(default_factory=list)
    updates: dict[Span, Update] = field(default_factory=dict)
    own: list[Work] = field(default_factory=list)
    usable: set[str] = field(default_factory=set)
    first: float | None = None


class Server:
    """Holds theta and the optimizer; the one authority on which samples are done."""

    def __init__(self, algo: SyncPS, course: Course, aggregate: Aggregator, state: AlgorithmState | None) -> None:
        self.algo, self.aggregate = algo, aggregate
        self.walk = Walk.resume(course, state.plain if state else None)
        self.step: int = state.plain["step"] if state else 0
        self.mirror = state.tensors.get("mirror") if state else None
        self.statistics: Tensor | None = None
        self.ready: dict[str, Member] = {}
        self.turned_away: set[Member] = set()
        self.outdated: set[str] = set()
        self.behind: set[str] = set()
        self.holds: dict[str, int] = {}
        self.speeds = Speeds(even=algo.shares == "even")
        self.counts = Tally(state.plain.get("counts") if state else None)
        self.empty_steps = 0

    async def run(self, peers: Peers, learner: Learner, clock: Clock, journal: Journal) -> None:
        self.peers, self.learner, self.clock, self.journal = peers, learner, clock, journal
        learner.num_steps = self.step + self.walk.remaining(self.step)
        if self.mirror is None and (self.algo.worker_update_interval > 1 or self.algo.polyak_alpha < 1):
            self.mirror = (await learner.snapshot()).parameters
        await self.assemble()
        committed, state = None, self.state()
        while span := self.walk.peek(self.step):
            round_ = await self.begin(span)
            if committed is not None:
                await journal.commit(committed, state)  # while the workers compute
            round_.began = self.clock.now()  # the time that an evaluation took is nobody's fault
            await self.collect(round_)
            committed = await self.apply(round_, span)
            state = self.state()
        if committed is not None:
            await journal.commit(committed, state)
        for member in peers.view.named("worker"):
            peers.send(member.name, Finish(reason="done"))

    # --- one step ----------------------------------------------------------------------------------------

    async def assemble(self) -> None:
        """Wait until every worker of the view is there."""
        until = self.clock.now() + self.algo.sync_max_wait_s
        while missing := [m.name for m in self.peers.view.named("worker") if m.name not in self.ready]:
            if self.clock.now() >= until:
                raise RunFailed(f"server: workers {', '.join(missing)} did not join within the time given")
            await self.next_event(until, None, f"{', '.join(missing)} to join")

    async def begin(self, span: Span) -> Round:
        """Give every worker its share of ``span``, and the weights where they are due."""
        round_ = Round(self.step, self.clock.now(), orphans=[span])
        due = set(self.ready) - self.behind if self.step % self.algo.worker_update_interval == 0 else set()
        if due:
            await self.blend_mirror()
        await self.hand_out(round_, self.trainers(), due)
        return round_

    def trainers(self) -> list[str]:
        """Who computes, in rank order; the server first where it trains too. Who owes an answer does not."""
        by_rank = sorted(self.ready.values(), key=lambda member: member.rank)
        # who has just been replaced is still in `ready`; its successor has neither joined nor weights yet
        present = [member for member in by_rank if self.peers.view.get(member.name) == member]
        workers = [member.name for member in present if member.name not in self.behind]
        return [self.peers.me.name, *workers] if self.algo.server_trains else workers

    async def hand_out(self, round_: Round, names: Sequence[str], due: set[str]) -> None:
        """Share the orphaned spans of a step among ``names``; send weights to who is ``due`` or new.

        Running statistics travel in every step: they move with every batch, also where weights do not.
        """
        if not names:
            return
        orphans, round_.orphans = round_.orphans, []
        shares: dict[str, list[Span]] = {name: [] for name in names}
        for span in orphans:
            for name, piece in zip(names, split(span, self.speeds.weights(names)), strict=True):
                if piece.size:
                    shares[name].append(piece)
                    round_.owed[piece] = name
        theta = await self.learner.snapshot() if due or self.outdated & set(names) else None
        for name in names:
            if name == self.peers.me.name:
                round_.own += [self.work(round_, shares[name], None, self.statistics, 0.0)]
                continue
            parameters, blend = self.weights_for(name, due, theta)
            if parameters is not None:
                self.holds[name] = self.learner.version
            if parameters is not None or shares[name]:
                buffers = theta.buffers if theta is not None else self.statistics
                self.peers.send(name, self.work(round_, shares[name], parameters, buffers, blend))

    def weights_for(self, name: str, due: set[str], theta: Weights | None) -> tuple[Tensor | None, float]:
        """What a worker is sent, and how it blends it: a new member takes over what all the others hold."""
        if theta is not None and name in self.outdated:
            self.outdated.discard(name)
            return (theta.parameters if self.mirror is None else self.mirror), 1.0
        return (theta.parameters, self.algo.polyak_alpha) if theta is not None and name in due else (None, 0.0)

    def work(
        self, round_: Round, spans: Sequence[Span], parameters: Tensor | None, buffers: Tensor | None, blend: float
    ) -> Work:
        return Work(
            step=round_.step,
            version=self.learner.version,
            blend=blend,
            spans=flatten(spans),
            parameters=parameters,
            buffers=buffers,
        )

    async def collect(self, round_: Round) -> None:
        """Wait for the spans of this step until the barrier says to go on."""
        while True:
            while round_.own:
                await self.train_own(round_.own.pop())
            verdict = barrier(
                missing=len(round_.owed) + len(round_.orphans),
                arrived=len(round_.usable - {self.peers.me.name}),
                began=round_.began,
                first=round_.first,
                now=self.clock.now(),
                algo=self.algo,
            )
            who = ", ".join(sorted(set(round_.owed.values()))) or "a worker"
            if verdict.action == "abort":
                raise RunFailed(f"server: step {round_.step}: {verdict.reason}; missing: {who}")
            if verdict.action == "proceed":
                break
            await self.next_event(verdict.until, round_, f"step {round_.step} of {who}")
        for span, name in round_.owed.items():
            self.counts[f"dropped/{name}"] += 1
            self.behind.add(name)
            self.journal.event("dropped", step=round_.step, peer=name, samples=span.size, reason=verdict.reason)

    async def apply(self, round_: Round, span: Span) -> Step | None:
        """Average what arrived and make the optimizer step: the commit. None where nothing usable arrived."""
        self.walk.pop(self.step)
        self.step += 1
        updates = [update for _, update in sorted(round_.updates.items()) if update.num_items]
        round_.updates.clear()
        if not updates:
            self.empty_steps += 1
            if self.empty_steps >= MAX_EMPTY_STEPS:
                raise RunFailed(
                    f"server: no usable gradient in {MAX_EMPTY_STEPS} steps up to step {round_.step}: "
                    "training has diverged (lower optim.lr, or look into events.jsonl)"
                )
            return None
        self.empty_steps = 0
        items = [update.num_items for update in updates]
        gradient, self.statistics = await self.learner.compute(
            lambda: combine(self.aggregate, updates, items, items), passes=2.0 * len(updates)
        )
        applied = await self.learner.apply(gradient, buffers=self.statistics)
        computing, waiting = sum(u.compute_s for u in updates), sum(u.wait_s for u in updates)
        return Step(
            version=self.learner.version,
            loss=mean_loss(updates),
            num_samples=sum(update.num_samples for update in updates),
            num_items=sum(items),
            spans=[part for update in updates for part in unflatten(update.spans)],
            applied=applied,
            wait_share=waiting / max(computing + waiting, 1e-9),
            details={
                "weight_version": min(update.version for update in updates),
                "workers": len(round_.usable),
                "compute_s": computing / len(updates),
                "dropped_samples": span.size - sum(update.num_samples for update in updates),
                "accepted": self.counts.by_worker("accepted"),
                "late": self.counts.by_worker("late"),
                "refused": self.counts.by_worker("refused"),
            },
        )

    # --- what comes in -----------------------------------------------------------------------------------

    async def next_event(self, until: float, round_: Round | None, waiting_for: str) -> None:
        """Take one event and do what it asks for."""
        match await self.peers.next(until, waiting_for):
            case Received(sender, Update() as update):
                await self.take(round_, sender, update)
                if round_ is not None and round_.orphans:
                    await self.hand_out(round_, self.trainers(), set())
            case Received(sender, Join() as join):
                await self.welcome(round_, sender, join)
            case ViewChanged(_, lost, joined, reason):
                for name in lost:
                    self.part(round_, name, reason)
                if round_ is not None and round_.orphans:
                    round_.first = None  # who does them again has not been late yet
                    await self.hand_out(round_, self.trainers(), set())
                for name in joined:
                    self.journal.event("member", step=self.step, peer=name, reason=reason)
            case Received(sender, message):
                self.refuse(sender.name, f"unexpected {type(message).__name__}", 0)
            case None:
                return

    async def take(self, round_: Round | None, sender: Member, update: Update) -> None:
        """File an update, or refuse it. Only spans that this sender owes in this very step are taken."""
        if round_ is None or update.step < round_.step:
            self.counts[f"late/{sender.name}"] += 1
            self.journal.event("late", step=update.step, peer=sender.name, samples=update.num_samples)
            if sender.name in self.behind:
                self.behind.discard(sender.name)
                self.outdated.add(sender.name)
            return
        spans = unflatten(update.spans)
        size = sum(span.size for span in spans)
        owed = bool(spans) and all(round_.owed.get(span) == sender.name for span in spans)
        owed = owed and len(set(spans)) == len(spans) and 3 * len(spans) == len(update.spans)
        holds = self.holds.get(sender.name, self.learner.version)
        if (update.step, update.version, update.num_samples) != (round_.step, holds, size) or not owed:
            self.refuse(sender.name, "does not match what was asked for", 0)
            return
        for span in spans:
            del round_.owed[span]
        round_.first = self.clock.now() if round_.first is None else round_.first
        if not 0 <= update.num_items <= size * self.learner.max_items:
            self.refuse(sender.name, "impossible number of items", size)
        elif reason := await self.learner.compute(lambda: fault(update, update.gradient)):
            self.refuse(sender.name, reason, size)
        else:
            self.counts[f"accepted/{sender.name}"] += 1
            self.speeds.observe(sender.name, size, update.compute_s)
            # a second part of one worker: the memory that it came in is wanted for what comes next
            round_.updates[spans[0]] = detached(update) if sender.name in round_.usable else update
            round_.usable.add(sender.name)

    def refuse(self, name: str, reason: str, samples: int) -> None:
        if self.counts.refused(name) or samples:
            self.journal.event("refused", step=self.step, peer=name, samples=samples, reason=reason)

    async def welcome(self, round_: Round | None, sender: Member, join: Join) -> None:
        """A worker is ready: from now on it has a share."""
        if join.fingerprint != self.learner.fingerprint:
            self.counts.refused(sender.name)
            if sender not in self.turned_away:
                self.turned_away.add(sender)
                reason = strange(sender)
                self.journal.event("rejected", step=self.step, peer=sender.name, reason=reason)
                self.peers.send(sender.name, Finish(reason=reason))
            return
        if self.ready.get(sender.name) == sender:
            self.refuse(sender.name, "has joined already", 0)
            return
        self.ready[sender.name] = sender
        self.outdated.add(sender.name)
        self.journal.event("joined", step=self.step, peer=sender.name, reason="ready")
        if round_ is not None and round_.orphans:
            await self.hand_out(round_, [sender.name], set())

    def part(self, round_: Round | None, name: str, reason: str) -> None:
        """A worker is gone: what it owes is done again by others."""
        self.ready.pop(name, None)
        self.outdated.discard(name)
        self.behind.discard(name)
        self.holds.pop(name, None)
        self.speeds.forget(name)
        mine = [span for span, owner in round_.owed.items() if owner == name] if round_ else []
        for span in mine:
            del round_.owed[span]  # type: ignore[union-attr]
            round_.orphans.append(span)  # type: ignore[union-attr]
        self.journal.event("lost", step=self.step, peer=name, reason=reason, samples=sum(s.size for s in mine))

    # --- details -----------------------------------------------------------------------------------------

    async def train_own(self, work: Work) -> None:
        """The server's own share (``server_trains``), computed at theta; it arrives like any other."""
        gradient = await self.learner.gradient(unflatten(work.spans), step=work.step, rank=SERVER_RANK)
        self.peers.send(self.peers.me.name, detached(answer(work, work.version, gradient, 0.0)))

    async def blend_mirror(self) -> None:
        """Do to the copy of the workers' weights what the workers are about to do to theirs."""
        if self.mirror is not None:
            before, theta = self.mirror, (await self.learner.snapshot()).parameters
            self.mirror = await self.learner.compute(lambda: before.lerp(theta, self.algo.polyak_alpha))

    def state(self) -> AlgorithmState:
        plain: dict[str, Any] = {**self.walk.state(), "step": self.step, "counts": dict(self.counts)}
        return AlgorithmState(plain=plain, tensors={} if self.mirror is None else {"mirror": self.mirror})


def answer(work: Work, version: int, gradient: Gradient, wait_s: float) -> Update:
    """What ``work`` came to, at weights of ``version``."""
    return Update(
        step=work.step,
        version=version,
        spans=work.spans,
        num_samples=gradient.num_samples,
        num_items=gradient.num_items,
        loss=gradient.loss,
        compute_s=gradient.seconds,
        wait_s=wait_s,
        gradient=gradient.flat,
        buffers=gradient.buffers,
    )


class Worker:
    """Computes what it is given at the weights that it has."""

    def __init__(self, patience_s: float) -> None:
        self.patience_s = patience_s

    async def run(self, peers: Peers, learner: Learner, clock: Clock, journal: Journal) -> None:
        server = peers.view.named("server")[0].name
        peers.send(server, Join(fingerprint=learner.fingerprint))
        sent: Delivery | None = None
        version, waited = 0, None
        while works := await self.newest(peers, clock, server):
            waited = peers.waited_s if waited is None else waited  # the wait for the start does not count
            for work in works:
                if work.parameters is not None:
                    version = work.version
                    await learner.load(Weights(work.parameters, work.buffers), blend=work.blend)
                elif work.buffers is not None:
                    await learner.load_buffers(work.buffers)
            for work in works:
                if not work.spans or work.step != works[-1].step:
                    continue
                if sent is not None:
                    await sent.wait(self.patience_s)  # its gradient lies where the next one will
                gradient = await learner.gradient(unflatten(work.spans), step=work.step, rank=peers.me.rank)
                wait_s, waited = peers.waited_s - waited, peers.waited_s
                sent = peers.send(server, answer(work, version, gradient, wait_s))
            works.clear()  # the buffers that they came in are wanted for what comes next
            del work

    async def newest(self, peers: Peers, clock: Clock, server: str) -> list[Work]:
        """Work that has come, oldest first; empty when there is no more. A straggler finds several steps here:
        it takes all weights and computes the newest step only."""
        works: list[Work] = []
        until = clock.now() + self.patience_s
        while True:
            match await peers.next(until if not works else clock.now(), f"work from {server}"):
                case Received(_, Work() as work):
                    works.append(work)
                case Received(_, Busy()):
                    until = clock.now() + self.patience_s
                case Received(_, Finish(reason=reason)):
                    if reason != "done":
                        raise RunFailed(reason)
                    return []
                case None if works:
                    return works
                case None:
                    raise PeerLost(server, "waiting for work", f"nothing came within {self.patience_s:g} s")

"""``algo=ddp``: PyTorch's DistributedDataParallel on Gloo, with its defaults. The yardstick for all the others.

Same model, same data, same global batches, same node processes; only the averaging is torch's: all-reduce of
25 MiB buckets while backward still runs (Li et al., VLDB'20, arXiv 2006.15704). Its data plane is neither
encrypted nor authenticated: for trusted networks only.

Failure. There is none of ours: when a node dies the run ends, and its checkpoint goes on.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from smolcluster.data.order import Course, Walk, course_for, split
from smolcluster.errors import Problem, RunFailed
from smolcluster.messages import Rendezvous, Report
from smolcluster.ports import (
    Algorithm,
    AlgorithmState,
    Applied,
    Clock,
    GroupLearner,
    Journal,
    Learner,
    Member,
    Peers,
    Received,
    Span,
    Step,
    ViewChanged,
)

if TYPE_CHECKING:
    from smolcluster.spec.run import RunSpec


@dataclass(frozen=True, kw_only=True)
class DDP(Algorithm):
    """No parameters."""

    links: ClassVar[str] = "full"
    has_server: ClassVar[bool] = False
    survives_workers: ClassVar[bool] = False
    averaged_by_torch: ClassVar[bool] = True

    def problems(self, spec: RunSpec) -> Iterable[Problem]:
        if spec.choices.get("comms") == "memory":
            rule = "torch.distributed needs a process per node: use comms=tcp with algo=ddp"
            yield Problem(key="comms", value="memory", rule=rule, nearest="tcp")
        for name in spec.cluster.scattered:
            rule = "algo=ddp needs one network that all workers are on: torch's sockets pass nothing on"
            yield Problem(key=f"cluster.nodes.{name}.addresses", value=name, rule=rule, nearest="algo=syncps")

    def batches_per_step(self, num_workers: int) -> int:
        return num_workers

    def role(self, spec: RunSpec, me: Member, num_samples: int, state: AlgorithmState | None) -> Replica:
        return Replica(course_for(spec, num_samples), spec.cluster.size, spec.comms.timeout_s, state)


class Replica:
    """One rank: gradient of its share, averaged by torch; every rank makes the same optimizer step."""

    def __init__(self, course: Course, world_size: int, timeout_s: float, state: AlgorithmState | None) -> None:
        self.walk = Walk.resume(course, state.plain if state else None)
        self.world_size, self.timeout_s = world_size, timeout_s
        self.step: int = state.plain["step"] if state else 0

    async def run(self, peers: Peers, learner: Learner, clock: Clock, journal: Journal) -> None:
        assert isinstance(learner, GroupLearner)
        rank = peers.me.rank
        learner.num_steps = self.step + self.walk.remaining(self.step)
        await self.meet(peers, learner, clock)
        while span := self.walk.pop(self.step):
            began = clock.now()
            share = split(span, [1.0] * self.world_size)[rank]
            # every rank must take part in every all-reduce: one without a share computes some sample, times zero
            computed = share if share.size else Span(span.epoch, span.start, span.start + 1)
            # DDP averages over ranks; scaled so, that is the mean over samples for uneven shares too
            gradient = await learner.gradient_in_group(
                [computed], step=self.step, rank=rank, scale=share.size * self.world_size / span.size
            )
            applied = await learner.apply(gradient.flat, buffers=gradient.buffers)
            self.step += 1
            report = Report(
                step=self.step,
                num_samples=share.size,
                num_items=gradient.num_items if share.size else 0,
                loss=gradient.loss,
                compute_s=gradient.seconds,
                wait_s=clock.now() - began - gradient.seconds,
            )
            if rank > 0:
                peers.send(self.first(peers), report)
            else:
                await self.commit(peers, clock, journal, span, applied, report, learner)
        await learner.leave_group()

    def first(self, peers: Peers) -> str:
        return peers.view.named("worker")[0].name

    async def meet(self, peers: Peers, learner: GroupLearner, clock: Clock) -> None:
        """Rank 0 opens the meeting point and tells the others where it is."""
        if peers.me.rank == 0:
            host, port = await learner.open_group()
            for member in peers.view.named("worker")[1:]:
                peers.send(member.name, Rendezvous(host=host, port=port))
            await learner.join_group(host, port, 0, self.world_size)
            return
        until = clock.now() + self.timeout_s * 4
        while True:
            match await peers.next(until, f"the meeting point of {self.first(peers)}"):
                case Received(_, Rendezvous(host=host, port=port)):
                    await learner.join_group(host, port, peers.me.rank, self.world_size)
                    return
                case None:
                    raise RunFailed(f"{peers.me.name}: rank 0 did not say where to meet")

    async def commit(
        self,
        peers: Peers,
        clock: Clock,
        journal: Journal,
        span: Span,
        applied: Applied,
        own: Report,
        learner: GroupLearner,
    ) -> None:
        """Rank 0 gathers the losses of a step and files it."""
        reports = [own]
        until = clock.now() + self.timeout_s * 4
        while len(reports) < self.world_size:
            match await peers.next(until, f"reports of step {own.step}"):
                case Received(_, Report(step=step) as report) if step == own.step:
                    reports.append(report)
                case ViewChanged(_, lost, _, reason) if lost:
                    raise RunFailed(f"step {own.step}: {', '.join(lost)} is gone ({reason}); algo=ddp cannot go on")
                case None:
                    raise RunFailed(f"step {own.step}: only {len(reports)} of {self.world_size} ranks reported")
        items = sum(report.num_items for report in reports)
        done = Step(
            version=learner.version,
            loss=sum(report.loss * report.num_items for report in reports) / max(items, 1),
            num_samples=sum(report.num_samples for report in reports),
            num_items=items,
            spans=[span],
            applied=applied,
            wait_share=0.0,
            details={"loopback_bytes": learner.loopback_bytes()},  # all ranks have averaged by now, none goes on yet
        )
        await journal.commit(done, self.state())

    def state(self) -> AlgorithmState:
        return AlgorithmState(plain={**self.walk.state(), "step": self.step})

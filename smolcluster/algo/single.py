"""``algo=single``: one process, no network. The reference that every synchronous algorithm must equal.

It takes the same global batches as the others (``train.batch_size`` x workers samples a step), so that
``algo=syncps`` and ``algo=single`` with otherwise equal settings give the same weights.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from smolcluster.data.order import Course, Walk, course_for
from smolcluster.errors import Problem
from smolcluster.ports import Algorithm, AlgorithmState, Clock, Journal, Learner, Member, Peers, Step

if TYPE_CHECKING:
    from smolcluster.spec.run import RunSpec


@dataclass(frozen=True, kw_only=True)
class Single(Algorithm):
    """No parameters."""

    links: ClassVar[str] = "none"
    has_server: ClassVar[bool] = False
    max_workers: ClassVar[int | None] = 1
    survives_workers: ClassVar[bool] = False

    def problems(self, spec: RunSpec) -> Iterable[Problem]:
        return ()

    def batches_per_step(self, num_workers: int) -> int:
        return num_workers

    def role(self, spec: RunSpec, me: Member, num_samples: int, state: AlgorithmState | None) -> Solo:
        return Solo(course_for(spec, num_samples), state)


class Solo:
    """theta <- step(theta, gradient of the next global batch), again and again."""

    def __init__(self, course: Course, state: AlgorithmState | None) -> None:
        self.walk = Walk.resume(course, state.plain if state else None)
        self.step = state.plain["step"] if state else 0

    async def run(self, peers: Peers, learner: Learner, clock: Clock, journal: Journal) -> None:
        learner.num_steps = self.step + self.walk.remaining(self.step)
        while span := self.walk.pop(self.step):
            gradient = await learner.gradient([span], step=self.step, rank=0)
            applied = await learner.apply(gradient.flat, buffers=gradient.buffers)
            self.step += 1
            done = Step(
                version=learner.version,
                loss=gradient.loss,
                num_samples=gradient.num_samples,
                num_items=gradient.num_items,
                spans=[span],
                applied=applied,
                wait_share=0.0,
            )
            await journal.commit(done, self.state())

    def state(self) -> AlgorithmState:
        return AlgorithmState(plain={**self.walk.state(), "step": self.step})

"""Which batches are out, to whom and under which number. Pure bookkeeping: no messages, no time."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from smolcluster.data.order import Course, Walk
from smolcluster.ports import Span


class Lease(NamedTuple):
    """A batch that ``worker`` has been given."""

    number: int
    span: Span
    worker: str


class Leases:
    """Gives out the batches of a course, each to one worker at a time, until it has been done.

    The number of a lease seeds its randomness, so a batch that is given out again keeps it.
    """

    def __init__(self, course: Course, state: Mapping[str, Any] | None) -> None:
        self._walk = Walk.resume(course, state)
        state = state or {}
        self._next: int = state.get("next_lease", 0)
        self._numbers = {Span(*span): number for number, *span in state.get("leases", ())}
        self._out: dict[int, Lease] = {}
        self._done: dict[str, int] = {}

    @property
    def exhausted(self) -> bool:
        """No batch is left, and none is out."""
        return not self._out and self._walk.peek(0) is None

    @property
    def waiting(self) -> bool:
        """Batches have come back that nobody has."""
        return bool(self._walk.backlog)

    @property
    def remaining(self) -> int:
        """Batches that have still to be given out."""
        return self._walk.remaining(0)

    def holders(self) -> list[str]:
        """The workers that have some."""
        return sorted({lease.worker for lease in self._out.values()})

    def held(self, worker: str) -> int:
        return sum(lease.worker == worker for lease in self._out.values())

    def take(self, worker: str) -> Lease | None:
        """Lease the next batch to ``worker``; None where there is none."""
        span = self._walk.pop(0)
        if span is None:
            return None
        number = self._numbers.pop(span, self._next)
        self._next = max(self._next, number + 1)
        lease = self._out[number] = Lease(number, span, worker)
        return lease

    def end(self, number: int, worker: str) -> Lease | None:
        """``worker`` has answered lease ``number``; None where that is not out to it."""
        lease = self._out.get(number)
        if lease is None or lease.worker != worker:
            return None
        self._done[worker] = max(number, self._done.get(worker, -1))
        return self._out.pop(number)

    def answered(self, number: int, worker: str) -> bool:
        """It may be that ``worker`` has answered that lease before."""
        return number <= self._done.get(worker, -1)

    def take_back(self, worker: str) -> int:
        """Whatever ``worker`` has comes first again; returns how many samples that are."""
        mine = [lease for lease in self._out.values() if lease.worker == worker]
        for lease in mine:
            del self._out[lease.number]
            self._numbers[lease.span] = lease.number
        self._walk.put_back([lease.span for lease in mine])
        return sum(lease.span.size for lease in mine)

    def forget(self, worker: str) -> None:
        """``worker`` is gone: another of its name has answered nothing."""
        self._done.pop(worker, None)

    def state(self, undone: Iterable[Lease]) -> dict[str, Any]:
        """For a checkpoint: what is out, and the ``undone`` that are not, will be given out again."""
        unfinished = sorted([*undone, *self._out.values()])
        numbers = {**{lease.span: lease.number for lease in unfinished}, **self._numbers}
        return {
            **self._walk.state([lease.span for lease in unfinished]),
            "next_lease": self._next,
            "leases": [[number, *span] for span, number in numbers.items()],
        }

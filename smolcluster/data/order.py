"""The order of samples: a function of (seed, epoch, position), whatever the number of nodes.

A run walks over the positions ``0 .. num_samples - 1`` of each epoch. One optimizer step takes the next
``global_batch`` of them (the last step of an epoch takes what is left), and the nodes share that span. So
a run can be stopped and go on with another number of nodes, and no sample is seen twice or left out.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from smolcluster.ports import Span
from smolcluster.spec.seeds import derive

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from smolcluster.spec.run import RunSpec


@lru_cache(maxsize=2)
def permutation(seed: int, epoch: int, num_samples: int) -> NDArray[np.int64]:
    """Sample ids by position, shape ``[num_samples]``: a random permutation made from (seed, epoch)."""
    import numpy as np

    return np.random.Generator(np.random.Philox(key=derive(seed, "order", epoch))).permutation(num_samples)


def sample_ids(spans: Sequence[Span], seed: int, num_samples: int) -> NDArray[np.int64]:
    """The ids of the samples in ``spans``, in order."""
    import numpy as np

    parts = [permutation(seed, span.epoch, num_samples)[span.start : span.stop] for span in spans]
    return np.concatenate(parts) if parts else np.empty(0, dtype=np.int64)


@dataclass(frozen=True, kw_only=True)
class Course:
    """How a run walks over its samples.

    ``epochs`` bounds it, and so does ``max_steps`` where it is not None; ``global_batch`` is the number of
    samples of one step over all nodes together.
    """

    num_samples: int
    global_batch: int
    epochs: int
    max_steps: int | None = None

    @property
    def steps_per_epoch(self) -> int:
        return math.ceil(self.num_samples / self.global_batch)

    @property
    def num_steps(self) -> int:
        """How many steps a run has from start to end.

        >>> Course(num_samples=100, global_batch=31, epochs=2).num_steps
        8
        """
        return self.remaining(0, Cursor())

    def take(self, cursor: Cursor, step: int) -> Span | None:
        """The span of step number ``step`` (from 0), or None where the epochs or the steps are over."""
        if cursor.epoch >= self.epochs or (self.max_steps is not None and step >= self.max_steps):
            return None
        return Span(cursor.epoch, cursor.position, min(cursor.position + self.global_batch, self.num_samples))

    def after(self, span: Span) -> Cursor:
        """Where the walk stands once ``span`` is done."""
        if span.stop >= self.num_samples:
            return Cursor(span.epoch + 1, 0)
        return Cursor(span.epoch, span.stop)

    def remaining(self, step: int, cursor: Cursor) -> int:
        """Steps still to do when ``step`` are done and ``cursor`` is the next position.

        >>> Course(num_samples=100, global_batch=31, epochs=2).remaining(5, Cursor(1, 31))
        3
        """
        if cursor.epoch >= self.epochs:
            return 0
        here = math.ceil((self.num_samples - cursor.position) / self.global_batch)
        left = here + self.steps_per_epoch * (self.epochs - cursor.epoch - 1)
        return left if self.max_steps is None else max(0, min(left, self.max_steps - step))


@dataclass(frozen=True)
class Cursor:
    """The next position that nobody has taken."""

    epoch: int = 0
    position: int = 0


@dataclass
class Walk:
    """Where a run stands in its course, and the spans that were taken before but not done (``backlog``).

    What it writes into a checkpoint any algorithm can read: with all others' spans done exactly once.
    """

    course: Course
    cursor: Cursor = field(default_factory=Cursor)
    backlog: deque[Span] = field(default_factory=deque)

    @classmethod
    def resume(cls, course: Course, plain: Mapping[str, Any] | None) -> Walk:
        """Go on where ``plain`` (from :meth:`state`) says; from the start where it is None."""
        if plain is None:
            return cls(course)
        return cls(course, Cursor(*plain["cursor"]), deque(Span(*span) for span in plain["backlog"]))

    def peek(self, step: int) -> Span | None:
        """The span of step number ``step``: what came back first, then the next of the course."""
        if self.backlog and (self.course.max_steps is None or step < self.course.max_steps):
            return self.backlog[0]
        return self.course.take(self.cursor, step)

    def pop(self, step: int) -> Span | None:
        """Like :meth:`peek`, and it counts as taken."""
        span = self.peek(step)
        if span is not None and self.backlog:
            self.backlog.popleft()
        elif span is not None:
            self.cursor = self.course.after(span)
        return span

    def put_back(self, spans: Sequence[Span]) -> None:
        """These were taken but will not be done by who took them; they come first again."""
        self.backlog.extendleft(reversed(spans))

    def remaining(self, step: int) -> int:
        """Spans still to take when ``step`` steps are done."""
        left = self.course.remaining(step, self.cursor) + len(self.backlog)
        return left if self.course.max_steps is None else max(0, min(left, self.course.max_steps - step))

    def state(self, taken: Sequence[Span] = ()) -> dict[str, Any]:
        """For a checkpoint; ``taken`` are out, and will be given out again."""
        return {
            "cursor": [self.cursor.epoch, self.cursor.position],
            "backlog": [list(span) for span in [*taken, *self.backlog]],
        }


def split(span: Span, weights: Sequence[float]) -> list[Span]:
    """``span`` cut into one piece per weight, in order, sizes proportional (largest remainder; ties: first).

    >>> split(Span(0, 0, 31), [1, 1, 1])
    [Span(epoch=0, start=0, stop=11), Span(epoch=0, start=11, stop=21), Span(epoch=0, start=21, stop=31)]
    """
    total = sum(weights)
    exact = [span.size * weight / total for weight in weights]
    sizes = [math.floor(size + 1e-9) for size in exact]
    remainders = sorted(range(len(sizes)), key=lambda i: (-(exact[i] - sizes[i]), i))
    for i in remainders[: span.size - sum(sizes)]:
        sizes[i] += 1
    pieces, start = [], span.start
    for size in sizes:
        pieces.append(Span(span.epoch, start, start + size))
        start += size
    return pieces


def flatten(spans: Sequence[Span]) -> tuple[int, ...]:
    """Spans as a message carries them."""
    return tuple(number for span in spans for number in span)


def unflatten(numbers: Sequence[int]) -> list[Span]:
    """The inverse of :func:`flatten`.

    >>> unflatten([0, 5, 9])
    [Span(epoch=0, start=5, stop=9)]
    """
    return [Span(*numbers[i : i + 3]) for i in range(0, len(numbers) - 2, 3)]


def course_for(spec: RunSpec, num_samples: int) -> Course:
    """The course of a run: one step takes ``spec.global_batch`` samples, until epochs or steps are over."""
    return Course(
        num_samples=num_samples,
        global_batch=spec.global_batch,
        epochs=spec.epochs if spec.epochs is not None else 10**9,
        max_steps=spec.train.max_steps,
    )

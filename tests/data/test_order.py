"""The order of samples: every sample of an epoch exactly once, whatever the nodes, stops and resumptions."""

from __future__ import annotations

from collections import Counter

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from smolcluster.data.order import Course, Cursor, Walk, flatten, permutation, sample_ids, split, unflatten
from smolcluster.ports import Span

sizes = st.integers(1, 200)


@given(sizes, sizes, st.integers(1, 4))
def test_a_course_covers_every_epoch(num_samples: int, batch: int, epochs: int) -> None:
    walk = Walk(Course(num_samples=num_samples, global_batch=batch, epochs=epochs))
    expected, spans = walk.remaining(0), []
    while span := walk.pop(len(spans)):
        spans.append(span)
        assert walk.remaining(len(spans)) == expected - len(spans)
    assert len(spans) == expected == walk.course.num_steps
    seen = Counter((s.epoch, p) for s in spans for p in range(s.start, s.stop))
    assert seen == Counter((e, p) for e in range(epochs) for p in range(num_samples))


@given(sizes, sizes, sizes, st.integers(0, 20), st.data())
def test_resuming_with_another_batch_size(
    num_samples: int, first: int, second: int, stop: int, data: st.DataObject
) -> None:
    walk = Walk(Course(num_samples=num_samples, global_batch=first, epochs=2))
    done = [span for step in range(stop) if (span := walk.pop(step))]
    lost = data.draw(st.integers(0, len(done)))
    done, unfinished = done[: len(done) - lost], done[len(done) - lost :]
    again = Walk.resume(Course(num_samples=num_samples, global_batch=second, epochs=2), walk.state(unfinished))
    while span := again.pop(0):
        done.append(span)
    seen = Counter((s.epoch, p) for s in done for p in range(s.start, s.stop))
    assert seen == Counter((e, p) for e in range(2) for p in range(num_samples))


def test_steps_bound_a_run() -> None:
    walk = Walk(Course(num_samples=100, global_batch=10, epochs=10**9, max_steps=3))
    assert [walk.pop(step) is not None for step in range(5)] == [True, True, True, False, False]


@given(st.integers(0, 500), st.lists(st.floats(0.01, 100), min_size=1, max_size=12))
def test_split(size: int, weights: list[float]) -> None:
    span = Span(1, 7, 7 + size)
    pieces = split(span, weights)
    assert [p.start for p in pieces] == [7, *(p.stop for p in pieces[:-1])]
    assert pieces[-1].stop == span.stop
    for piece, weight in zip(pieces, weights, strict=True):
        assert abs(piece.size - size * weight / sum(weights)) < 1


def test_even_shares_differ_by_one_at_most() -> None:
    assert [p.size for p in split(Span(0, 0, 31), [1, 1, 1])] == [11, 10, 10]
    assert [p.size for p in split(Span(0, 0, 2), [1, 1, 1])] == [1, 1, 0], "fewer samples than nodes"


def test_order_is_a_function_of_seed_and_epoch() -> None:
    assert np.array_equal(permutation(1, 0, 50), permutation(1, 0, 50))
    assert not np.array_equal(permutation(1, 0, 50), permutation(1, 1, 50))
    assert not np.array_equal(permutation(1, 0, 50), permutation(2, 0, 50))
    assert sorted(permutation(3, 2, 50)) == list(range(50))
    ids = sample_ids([Span(0, 0, 20), Span(0, 20, 50)], 1, 50)
    assert np.array_equal(ids, permutation(1, 0, 50))


def test_golden_order() -> None:
    """Pinned: a change of the order changes every run there has ever been."""
    assert permutation(42, 0, 10).tolist() == [9, 1, 6, 2, 5, 3, 7, 4, 8, 0]


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 99), st.integers(0, 99))))
def test_spans_travel(numbers: list[tuple[int, int, int]]) -> None:
    spans = [Span(*n) for n in numbers]
    assert unflatten(flatten(spans)) == spans


def test_cursor_after_the_last_epoch() -> None:
    course = Course(num_samples=10, global_batch=4, epochs=1)
    assert course.take(Cursor(1, 0), 0) is None
    assert course.remaining(0, Cursor(1, 0)) == 0

"""What conformance suites of several interfaces may use."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.comms.cluster import descriptors, native_threads


@pytest.fixture
def nothing_left(no_thread_left: None) -> Iterator[None]:
    """After the test there is no new thread (Python's or ZeroMQ's), no new socket and no new pipe."""
    before = descriptors()
    yield
    left = descriptors() - before
    assert not left, f"descriptors left behind: {left}"
    assert not native_threads()

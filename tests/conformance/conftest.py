"""What conformance suites of several interfaces may use."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from tests.comms.cluster import descriptors, native_threads


@pytest.fixture
def nothing_left(no_thread_left: None) -> Iterator[None]:
    """After the test there is no new thread (Python's or ZeroMQ's), no new socket and no new pipe."""
    before, native = descriptors(), native_threads()
    yield
    until = time.monotonic() + 5
    while time.monotonic() < until and (native_threads() - native or descriptors() - before):
        time.sleep(0.01)  # ZeroMQ's threads end a moment after their context
    left = descriptors() - before
    assert not left, f"descriptors left behind: {left}"
    left = native_threads() - native
    assert not left, f"threads of ZeroMQ left behind: {left}"

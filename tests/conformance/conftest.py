"""After each test of a transport nothing is left: no thread (ours or ZeroMQ's), no socket, no pipe."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.comms.cluster import descriptors, native_threads


@pytest.fixture(autouse=True)
def nothing_left(no_thread_left: None) -> Iterator[None]:
    before = descriptors()
    yield
    left = descriptors() - before
    assert not left, f"descriptors left behind: {left}"
    assert not native_threads()

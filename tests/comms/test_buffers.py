"""Receive buffers: lent out, back when the last tensor is gone, never more than the limit, from any thread."""

from __future__ import annotations

import gc
import random
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch

from smolcluster.comms.buffers import BufferPool, Layout, as_bytes, as_tensor, verify
from smolcluster.comms.wire import TensorSpec
from smolcluster.errors import PeerProtocolError

LAYOUT = Layout("float32", 1000)


def address(array: object) -> int:
    return int(np.asarray(array).__array_interface__["data"][0])


def test_at_most_so_many_and_made_when_first_needed() -> None:
    pool = BufferPool(LAYOUT, 2)
    first, second = pool.take(0.0), pool.take(0.0)
    assert first is not None
    assert second is not None
    assert address(first) != address(second)
    assert (first.dtype, first.size) == (np.float32, 1000)
    began = time.monotonic()
    assert pool.take(0.05) is None
    assert 0.04 < time.monotonic() - began < 2.0


HOLDERS: dict[str, Callable[[torch.Tensor], Any]] = {
    "tensor": lambda tensor: tensor,
    "view": lambda tensor: tensor.view(10, 100)[3],
    "numpy": lambda tensor: tensor.numpy(),
    "bytes": as_bytes,
    "slice": lambda tensor: tensor.detach()[10:20],
}


@pytest.mark.parametrize("hold", HOLDERS)
def test_lent_memory_comes_back_only_when_the_last_that_uses_it_is_gone(hold: str) -> None:
    pool = BufferPool(LAYOUT, 1)
    array = pool.take(0.0)
    assert array is not None
    where = address(array)
    held = [HOLDERS[hold](as_tensor(array).fill_(3))]
    del array
    gc.collect()
    assert pool.take(0.0) is None, f"{hold} still uses it"
    held.clear()
    gc.collect()
    again = pool.take(0.0)
    assert again is not None
    assert address(again) == where


def test_who_waits_gets_what_another_thread_gives_back() -> None:
    pool = BufferPool(LAYOUT, 1)
    lent = [pool.take(0.0)]
    with ThreadPoolExecutor(1) as other:
        waiting = other.submit(pool.take, 10.0)
        lent.clear()
        assert waiting.result(10.0) is not None


def test_concurrent_use_lends_nothing_twice() -> None:
    pool = BufferPool(LAYOUT, 3)
    problems: list[str] = []
    most, lock, lent = 0, threading.Lock(), 0

    def use(seed: int) -> int:
        nonlocal most, lent
        rng, taken = random.Random(seed), 0
        for number in range(300):
            array = pool.take(5.0)
            if array is None:
                problems.append(f"thread {seed} waited in vain")
                return taken
            with lock:
                lent += 1
                most = max(most, lent)
            tensor = as_tensor(array)
            mark = float(1000 * seed + number)
            tensor.fill_(mark)
            kept = [tensor[rng.randrange(900) :], tensor.view(-1)]
            del array, tensor
            rng.shuffle(kept)
            if not all(bool((part == mark).all()) for part in kept):
                problems.append(f"thread {seed}: somebody else has written into number {number}")
            with lock:
                lent -= 1
            kept.clear()
            taken += 1
        return taken

    with ThreadPoolExecutor(6) as threads:
        assert list(threads.map(use, range(6))) == [300] * 6
    assert not problems
    assert most <= 3


def test_verify_compares_with_what_was_agreed() -> None:
    layouts = {"gradient": LAYOUT, "encoded": Layout("uint8", 300, dense_bytes=4000)}
    assert verify(TensorSpec("gradient", "float32", 1000), layouts) is LAYOUT
    for spec, reason, text in (
        (TensorSpec("gradients", "float32", 1000), "unknown layout", r"known: \['encoded', 'gradient'\]"),
        (TensorSpec("gradient", "float32", 999), "wrong shape", r"must be float32\[1000\], got float32\[999\]"),
        (TensorSpec("gradient", "float64", 1000), "wrong shape", r"got float64\[1000\]"),
    ):
        with pytest.raises(PeerProtocolError, match=text) as caught:
            verify(spec, layouts)
        assert (caught.value.reason, caught.value.fatal) == (reason, False)


def test_layout_knows_its_bytes_and_what_compression_saves() -> None:
    assert (Layout("float64", 7).num_bytes, LAYOUT.saved_bytes) == (56, 0)
    assert Layout("uint8", 300, dense_bytes=4000).saved_bytes == 3700


def test_as_bytes_does_not_copy() -> None:
    tensor = torch.arange(4, dtype=torch.float32)
    data = as_bytes(tensor)
    tensor[0] = 7
    assert np.frombuffer(data, dtype=np.float32)[0] == 7
    assert data.nbytes == 16

"""Pipes as streams: by the event loop where it can, by threads where it cannot; both ways do the same."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Awaitable, Callable

import pytest

from smolcluster.cluster import pipes

pytestmark = pytest.mark.usefixtures("no_thread_left")
WAYS = ["by the event loop", "by threads"]


async def reader_of(descriptor: int, way: str) -> asyncio.StreamReader:
    return pipes.threaded_reader(descriptor) if way == "by threads" else await pipes.pipe_reader(descriptor)


async def writer_of(descriptor: int, way: str) -> asyncio.StreamWriter:
    return pipes.threaded_writer(descriptor) if way == "by threads" else await pipes.pipe_writer(descriptor)


def run(work: Callable[[], Awaitable[None]]) -> None:
    async def within() -> None:
        await asyncio.wait_for(work(), 20)

    asyncio.run(within())


@pytest.mark.parametrize("way", WAYS)
def test_what_is_written_is_read_to_the_end(way: str) -> None:
    async def work() -> None:
        read, write = os.pipe()
        reader, writer = await reader_of(read, way), await writer_of(write, way)
        data = os.urandom(3_000_000)

        async def send() -> None:
            for start in range(0, len(data), 70_000):
                writer.write(data[start : start + 70_000])
                await writer.drain()
            writer.write(b"\nlast\n")
            writer.close()
            assert writer.is_closing()

        sending = asyncio.create_task(send())
        assert await reader.readexactly(len(data)) == data
        assert [await reader.readline() for _ in range(3)] == [b"\n", b"last\n", b""]
        await sending

    run(work)


@pytest.mark.parametrize("way", WAYS)
def test_who_writes_to_nobody_is_told_or_ignored_and_never_hangs(way: str) -> None:
    async def work() -> None:
        read, write = os.pipe()
        writer = await writer_of(write, way)
        os.close(read)
        with pytest.raises(ConnectionError):
            for _ in range(1000):
                writer.write(b"x" * 10_000)
                await writer.drain()
                await asyncio.sleep(0)
        writer.close()

    run(work)


def test_a_full_pipe_holds_up_the_writer() -> None:
    async def work() -> None:
        read, write = os.pipe()
        writer = pipes.threaded_writer(write)
        writer.write(b"x" * (pipes.HIGH_WATER_BYTES + 200_000))
        drained = asyncio.create_task(writer.drain())  # type: ignore[arg-type]
        await asyncio.sleep(0)
        assert not drained.done(), "a pipe takes 64 KiB, and nobody reads"
        taken = 0
        while taken < pipes.HIGH_WATER_BYTES:
            taken += len(await asyncio.to_thread(os.read, read, 1 << 16))
        await drained
        writer.close()
        while await asyncio.to_thread(os.read, read, 1 << 16):
            continue
        os.close(read)

    run(work)


def test_who_does_not_read_is_not_read_to() -> None:
    """What is unread stays in the pipe, so that the process at its other end is held up, and nothing piles up here."""

    async def work() -> None:
        read, write = os.pipe()
        reader = pipes.threaded_reader(read, limit=1 << 16)
        sent, stop = [0], threading.Event()

        def send() -> None:
            while sent[0] < 1 << 21:
                sent[0] += os.write(write, b"x" * 4096)
            os.close(write)
            stop.set()

        thread = threading.Thread(target=send)
        thread.start()
        until = asyncio.get_running_loop().time() + 10
        before = -1
        while sent[0] != before and asyncio.get_running_loop().time() < until:  # until nothing moves any more
            before = sent[0]
            await asyncio.sleep(0.2)
        assert sent[0] < 1 << 20, "half of it would not fit into the pipe and the reader's buffer"
        assert len(await reader.read()) == 1 << 21
        assert await asyncio.to_thread(stop.wait, 10)
        thread.join()

    run(work)

"""The ends of pipes as streams of the event loop. That of Windows cannot wait for a plain pipe: there, threads do."""

from __future__ import annotations

import asyncio
import os
import queue
import sys
import threading

MAX_BUFFERED_BYTES = 16 << 20
"""What is read ahead at most, and so the longest line."""
PIECE_BYTES = 1 << 16
HIGH_WATER_BYTES = 1 << 20
"""A writer that has so much to write still is full: ``drain`` waits."""


async def pipe_writer(descriptor: int) -> asyncio.StreamWriter:
    """The writing end of a pipe, in the event loop."""
    if sys.platform == "win32":
        return threaded_writer(descriptor)
    loop = asyncio.get_running_loop()
    transport, protocol = await loop.connect_write_pipe(
        lambda: asyncio.streams.FlowControlMixin(loop=loop), os.fdopen(descriptor, "wb", buffering=0)
    )
    return asyncio.StreamWriter(transport, protocol, None, loop)


async def pipe_reader(descriptor: int) -> asyncio.StreamReader:
    """The reading end of a pipe, in the event loop."""
    if sys.platform == "win32":
        return threaded_reader(descriptor)
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader(limit=MAX_BUFFERED_BYTES, loop=loop)
    pipe = os.fdopen(descriptor, "rb", buffering=0)
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader, loop=loop), pipe)
    return reader


def threaded_reader(descriptor: int, limit: int = MAX_BUFFERED_BYTES) -> asyncio.StreamReader:
    """The same by a thread that reads, until the other end is closed. It waits while too much is unread."""
    loop = asyncio.get_running_loop()
    reader, gate = asyncio.StreamReader(limit=limit, loop=loop), _Gate()
    reader.set_transport(gate)

    def read() -> None:
        data = b"x"
        while data:
            gate.open.wait()
            try:
                data = os.read(descriptor, PIECE_BYTES)
            except OSError:
                data = b""
            fed = threading.Event()
            try:
                loop.call_soon_threadsafe(_feed, reader, data, fed)
            except RuntimeError:  # the loop has ended: nobody reads any more
                break
            while not fed.wait(0.5) and not loop.is_closed():
                pass
        os.close(descriptor)

    threading.Thread(target=read, name="reading a pipe", daemon=True).start()
    return reader


def _feed(reader: asyncio.StreamReader, data: bytes, fed: threading.Event) -> None:
    if data:
        reader.feed_data(data)
    else:
        reader.feed_eof()
    fed.set()


class _Gate(asyncio.ReadTransport):
    """What a stream reader holds on to when it has too much."""

    def __init__(self) -> None:
        super().__init__()
        self.open = threading.Event()
        self.open.set()

    def pause_reading(self) -> None:
        self.open.clear()

    def resume_reading(self) -> None:
        self.open.set()


def threaded_writer(descriptor: int) -> asyncio.StreamWriter:
    """The same by a thread that writes what is queued, until it is closed or the other end is."""
    loop = asyncio.get_running_loop()
    protocol = asyncio.streams.FlowControlMixin(loop=loop)
    return asyncio.StreamWriter(_Writing(descriptor, protocol, loop), protocol, None, loop)


class _Writing(asyncio.WriteTransport):
    """Takes what is to be written, and tells the protocol when that is too much."""

    def __init__(
        self, descriptor: int, protocol: asyncio.streams.FlowControlMixin, loop: asyncio.AbstractEventLoop
    ) -> None:
        super().__init__()
        self._descriptor, self._protocol, self._loop = descriptor, protocol, loop
        self._queue: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._pending, self._closing, self._full = 0, False, False
        threading.Thread(target=self._work, name="writing a pipe", daemon=True).start()

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if self._closing:
            return
        self._pending += len(data)
        for start in range(0, len(data), PIECE_BYTES):
            self._queue.put(bytes(data[start : start + PIECE_BYTES]))
        if self._pending > HIGH_WATER_BYTES and not self._full:
            self._full = True
            self._protocol.pause_writing()

    def is_closing(self) -> bool:
        return self._closing

    def close(self) -> None:
        if not self._closing:
            self._closing = True
            self._queue.put(None)

    abort = close

    def _work(self) -> None:
        broken = False
        while (data := self._queue.get()) is not None:
            view = memoryview(data)
            while view and not broken:
                try:
                    view = view[os.write(self._descriptor, view) :]
                except OSError:  # nobody reads any more: what still comes is for nobody
                    broken = True
            try:
                self._loop.call_soon_threadsafe(self._written, len(data), broken)
            except RuntimeError:  # the loop has ended
                break
        os.close(self._descriptor)

    def _written(self, count: int, broken: bool) -> None:
        self._pending -= count
        if self._full and self._pending <= HIGH_WATER_BYTES // 2:
            self._full = False
            self._protocol.resume_writing()
        if broken and not self._closing:
            self.close()
            self._protocol.connection_lost(BrokenPipeError())

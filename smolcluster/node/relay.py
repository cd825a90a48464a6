"""Passing bytes on between two networks: for nodes that can reach each other only through this one.

What is passed on is encrypted from end to end where the run is; nobody here reads it. A relay leads to one address
only, so that it opens no way that its node does not know of.
"""

from __future__ import annotations

import asyncio
import contextlib

CHUNK_BYTES = 1 << 18
MAX_CONNECTIONS = 256
"""Connections at the same time; more are refused."""
DIAL_S = 5.0


class Relay:
    """Listens on a port of its own and connects whoever comes with one target, once that is known."""

    def __init__(self) -> None:
        self.target: tuple[str, int] | None = None
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def open(self, host: str) -> int:
        """Begin to listen; returns the port."""
        self._server = await asyncio.start_server(self._accept, host or None, 0, limit=CHUNK_BYTES)
        return int(self._server.sockets[0].getsockname()[1])

    async def close(self) -> None:
        if self._server is not None:
            self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        if self.target is None or len(self._tasks) >= MAX_CONNECTIONS:
            writer.close()
            return
        self._tasks.add(task)
        try:
            await self._connect(self.target, reader, writer)
        finally:
            self._tasks.discard(task)
            writer.close()

    async def _connect(
        self, target: tuple[str, int], reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        try:
            async with asyncio.timeout(DIAL_S):
                there, back = await asyncio.open_connection(*target, limit=CHUNK_BYTES)
        except OSError:
            return  # who dialled sees its connection end, and dials again
        try:
            ways = [asyncio.create_task(_pass_on(reader, back)), asyncio.create_task(_pass_on(there, writer))]
            try:
                await asyncio.gather(*ways)
            finally:
                for way in ways:
                    way.cancel()
        finally:
            back.close()


async def _pass_on(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
    """All bytes of one direction; a slow receiver holds up the sender, and nothing piles up."""
    with contextlib.suppress(OSError):
        while data := await source.read(CHUNK_BYTES):
            sink.write(data)
            await sink.drain()
        if sink.can_write_eof():
            sink.write_eof()

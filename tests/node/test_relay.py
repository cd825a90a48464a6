"""Bytes that are passed on between networks."""

from __future__ import annotations

import asyncio

import pytest

from smolcluster.node import relay as module
from smolcluster.node.relay import Relay


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(1 << 16):
        writer.write(data)
        await writer.drain()
    writer.write(b"the end")
    writer.close()


async def dial(port: int) -> bytes:
    """Connect, and read to the end."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        return await reader.read()
    finally:
        writer.close()


def test_all_bytes_of_both_directions_arrive_and_so_does_the_end() -> None:
    async def talk() -> bytes:
        server = await asyncio.start_server(echo, "127.0.0.1", 0)
        relay = Relay()
        port = await relay.open("127.0.0.1")
        assert await dial(port) == b"", "its target is not known yet"
        relay.target = server.sockets[0].getsockname()[:2]
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        sending = asyncio.create_task(_send(writer, bytes(range(256)) * 40_000))
        answer = await reader.read(-1)
        await sending
        writer.close()
        await relay.close()
        server.close()
        return answer

    answer = asyncio.run(asyncio.wait_for(talk(), 20))
    assert answer == bytes(range(256)) * 40_000 + b"the end"


async def _send(writer: asyncio.StreamWriter, data: bytes) -> None:
    writer.write(data)
    await writer.drain()
    writer.write_eof()


def test_a_target_that_is_not_there_and_too_many_ends_the_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    async def talk() -> None:
        relay = Relay()
        port = await relay.open("127.0.0.1")
        relay.target = ("127.0.0.1", 1)
        assert await dial(port) == b""
        server = await asyncio.start_server(echo, "127.0.0.1", 0)
        relay.target = server.sockets[0].getsockname()[:2]
        monkeypatch.setattr(module, "MAX_CONNECTIONS", 0)
        assert await dial(port) == b""
        await relay.close()
        server.close()

    asyncio.run(asyncio.wait_for(talk(), 20))

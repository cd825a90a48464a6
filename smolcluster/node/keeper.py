"""A machine that cannot be reached dials out: it joins a run and starts processes for it.

``python -m smolcluster join=<word>`` connects to the run's gate over TLS, makes sure by the pin in the word that it is
the right one, shows its one-time token, and from then on does for the launcher what an SSH server does elsewhere: it
starts processes, passes their streams on, and ends them. When the connection ends, so do they; a connection on which
nothing comes for :data:`SILENT_S` has ended.

A machine of a detached run joins in the same way, without anybody typing there: ``python -m smolcluster.node.keeper``
is started over SSH, is given its word on standard input, and goes on when that SSH connection is closed.

Frames: a kind (1 byte), a channel (4 bytes), a length (4 bytes), and so many bytes. A channel is one process.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import hmac
import json
import os
import ssl
import struct
import sys
from collections.abc import Callable, Mapping
from enum import IntEnum
from typing import Any, NamedTuple

from smolcluster.errors import RunFailed, SmolclusterError
from smolcluster.node.control import Events, split_streams

HEADER = struct.Struct("!BII")
MAX_PAYLOAD = 1 << 20
"""Bytes of a frame's payload at most."""
MAX_LINE = 1 << 16
"""Bytes of a line of the greeting at most."""
MAX_QUEUED = 16
"""Frames of input that a process has not taken yet; then the connection waits."""
GREETING_S = 20.0
LEAVE_S = 15.0
"""After the connection has ended, processes have that time to end by themselves."""
PING_S = 5.0
"""How often each end says that it is there."""
SILENT_S = 60.0
"""A connection on which nothing has come for so long is dead, though nobody has said so (a cable, a power cut)."""


class Kind(IntEnum):
    """What a frame is. The launcher sends the first four, the keeper the next three, and both send pings."""

    START = 1
    INPUT = 2
    END_OF_INPUT = 3
    KILL = 4
    OUTPUT = 5
    ERRORS = 6
    EXIT = 7
    PING = 8


class Frame(NamedTuple):
    kind: Kind
    channel: int
    payload: bytes


def pack(kind: Kind, channel: int, payload: bytes = b"") -> bytes:
    return HEADER.pack(kind, channel, len(payload)) + payload


async def read_frame(reader: asyncio.StreamReader) -> Frame | None:
    """The next frame; None at the end, and after :data:`SILENT_S` without one. ValueError where what comes is none."""
    try:
        async with asyncio.timeout(SILENT_S):
            kind, channel, length = HEADER.unpack(await reader.readexactly(HEADER.size))
            if length > MAX_PAYLOAD:
                raise ValueError(f"a frame of {length} bytes")
            return Frame(Kind(kind), channel, await reader.readexactly(length))
    except (asyncio.IncompleteReadError, OSError):  # TimeoutError is an OSError
        return None


async def keep_pinging(writer: asyncio.StreamWriter) -> None:
    """Say every now and then that this end is there; what the other end does not take is not piled up."""
    with contextlib.suppress(OSError):
        while True:
            writer.write(pack(Kind.PING, 0))
            await writer.drain()
            await asyncio.sleep(PING_S)


class Invitation(NamedTuple):
    """What a machine needs to join: where, as whom, with which secret, and how to know the right gate."""

    host: str
    port: int
    name: str
    token: str
    pin: str
    """First 32 hexadecimal digits of the sha256 of the gate's certificate."""

    @property
    def word(self) -> str:
        """One word for a command line.

        >>> Invitation.parse(Invitation("10.0.0.1", 4000, "mini2", "t0ken", "ab" * 16).word).name
        'mini2'
        """
        return f"{self.host}:{self.port}/{self.name}/{self.token}/{self.pin}"

    @classmethod
    def parse(cls, word: str) -> Invitation:
        """ValueError where it is none."""
        place, name, token, pin = word.split("/")
        host, _, port = place.rpartition(":")
        if not host or not name or not token or len(pin) != 32:
            raise ValueError("no invitation")
        return cls(host.strip("[]"), int(port), name, token, pin)


def pin_of(certificate: bytes) -> str:
    """The pin of a certificate in DER form."""
    return hashlib.sha256(certificate).hexdigest()[:32]


class Keeper:
    """Serves one launcher over one connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer
        self._processes: dict[int, asyncio.subprocess.Process] = {}
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._inputs: dict[int, asyncio.Queue[bytes]] = {}

    async def serve(self) -> None:
        """Until the connection ends; then nothing that was started here is left."""
        pinging = asyncio.create_task(keep_pinging(self._writer), name="pings")
        try:
            while frame := await read_frame(self._reader):
                await self._take(frame)
        finally:
            pinging.cancel()
            ends = [asyncio.create_task(queue.put(b"")) for queue in self._inputs.values()]
            if self._tasks:
                await asyncio.wait(self._tasks.values(), timeout=LEAVE_S)
            for end in ends:
                end.cancel()
            for process in self._processes.values():
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
            if self._tasks:
                await asyncio.wait(self._tasks.values())
            self._writer.close()

    async def _take(self, frame: Frame) -> None:
        if frame.kind is Kind.START:
            self._inputs[frame.channel] = asyncio.Queue(MAX_QUEUED)
            task = asyncio.create_task(self._run(frame.channel, json.loads(frame.payload)))
            self._tasks[frame.channel] = task
        elif frame.kind in (Kind.INPUT, Kind.END_OF_INPUT) and frame.channel in self._inputs:
            await self._inputs[frame.channel].put(frame.payload)  # an empty one is the end
        elif frame.kind is Kind.KILL and frame.channel in self._processes:
            with contextlib.suppress(ProcessLookupError):
                self._processes[frame.channel].kill()

    async def _run(self, channel: int, order: Mapping[str, Any]) -> None:
        """One process, from its start to its end."""
        code, said = 127, ""
        try:
            process = await asyncio.create_subprocess_exec(
                *order["argv"],
                cwd=None if order.get("directory") is None else os.path.expanduser(order["directory"]),
                env={**os.environ, **order.get("environment", {})},
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
            )
        except OSError as error:
            said = f"{order['argv'][0]}: {error.strerror or error}"
            await self._send(Kind.ERRORS, channel, said.encode())
        else:
            self._processes[channel] = process
            assert process.stdout is not None
            assert process.stderr is not None
            feeding = asyncio.create_task(self._feed(channel, process))
            await asyncio.gather(
                self._pass_on(Kind.OUTPUT, channel, process.stdout), self._pass_on(Kind.ERRORS, channel, process.stderr)
            )
            code = await process.wait()
            feeding.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await feeding
            del self._processes[channel]
        finally:
            queue = self._inputs.pop(channel)
            while not queue.empty():  # whoever waits for room may go on
                queue.get_nowait()
            self._tasks.pop(channel, None)
        await self._send(Kind.EXIT, channel, json.dumps({"code": code}).encode())

    async def _feed(self, channel: int, process: asyncio.subprocess.Process) -> None:
        assert process.stdin is not None
        queue, deaf = self._inputs[channel], False
        while data := await queue.get():
            if not deaf:
                try:
                    process.stdin.write(data)
                    await process.stdin.drain()
                except OSError:  # it does not read any more: what still comes is for nobody
                    deaf = True
        process.stdin.close()

    async def _pass_on(self, kind: Kind, channel: int, stream: asyncio.StreamReader) -> None:
        while data := await stream.read(1 << 16):
            await self._send(kind, channel, data)

    async def _send(self, kind: Kind, channel: int, payload: bytes) -> None:
        with contextlib.suppress(ConnectionError):
            self._writer.write(pack(kind, channel, payload))
            await self._writer.drain()


async def join(invitation: Invitation, joined: Callable[[], None] = lambda: None) -> None:
    """Join, call ``joined``, and serve until the run is over. RunFailed says why that is not possible."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE  # the pin says more than a chain would
    where = f"{invitation.host}:{invitation.port}"
    try:
        async with asyncio.timeout(GREETING_S):
            reader, writer = await asyncio.open_connection(
                invitation.host, invitation.port, ssl=context, limit=MAX_PAYLOAD
            )
            secured: ssl.SSLObject = writer.get_extra_info("ssl_object")
            certificate = secured.getpeercert(binary_form=True) or b""
            if not hmac.compare_digest(pin_of(certificate), invitation.pin):
                writer.close()
                raise RunFailed(f"{where} is not the run that this invitation is for: its certificate is another one")
            about = {"name": invitation.name, "token": invitation.token, "python": sys.executable, "system": os.name}
            writer.write(json.dumps(about).encode() + b"\n")
            await writer.drain()
            answer = json.loads(await reader.readline() or b"{}")
    except (OSError, ValueError) as error:  # TimeoutError is an OSError
        raise RunFailed(f"{where} cannot be joined: {error or type(error).__name__}") from None
    if "welcome" not in answer:
        writer.close()
        raise RunFailed(f"{where} refuses: {answer.get('refused', 'it has ended')}")
    joined()
    await Keeper(reader, writer).serve()


def main() -> None:
    """Join with the word in the JSON line on standard input, say hello, and go on without whoever has started this."""
    commands, events = split_streams()
    with os.fdopen(commands, "rb") as lines:
        line = lines.readline()
    if not line.endswith(b"\n"):
        return  # whoever has started this was gone before saying what for
    order, report = json.loads(line), Events(events)

    def joined() -> None:
        report("hello", pid=os.getpid())
        report.close()
        stay(order["log"])

    try:
        asyncio.run(join(Invitation.parse(order["word"]), joined))
    except SmolclusterError as error:
        sys.exit(str(error))


def stay(log: str) -> None:
    """Be a process of nobody's session, whose words go to the file ``log``: it outlives whoever has started it."""
    os.makedirs(os.path.dirname(log), exist_ok=True)
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    for stream in (1, 2):
        os.dup2(descriptor, stream)
    os.close(descriptor)
    if hasattr(os, "setsid"):
        with contextlib.suppress(PermissionError):  # it leads a session of its own already
            os.setsid()


if __name__ == "__main__":
    main()

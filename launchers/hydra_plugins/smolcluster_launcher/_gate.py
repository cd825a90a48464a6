"""Machines that dial in: a gate that they join through, and the same uses of them as of those reached by SSH.

The gate listens with TLS under a certificate of the run. A machine shows the one-time token that was made for its
name and printed with a join command; who has none is cut. What goes on over its connection is in
``smolcluster.node.keeper``.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import itertools
import json
import secrets
import socket
import ssl
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from hydra_plugins.smolcluster_launcher._process import KILL_S
from hydra_plugins.smolcluster_launcher._reached import Done, HostFailed, OnEnd

from smolcluster.cluster.pipes import pipe_reader, pipe_writer
from smolcluster.comms.security import Authority
from smolcluster.node.keeper import GREETING_S, MAX_LINE, Invitation, Kind, keep_pinging, pack, pin_of, read_frame

CHUNK_BYTES = 1 << 16


class Gate:
    """Where machines join. One for a run; it knows who is expected."""

    def __init__(self, run: str) -> None:
        self._authority = Authority(run)
        self._tokens: dict[str, str] = {}
        self._machines: dict[str, DialedIn] = {}
        self._server: asyncio.Server | None = None
        self._pin, self.port = "", 0

    async def open(self, port: int = 0) -> None:
        """Begin to listen, on all addresses of this machine."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        credentials = self._authority.issue("gate", 0)
        with tempfile.TemporaryDirectory() as folder:  # ssl reads certificates from files only
            files = [Path(folder, name) for name in ("certificate", "key")]
            for file, text in zip(files, (credentials.certificate, credentials.key), strict=True):
                file.touch(0o600)
                file.write_text(text)
            context.load_cert_chain(str(files[0]), str(files[1]), password=credentials.passphrase)
        self._pin = pin_of(ssl.PEM_cert_to_DER_cert(credentials.certificate))
        listener = listening(port)
        self.port = int(listener.getsockname()[1])
        self._server = await asyncio.start_server(
            self._greet, sock=listener, ssl=context, limit=MAX_LINE, ssl_handshake_timeout=GREETING_S
        )

    def invite(self, name: str, host: str) -> Invitation:
        """A new token for ``name``; the one before is worth nothing any more."""
        self._tokens[name] = secrets.token_urlsafe(18)
        return Invitation(host, self.port, name, self._tokens[name], self._pin)

    def machine(self, name: str) -> DialedIn:
        return self._machines.setdefault(name, DialedIn(name))

    def close(self) -> None:
        if self._server is not None:
            self._server.close()
        for machine in self._machines.values():
            machine.close()

    async def _greet(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Let in who shows the token of its name; a token is good for one time."""
        try:
            async with asyncio.timeout(GREETING_S):
                line = await reader.readline()
            about = json.loads(line)
            name, token = str(about["name"]), str(about["token"])
        except (OSError, ValueError, KeyError, TypeError):
            writer.close()
            return
        expected = self._tokens.get(name, "")
        if not expected or not hmac.compare_digest(expected.encode(), token.encode()):
            writer.write(json.dumps({"refused": "the invitation is not valid, or was used already"}).encode() + b"\n")
            writer.close()
            return
        del self._tokens[name]
        writer.write(b'{"welcome": true}\n')
        machine = self.machine(name)
        machine.address = str((writer.get_extra_info("peername") or ("",))[0]).removeprefix("::ffff:")
        await machine.serve(reader, writer, str(about.get("python") or ""))


class DialedIn:
    """A machine that has joined; used as :class:`._ssh.Machine` is."""

    shell = "none"
    """No shell is between: programs are given their arguments as they are."""

    def __init__(self, name: str) -> None:
        self.name, self.python, self.address = name, "", ""
        self._writer: asyncio.StreamWriter | None = None
        self._here, self._lost = asyncio.Event(), False
        self._numbers = itertools.count(1)
        self._channels: dict[int, Conversation] = {}

    @property
    def connected(self) -> bool:
        return self._writer is not None and not self._writer.is_closing()

    async def open(self) -> None:
        """Wait until it has joined. HostFailed where it was there and is gone: its invitation is used up."""
        if self._lost:
            raise HostFailed(f"{self.name}: the connection is lost")
        await self._here.wait()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, python: str) -> None:
        """Take frames until the connection ends, which is the end of everything over there."""
        self._writer, self.python = writer, python
        self._here.set()
        pinging = asyncio.create_task(keep_pinging(writer), name=f"pings for {self.name}")
        try:
            while frame := await read_frame(reader):
                channel = self._channels.get(frame.channel)
                if channel is not None:
                    await channel.take(frame.kind, frame.payload)
        except ValueError:
            pass  # what is no frame ends the connection
        finally:
            pinging.cancel()
            self._here.clear()
            self._writer, self._lost = None, True
            writer.close()
            for channel in list(self._channels.values()):
                channel.end(-1, f"the connection to {self.name} is lost")

    async def send(self, kind: Kind, channel: int, payload: bytes = b"") -> None:
        if self._writer is None:
            raise HostFailed(f"{self.name}: the connection is lost")
        try:
            self._writer.write(pack(kind, channel, payload))
            await self._writer.drain()
        except ConnectionError as error:
            raise HostFailed(f"{self.name}: the connection is lost: {error}") from None

    async def converse(
        self, argv: Sequence[str], directory: str | None, environment: Mapping[str, str], talk: Conversation
    ) -> int:
        """Start a process whose output goes to ``talk``; returns its channel."""
        number = next(self._numbers)
        self._channels[number] = talk
        talk.on_close = lambda: self._channels.pop(number, None)
        order = {"argv": list(argv), "directory": directory, "environment": dict(environment)}
        await self.send(Kind.START, number, json.dumps(order).encode())
        return number

    async def run(
        self,
        argv: Sequence[str],
        *,
        stdin: Iterable[bytes] = (),
        out: Callable[[bytes], object] | None = None,
        silent_s: float = 60.0,
    ) -> Done:
        """Run a command to its end; see :meth:`._ssh.Machine.run`."""
        await self.open()
        collected, errors = bytearray(), bytearray()
        talk = Conversation(out or collected.extend, errors.extend)
        number = await self.converse(argv, None, {}, talk)
        try:
            for piece in stdin:
                for start in range(0, len(piece), CHUNK_BYTES):
                    await self.send(Kind.INPUT, number, piece[start : start + CHUNK_BYTES])
            await self.send(Kind.END_OF_INPUT, number)
            code, _ = await talk.ended_within(silent_s)
        except TimeoutError:
            await self.send(Kind.KILL, number)
            raise HostFailed(f"{self.name}: {' '.join(argv)[:60]} has come to a halt for {silent_s:g} s") from None
        return Done(code=code, out=bytes(collected), err=bytes(errors))

    async def start(
        self,
        argv: Sequence[str],
        descriptors: tuple[int, int, int],
        on_end: OnEnd,
        *,
        directory: str | None,
        environment: Mapping[str, str],
    ) -> DialedProcess:
        """Start a process whose standard streams end in these descriptors."""
        await self.open()
        stdin, stdout, stderr = descriptors
        out, err = await pipe_writer(stdout), await pipe_writer(stderr)

        async def pass_on(writer: asyncio.StreamWriter, data: bytes) -> None:
            with contextlib.suppress(OSError):
                writer.write(data)
                await writer.drain()

        talk = Conversation(lambda data: pass_on(out, data), lambda data: pass_on(err, data))
        number = await self.converse(argv, directory, environment, talk)
        return DialedProcess(self, number, talk, await pipe_reader(stdin), (out, err), on_end)

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()


class Conversation:
    """What one process over there says, and its end."""

    def __init__(self, out: Callable[[bytes], object], err: Callable[[bytes], object]) -> None:
        self._out, self._err = out, err
        self._ended: asyncio.Future[tuple[int, str]] = asyncio.get_running_loop().create_future()
        self._moved = asyncio.Event()
        self.on_close: Callable[[], object] = lambda: None

    async def take(self, kind: Kind, payload: bytes) -> None:
        self._moved.set()
        if kind is Kind.EXIT:
            self.end(int(json.loads(payload)["code"]), "")
            return
        took = (self._out if kind is Kind.OUTPUT else self._err)(payload)
        if asyncio.iscoroutine(took):
            await took

    def end(self, code: int, how: str) -> None:
        self.on_close()
        if not self._ended.done():
            self._ended.set_result((code, how))
        self._moved.set()

    async def ended(self) -> tuple[int, str]:
        """Exit code, and how it ended where more is known."""
        return await asyncio.shield(self._ended)

    async def ended_within(self, silent_s: float) -> tuple[int, str]:
        """TimeoutError when nothing has come for so long."""
        while not self._ended.done():
            self._moved.clear()
            async with asyncio.timeout(silent_s):
                await self._moved.wait()
        return self._ended.result()


class DialedProcess:
    """A process on a machine that has dialled in; used as :class:`._ssh.RemoteProcess` is."""

    def __init__(
        self,
        machine: DialedIn,
        number: int,
        talk: Conversation,
        stdin: asyncio.StreamReader,
        outputs: Sequence[asyncio.StreamWriter],
        on_end: OnEnd,
    ) -> None:
        self.machine, self.pid = machine, 0
        self._number, self._talk, self._stdin, self._outputs, self._on_end = number, talk, stdin, outputs, on_end
        self._killed = False
        self._tasks = [asyncio.create_task(self._feed()), asyncio.create_task(self._follow())]

    def kill(self) -> None:
        if not self._killed:
            self._killed = True
            self._tasks.append(asyncio.create_task(self._kill()))

    async def _kill(self) -> None:
        """A machine that does not answer is given up: its process is killed there if it is ever heard from again."""
        with contextlib.suppress(HostFailed, TimeoutError):
            async with asyncio.timeout(KILL_S):
                await self.machine.send(Kind.KILL, self._number)
                await self._talk.ended()
        self._talk.end(-9, f"{self.machine.name} does not answer any more")

    async def _feed(self) -> None:
        with contextlib.suppress(HostFailed):
            while data := await self._stdin.read(CHUNK_BYTES):
                await self.machine.send(Kind.INPUT, self._number, data)
            await self.machine.send(Kind.END_OF_INPUT, self._number)

    async def _follow(self) -> None:
        code, how = await self._talk.ended()
        for writer in self._outputs:
            writer.close()
        self._on_end(code, how or ("killed" if self._killed and code < 0 else ""))

    def close(self) -> None:
        for task in self._tasks[:1]:
            task.cancel()


def listening(port: int) -> socket.socket:
    """A socket on all addresses of this machine, IPv4 and, where there is such a thing, IPv6."""
    if socket.has_dualstack_ipv6():
        return socket.create_server(("::", port), family=socket.AF_INET6, dualstack_ipv6=True)
    return socket.create_server(("0.0.0.0", port))


def address_towards(host: str) -> str:
    """The address of this machine that ``host`` sees; nothing is sent."""
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((host, 9))
        return str(probe.getsockname()[0])
    return "127.0.0.1"

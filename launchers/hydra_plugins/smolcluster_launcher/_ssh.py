"""One machine that is reached by SSH: one connection, opened once and shared by all that goes on there.

Fabric reads ``~/.ssh/config`` and opens the connection (through jump hosts where there are any); what runs over it uses
paramiko's channels directly, since a node's pipes need threads that wait, not Fabric's polling of a terminal.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import logging
import os
import shlex
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, TypeVar

from hydra_plugins.smolcluster_launcher._connect import connection_to, hops, why
from hydra_plugins.smolcluster_launcher._quoting import Shell, command_line, preamble

from smolcluster.cluster.pipes import pipe_reader, pipe_writer
from smolcluster.cluster.session import Pipes
from smolcluster.errors import RunFailed

if TYPE_CHECKING:
    from fabric2 import Connection
    from paramiko import Channel

T = TypeVar("T")
OnEnd: TypeAlias = Callable[[int, str], None]
"""Takes a process's exit code (negative: a signal, or nobody knows), and how it ended where more is known."""
KEEPALIVE_S = 15
KILL_S = 3.0
"""A process that was killed, and has not been heard to end within that time, is taken for ended."""
MAX_STREAMS = 32
"""Channels opening at the same time on one connection."""


class HostFailed(RunFailed):
    """A machine cannot be used; the message names it and says what to do."""


@dataclass(frozen=True, kw_only=True)
class Target:
    """Where a machine is, as the cluster's file says it; what is None is taken from ``~/.ssh/config``."""

    name: str
    """What messages call it."""
    host: str
    user: str | None = None
    port: int | None = None
    identity: str | None = None
    jump: str | None = None

    @classmethod
    def parse(cls, text: str) -> Target:
        """From ``[user@]host[:port]``.

        >>> Target.parse("me@mini1:2222").port
        2222
        """
        user, _, place = text.rpartition("@")
        host, _, port = place.partition(":") if place.count(":") == 1 else (place, "", "")
        return cls(name=host, host=host, user=user or None, port=int(port) if port else None)


@dataclass(frozen=True, kw_only=True)
class Done:
    """What a command came to. ``code`` -1: it was ended by a signal, or the connection was lost."""

    code: int
    out: bytes
    err: bytes

    @property
    def words(self) -> str:
        """The last line of what it said, for messages."""
        said = (self.err or self.out).decode(errors="replace").strip().splitlines()
        return said[-1] if said else f"exit code {self.code}"


class Machine:
    """A connection to one machine. Its methods are called from one event loop; threads wait for the network."""

    def __init__(self, target: Target, *, connect_timeout_s: float) -> None:
        self.target, self.connect_timeout_s = target, connect_timeout_s
        self._threads = ThreadPoolExecutor(MAX_STREAMS, thread_name_prefix=f"ssh {target.name}")
        self._connection: Connection | None = None
        self.shell: Shell = "posix"
        """Known once it is connected."""
        self._opening = threading.Lock()  # jobs one after another have an event loop each

    @property
    def name(self) -> str:
        return self.target.name

    @property
    def connected(self) -> bool:
        return self._connection is not None and bool(self._connection.is_connected)

    async def open(self) -> None:
        """Connect, unless that is done. HostFailed says which machine cannot be reached, why, and what to do."""
        await self._wait(self._open_once)

    def _open_once(self) -> None:
        with self._opening:
            if not self.connected:
                connection = self._open()
                try:
                    self.shell = self._shell_of(connection)
                except HostFailed:
                    _close(connection)
                    raise
                self._connection = connection

    async def run(
        self,
        argv: Sequence[str],
        *,
        stdin: Iterable[bytes] = (),
        out: Callable[[bytes], object] | None = None,
        silent_s: float = 60.0,
    ) -> Done:
        """Run a command to its end. ``stdin`` is sent piece by piece; ``out`` is given the output as it comes, else it
        is in the answer. HostFailed when nothing has moved in either direction for ``silent_s``."""
        channel = await self._channel(lambda: command_line(argv, shell=self.shell))
        channel.settimeout(silent_s)
        stdin = itertools.chain([preamble(argv, shell=self.shell)], stdin)
        talk = _Talk(channel, out)
        try:
            return await self._wait(lambda: talk.run(stdin))
        except TimeoutError:
            raise HostFailed(f"{self.name}: {shlex.join(argv)[:60]} has come to a halt for {silent_s:g} s") from None
        finally:
            channel.close()

    async def start(
        self,
        argv: Sequence[str],
        descriptors: tuple[int, int, int],
        on_end: OnEnd,
        *,
        directory: str | None,
        environment: Mapping[str, str],
    ) -> RemoteProcess:
        """Start a process whose standard streams end in these descriptors."""

        def line() -> str:
            return command_line(argv, shell=self.shell, directory=directory, environment=environment)

        channel = await self._channel(line)
        first = preamble(argv, shell=self.shell, directory=directory, environment=environment)
        return RemoteProcess(self, channel, descriptors, on_end, first)

    def close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            _close(connection)
        self._threads.shutdown(wait=False)

    # --- in threads --------------------------------------------------------------------------------------

    async def _wait(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)

    async def _channel(self, line: Callable[[], str]) -> Channel:
        """Run a line, made when it is known for what shell."""
        await self.open()
        connection = self._connection
        assert connection is not None

        words = line()

        def begin() -> Channel:
            from paramiko import SSHException

            try:
                channel = connection.transport.open_session(timeout=self.connect_timeout_s)
                channel.exec_command(words)
            except (SSHException, OSError, EOFError) as error:
                raise HostFailed(
                    f"{self.name}: the SSH connection to {self._where(connection)} broke: {error}"
                ) from None
            return channel

        return await self._wait(begin)

    def _open(self) -> Connection:
        logging.getLogger("paramiko").setLevel(logging.CRITICAL)  # it logs tracebacks of what is told in one line here
        connection = connection_to(self.target, self.connect_timeout_s)
        for hop in reversed(hops(connection)):  # the outermost jump host first, so that its own failure is told as such
            where = self._where(hop)
            try:
                hop.open()
            except Exception as error:  # noqa: BLE001  (whatever it is, it is told in one line)
                _close(connection)
                on_the_way = "" if hop is connection else "its jump host: "
                reason = why(error, hop, where, self.connect_timeout_s)
                raise HostFailed(f"{self.name}: {on_the_way}{reason}") from None
            hop.transport.set_keepalive(KEEPALIVE_S)
        return connection

    def _shell_of(self, connection: Connection) -> Shell:
        """What the machine gives command lines to. The server's name tells Windows, and a line that only cmd expands
        tells cmd from PowerShell."""
        if "windows" not in str(connection.transport.remote_version).lower():
            return "posix"
        channel = connection.transport.open_session(timeout=self.connect_timeout_s)
        try:
            channel.settimeout(self.connect_timeout_s)
            channel.exec_command("echo %OS%")
            channel.shutdown_write()
            said = b"".join(iter(lambda: channel.recv(1 << 10), b""))
        except (OSError, EOFError) as error:
            reason = f"{self._where(connection)} runs no command: {str(error) or 'it says nothing'}"
            raise HostFailed(f"{self.name}: {reason}") from None
        finally:
            channel.close()
        return "cmd" if b"Windows_NT" in said else "powershell"

    def _where(self, connection: Connection) -> str:
        return f"{connection.user}@{connection.host}:{connection.port}"


class _Talk:
    """A command's three streams, each with a thread of its own, so that none waits for another."""

    def __init__(self, channel: Channel, out: Callable[[bytes], object] | None) -> None:
        self._channel, self._out, self._err = channel, bytearray(), bytearray()
        self._take = out or self._out.extend
        self._failure: Exception | None = None

    def run(self, stdin: Iterable[bytes]) -> Done:
        """TimeoutError when the output comes to a halt; what ``out`` raises."""
        threads = [
            threading.Thread(target=self._guarded, args=work, daemon=True)
            for work in ((self._read, self._channel.recv, self._take), (self._write, stdin))
        ]
        for thread in threads:
            thread.start()
        self._guarded(self._read, self._channel.recv_stderr, self._err.extend)
        for thread in threads:
            thread.join()
        if self._failure is not None:
            raise self._failure
        return Done(code=self._channel.recv_exit_status(), out=bytes(self._out), err=bytes(self._err))

    def _guarded(self, work: Callable[..., None], *args: Any) -> None:
        try:
            work(*args)
        except Exception as error:  # noqa: BLE001  (raised again by who waits)
            self._failure = self._failure or error
            self._channel.close()  # which ends the other threads

    def _read(self, receive: Callable[[int], bytes], take: Callable[[bytes], object]) -> None:
        while data := receive(1 << 16):
            take(data)

    def _write(self, stdin: Iterable[bytes]) -> None:
        for piece in stdin:
            try:
                self._channel.sendall(piece)
            except TimeoutError:
                raise
            except OSError:
                return  # it has ended without reading all; its exit code says why
        with contextlib.suppress(OSError, EOFError):
            self._channel.shutdown_write()


def _close(connection: Connection) -> None:
    """Close a connection and those that it goes through."""
    with contextlib.suppress(Exception):
        connection.close()
    gateway = connection.gateway
    if gateway is not None and not isinstance(gateway, str):
        _close(gateway)


# --- a process over there --------------------------------------------------------------------------------


class RemoteProcess:
    """A process on another machine whose standard streams end in three pipes of this one.

    A thread for each stream moves the bytes. They block where nobody reads, so that a slow reader holds up the
    process over there, and nothing piles up. ``descriptors`` are what the process would have as 0, 1 and 2 here; they
    are closed at the end of each stream. ``first`` is sent before anything else. ``on_end`` is called in the event
    loop, once, with the exit code and with how it ended.
    """

    def __init__(
        self,
        machine: Machine,
        channel: Channel,
        descriptors: tuple[int, int, int],
        on_end: Callable[[int, str], None],
        first: bytes = b"",
    ) -> None:
        self.machine, self.pid, self._first = machine, 0, first
        self._channel, self._on_end = channel, on_end
        self._stdin, self._stdout, self._stderr = descriptors
        self._loop = asyncio.get_running_loop()
        self._ended = asyncio.Event()
        self._killer: asyncio.Task[None] | None = None
        for work, what in ((self._follow, "output"), (self._complain, "errors"), (self._feed, "commands")):
            threading.Thread(target=work, name=f"ssh {what}", daemon=True).start()

    def kill(self) -> None:
        """End the process at once, over a channel of its own; a machine that does not answer is given up."""
        if self._killer is None and not self._ended.is_set():
            self._killer = asyncio.create_task(self._kill(), name=f"killing {self.pid} on {self.machine.name}")

    async def _kill(self) -> None:
        how = "killed"
        try:
            async with asyncio.timeout(KILL_S):
                await self.machine.run(kill_command(self.pid, self.machine.shell))
                await self._ended.wait()
        except (TimeoutError, RunFailed):
            how = f"{self.machine.name} does not answer any more"
        self._channel.close()
        self._end(-9, how)

    def close(self) -> None:
        self._channel.close()

    def _end(self, code: int, how: str = "") -> None:
        if self._ended.is_set():
            return
        self._ended.set()
        if code < 0 and not how:
            lost = f"the SSH connection to {self.machine.name} is lost"
            how = ("killed" if self._killer else "killed by a signal") if self.machine.connected else lost
        self._on_end(code, how)

    # --- in threads --------------------------------------------------------------------------------------

    def _follow(self) -> None:
        _pump(self._channel.recv, self._stdout)
        code = self._channel.recv_exit_status()
        with contextlib.suppress(RuntimeError):  # the loop has ended
            self._loop.call_soon_threadsafe(self._end, code)

    def _complain(self) -> None:
        _pump(self._channel.recv_stderr, self._stderr)

    def _feed(self) -> None:
        with contextlib.suppress(OSError, EOFError):  # it has ended, or the connection is lost: the reader notices
            self._channel.sendall(self._first)
            while data := os.read(self._stdin, 1 << 16):
                self._channel.sendall(data)
            self._channel.shutdown_write()
        os.close(self._stdin)


def _pump(receive: Callable[[int], bytes], into: int) -> None:
    with contextlib.suppress(OSError):  # the reader has gone: what is still said is for nobody
        while data := receive(1 << 16):
            _write_all(into, data)
    os.close(into)


def _write_all(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


class Ending(Protocol):
    """A process elsewhere that can be ended."""

    pid: int

    def kill(self) -> None: ...

    def close(self) -> None: ...


class SSHSession(Pipes):
    """A process on another machine, for a controller in this process."""

    def __init__(self, pipes: tuple[Any, Any, Any]) -> None:
        super().__init__(*pipes)
        self.pid, self._how = 0, ""
        self._ended: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self.process: Ending | None = None

    @classmethod
    async def begin(cls, start: Callable[[tuple[int, int, int], OnEnd], Awaitable[Ending]]) -> SSHSession:
        (stdin, our_in), (our_out, stdout), (our_err, stderr) = os.pipe(), os.pipe(), os.pipe()
        session = cls((await pipe_writer(our_in), await pipe_reader(our_out), await pipe_reader(our_err)))
        try:
            session.process = await start((stdin, stdout, stderr), session.end)
        except BaseException:
            session.close()
            for descriptor in (stdin, stdout, stderr):
                os.close(descriptor)
            raise
        return session

    async def wait(self) -> int:
        return await asyncio.shield(self._ended)

    def how(self, code: int) -> str:
        return self._how or super().how(code)

    def kill(self) -> None:
        if self.process is not None:
            self.process.pid = self.pid
            self.process.kill()

    def end(self, code: int, how: str) -> None:
        self._how = how
        if not self._ended.done():
            self._ended.set_result(code)

    def close(self) -> None:
        super().close()
        if self.process is not None:
            self.process.close()


class Talking(Protocol):
    """A session whose process has not said anything yet."""

    async def first_line(self) -> bytes: ...

    def errors(self) -> AsyncIterator[str]: ...

    async def wait(self) -> int: ...


async def first_word(session: Talking, name: str, within_s: float) -> int:
    """Wait for a process's first event, ``hello``, and return its pid. HostFailed with what was said instead."""
    try:
        async with asyncio.timeout(within_s):
            line = await session.first_line()
    except (TimeoutError, ValueError):
        raise HostFailed(f"{name}: the process that was started there says nothing for {within_s:g} s") from None
    event: Any = None
    with contextlib.suppress(ValueError):
        event = json.loads(line)
    if isinstance(event, dict) and event.get("event") == "hello":
        return int(event["pid"])
    said = [words async for words in session.errors()] if not line else [line.decode(errors="replace").strip()]
    reason = said[-1] if said else f"ended with exit code {await session.wait()}"
    raise HostFailed(f"{name}: no process could be started there: {reason}")


def kill_command(pid: int, shell: Shell) -> list[str]:
    """What ends process ``pid`` on its machine."""
    return ["kill", "-KILL", str(pid)] if shell == "posix" else ["taskkill", "/F", "/T", "/PID", str(pid)]

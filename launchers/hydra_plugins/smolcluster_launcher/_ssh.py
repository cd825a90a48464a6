"""One machine that is reached by SSH: one connection, opened once and shared by all that goes on there.

Fabric reads ``~/.ssh/config`` and opens the connection (through jump hosts where there are any); what runs over it uses
paramiko's channels directly, since a node's pipes need threads that wait, not Fabric's polling of a terminal.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import shlex
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, TypeVar

from hydra_plugins.smolcluster_launcher._connect import connection_to, hops, why
from hydra_plugins.smolcluster_launcher._process import RemoteProcess
from hydra_plugins.smolcluster_launcher._quoting import Shell, command_line, preamble
from hydra_plugins.smolcluster_launcher._reached import Done, HostFailed, OnEnd, Target

if TYPE_CHECKING:
    from fabric2 import Connection
    from paramiko import Channel

T = TypeVar("T")
KEEPALIVE_S = 15
MAX_STREAMS = 32
"""Channels opening at the same time on one connection."""


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


class Machines:
    """The SSH connections of a sweep: one for each machine, whoever asks."""

    def __init__(self, connect_timeout_s: float) -> None:
        self._connect_timeout_s = connect_timeout_s
        self._known: dict[Target, Machine] = {}

    def at(self, target: Target) -> Machine:
        if target not in self._known:
            self._known[target] = Machine(target, connect_timeout_s=self._connect_timeout_s)
        return self._known[target]

    def close(self) -> None:
        for machine in self._known.values():
            machine.close()
        self._known.clear()


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

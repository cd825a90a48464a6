"""Processes on other machines: their standard streams, their first word, and their end."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TYPE_CHECKING, Any, Protocol

from hydra_plugins.smolcluster_launcher._reached import Ending, HostFailed, OnEnd, Reached

from smolcluster.cluster.pipes import pipe_reader, pipe_writer
from smolcluster.cluster.session import Pipes
from smolcluster.errors import RunFailed

if TYPE_CHECKING:
    from paramiko import Channel

KILL_S = 3.0
"""A process that was killed, and has not been heard to end within that time, is taken for ended."""


class RemoteProcess:
    """A process on another machine whose standard streams end in three pipes of this one.

    A thread for each stream moves the bytes. They block where nobody reads, so that a slow reader holds up the
    process over there, and nothing piles up. ``descriptors`` are what the process would have as 0, 1 and 2 here; they
    are closed at the end of each stream. ``first`` is sent before anything else. ``on_end`` is called in the event
    loop, once, with the exit code and with how it ended.
    """

    def __init__(
        self,
        machine: Reached,
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


def kill_command(pid: int, shell: str) -> list[str]:
    """What ends process ``pid`` on its machine."""
    return ["kill", "-KILL", str(pid)] if shell == "posix" else ["taskkill", "/F", "/T", "/PID", str(pid)]

"""Nodes on this machine: forked from a process that has imported what they need, or started from scratch."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from smolcluster.cluster.pipes import pipe_reader, pipe_writer
from smolcluster.cluster.session import (
    MAX_EVENT_BYTES,
    Check,
    Pipes,
    Say,
    Sessions,
    Whereabouts,
    lines_of,
    node_settings,
    opener,
)
from smolcluster.errors import RunFailed

if TYPE_CHECKING:
    from smolcluster.cluster.inventory import Node
    from smolcluster.spec.needs import Needs
    from smolcluster.spec.run import RunSpec

FORK_SERVER = "the process that nodes of this machine are forked from"


class OnThisMachine:
    """What sessions need not do where all nodes are here."""

    async def examine(self, names: Sequence[str]) -> Mapping[str, Sequence[Check]]:
        return {name: [Check("reached", "ok", "this machine")] for name in names}

    async def open(self, names: Sequence[str], run: str, needs: Needs, say: Say) -> None:
        return

    def place(self, name: str) -> Whereabouts | None:
        return None

    async def collect(self, name: str, folder: Path, *, everything: bool) -> None:
        return

    async def guests(self) -> AsyncIterator[tuple[str, Node]]:
        nobody: tuple[tuple[str, Node], ...] = ()
        for each in nobody:
            yield each


def node_environment(threads: int) -> dict[str, str]:
    """The environment of node processes on this machine: without the secrets of trackers."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("WANDB_", "HYDRA_FULL_ERROR"))}
    return {**kept, **node_settings(threads)}


class ProcessSession(Pipes):
    """A node process of its own, started from scratch."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        super().__init__(process.stdin, process.stdout, process.stderr)
        self._process, self.pid = process, process.pid

    async def wait(self) -> int:
        return await self._process.wait()

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()


class LocalProcesses(OnThisMachine):
    """Starts each node of this machine as a process from scratch, or another module that speaks like a node."""

    def __init__(
        self,
        environment: Mapping[str, str],
        module: str = "smolcluster.node",
        words: Sequence[str] = (),
        descriptors: Sequence[int] = (),
    ) -> None:
        self._environment, self._command = environment, ["-m", module, *words]
        self._descriptors = tuple(descriptors)

    async def start(self, name: str) -> ProcessSession:
        return ProcessSession(await self.begin())

    async def begin(self) -> asyncio.subprocess.Process:
        """Start the process."""
        return await asyncio.create_subprocess_exec(
            sys.executable,
            *self._command,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=self._environment,
            pass_fds=self._descriptors,
            start_new_session=True,  # Ctrl-C in the terminal is the controller's to handle, not the nodes'
            limit=MAX_EVENT_BYTES,
        )

    async def close(self) -> None:
        return


class ForkedSession(Pipes):
    """A node process forked by the fork server, which reports its end."""

    def __init__(
        self,
        server: LocalForks,
        pid: int,
        stdin: asyncio.StreamWriter,
        stdout: asyncio.StreamReader,
        stderr: asyncio.StreamReader,
    ) -> None:
        super().__init__(stdin, stdout, stderr)
        self._server, self.pid = server, pid
        self.ended: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    async def wait(self) -> int:
        return await asyncio.shield(self.ended)

    def kill(self) -> None:
        if not self.ended.done():
            self._server.kill(self.pid)


class LocalForks(OnThisMachine):
    """Starts the nodes of this machine by forking one process that has imported torch (node/forkserver.py)."""

    def __init__(self, threads: int) -> None:
        self._environment = node_environment(threads)
        self._process: asyncio.subprocess.Process | None = None
        self._channel: socket.socket | None = None
        self._reader: asyncio.Task[None] | None = None
        self._writer: asyncio.StreamWriter | None = None  # never written to, but its end would close the socket
        self._started: dict[str, asyncio.Future[int]] = {}
        self._live: dict[int, ForkedSession] = {}
        self._codes: dict[int, int] = {}
        self._opening = asyncio.Lock()
        self._over = False

    async def _open(self) -> socket.socket:
        """Start the fork server, once; nodes can be asked for while it is still importing."""
        async with self._opening:
            if self._channel is not None:
                return self._channel
            ours, theirs = socket.socketpair()
            self._process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "smolcluster.node.forkserver",
                str(theirs.fileno()),
                stdin=asyncio.subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                env=self._environment,
                start_new_session=True,
            )
            theirs.close()
            self._channel = ours
            reader, self._writer = await asyncio.open_connection(sock=ours.dup())
            self._reader = asyncio.create_task(self._listen(reader), name="fork server")
        return self._channel

    async def start(self, name: str) -> ForkedSession:
        channel, loop = await self._open(), asyncio.get_running_loop()
        (stdin, our_in), (our_out, stdout), (our_err, stderr) = os.pipe(), os.pipe(), os.pipe()
        started = self._started[name] = loop.create_future()
        try:
            if self._over:
                raise ConnectionError("it has ended")
            socket.send_fds(channel, [json.dumps({"start": name}).encode() + b"\n"], [stdin, stdout, stderr])
            pid = await started
        except BaseException as error:  # also where nobody waits any longer: a node without its pipes ends by itself
            for descriptor in (our_in, our_out, our_err):
                os.close(descriptor)
            if isinstance(error, OSError):
                raise RunFailed(f"{FORK_SERVER}: {error}") from None
            raise
        finally:
            for descriptor in (stdin, stdout, stderr):
                os.close(descriptor)
        session = ForkedSession(
            self, pid, await pipe_writer(our_in), await pipe_reader(our_out), await pipe_reader(our_err)
        )
        self._live[pid] = session
        if pid in self._codes:  # it has ended already
            self._ended(pid, self._codes.pop(pid))
        return session

    def kill(self, pid: int) -> None:
        assert self._channel is not None
        try:
            self._channel.sendall(json.dumps({"kill": pid}).encode() + b"\n")
        except OSError:  # the fork server was killed; its children have another parent now
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    async def _listen(self, reader: asyncio.StreamReader) -> None:
        with contextlib.suppress(ConnectionError):  # it was killed with a request unread
            async for line in lines_of(reader):
                self._take(json.loads(line))
        self._over = True
        for future in self._started.values():
            if not future.done():
                future.set_exception(RunFailed(f"{FORK_SERVER}: it ended before it could start a node"))
        for pid in list(self._live):
            self.kill(pid)
            self._ended(pid, -signal.SIGKILL)

    def _take(self, message: Mapping[str, Any]) -> None:
        if "code" in message:
            self._ended(message["pid"], message["code"])
        elif "id" in message:
            started = self._started.pop(message["id"])
            if not started.done():
                started.set_result(message["pid"])

    def _ended(self, pid: int, code: int) -> None:
        session = self._live.pop(pid, None)
        if session is None:
            self._codes[pid] = code
        elif not session.ended.done():
            session.ended.set_result(code)

    async def close(self) -> None:
        if self._channel is None or self._process is None or self._reader is None:
            return
        with contextlib.suppress(OSError):  # it has ended already
            self._channel.shutdown(socket.SHUT_RDWR)
        self._channel.close()
        if not self._live and self._process.returncode is None:
            self._process.kill()  # it may be importing still
        try:
            await asyncio.wait_for(self._process.wait(), 20)
        except TimeoutError:
            self._process.kill()
            await self._process.wait()
        await self._reader
        if self._writer is not None:
            self._writer.close()


def local_sessions(threads: int) -> Sessions:
    """How nodes are started on this machine: forked where that is safe, else each from scratch."""
    return LocalForks(threads) if sys.platform == "linux" else LocalProcesses(node_environment(threads))


def sessions_for(spec: RunSpec, threads: int) -> Sessions:
    """The sessions of a run, on this machine unless a launcher knows of others."""
    make = opener.get()
    if make is not None:
        return make(spec, threads)
    if not spec.cluster.is_local:
        raise RunFailed("nodes on other machines need hydra/launcher=smolcluster")
    return local_sessions(threads)

"""The launcher's SSH connections, for jobs that run in processes of their own.

The launcher keeps one connection to each machine. A job's process (a *lead*) asks over a socket for nodes to be
started; with each such request come the three descriptors that the node's standard streams shall end in, so that what
a node says goes straight to the lead.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import socket
import threading
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra_plugins.smolcluster_launcher._process import first_word
from hydra_plugins.smolcluster_launcher._reached import Ending
from hydra_plugins.smolcluster_launcher._session import ClusterSessions, Options
from hydra_plugins.smolcluster_launcher._ssh import Machines

from smolcluster.cluster.pipes import pipe_reader, pipe_writer
from smolcluster.cluster.session import Check, Pipes, Say, Session, Sessions, Whereabouts
from smolcluster.errors import RunFailed, SmolclusterError
from smolcluster.node.forkserver import Requests
from smolcluster.pipeline.job import cache_folder
from smolcluster.spec.build import build
from smolcluster.spec.needs import Needs, needs_of

if TYPE_CHECKING:
    from smolcluster.cluster.inventory import Node
    from smolcluster.spec.run import RunSpec

CLOSE_S = 15.0
"""Longest time that the launcher may take to leave the machines of a run."""


class Desk:
    """The launcher's end: serves one lead. Requests are read in a thread and answered in the event loop."""

    def __init__(self, options: Options, machines: Machines) -> None:
        self.options, self.machines = options, machines
        self._ours, self.theirs = socket.socketpair()
        self._sessions: ClusterSessions | None = None
        self._processes: dict[int, Ending] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._sending = threading.Lock()

    def serve(self) -> None:
        """Begin. The lead has its end of the socket by now."""
        self.theirs.close()
        loop = asyncio.get_running_loop()

        def read() -> None:
            requests = Requests(self._ours)
            while not requests.over:
                try:
                    found = requests.read()
                except OSError:
                    return
                for request, descriptors in found:
                    with contextlib.suppress(RuntimeError):  # the loop has ended
                        loop.call_soon_threadsafe(self._take, request, descriptors)

        threading.Thread(target=read, name="desk", daemon=True).start()

    def close(self) -> None:
        """The lead has ended: so must what it has started."""
        for task in self._tasks:
            task.cancel()
        for process in self._processes.values():
            process.kill()
        if self._sessions is not None:
            self._sessions.release()
        with contextlib.suppress(OSError):
            self._ours.shutdown(socket.SHUT_RDWR)
        self._ours.close()

    def _take(self, request: Mapping[str, Any], descriptors: Sequence[int]) -> None:
        task = asyncio.create_task(self._answer(request, descriptors))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _answer(self, request: Mapping[str, Any], descriptors: Sequence[int]) -> None:
        number = request["n"]
        try:
            result = await self._do(request, descriptors)
        except (SmolclusterError, OSError) as error:
            self._reply(number, refused=str(error))
        else:
            self._reply(number, done=result)

    async def _do(self, request: Mapping[str, Any], descriptors: Sequence[int]) -> Any:
        match request["do"]:
            case "open":
                return await self._open(request)
            case "examine":
                found = await self._make(request).examine(request["names"])
                return {name: [tuple(check) for check in checks] for name, checks in found.items()}
            case "start":
                assert self._sessions is not None
                number, (stdin, stdout, stderr) = request["n"], descriptors

                def ended(code: int, how: str) -> None:
                    self._processes.pop(number, None)
                    self._reply(number, ended=code, how=how)

                begun = await self._sessions.begin(request["start"], (stdin, stdout, stderr), ended)
                self._processes[number] = begun
            case "kill":
                process = self._processes.get(request["process"])
                if process is not None:
                    process.pid = request["pid"]
                    process.kill()
            case "collect":
                assert self._sessions is not None
                folder = Path(request["folder"])
                await self._sessions.collect(request["name"], folder, everything=request["everything"])
            case "close":
                if self._sessions is not None:
                    await self._sessions.close()
        return None

    def _make(self, request: Mapping[str, Any]) -> ClusterSessions:
        return ClusterSessions(build(request["spec"]), self.options, self.machines, None)

    async def _open(self, request: Mapping[str, Any]) -> dict[str, Any]:
        self._sessions = sessions = self._make(request)
        spec = sessions.spec
        say = lambda name, words: self._reply(request["n"], say=[name, words])  # noqa: E731
        await sessions.open(request["names"], request["run"], needs_of(spec, cache_folder(), request["resume"]), say)
        places = {name: sessions.place(name) for name in request["names"]}
        return {name: vars(place) for name, place in places.items() if place is not None}

    def _reply(self, number: int, **fields: Any) -> None:
        with self._sending, contextlib.suppress(OSError):  # the lead has gone
            self._ours.sendall(json.dumps({"n": number, **fields}).encode() + b"\n")


class DeskSessions:
    """The lead's end; implements :class:`smolcluster.cluster.session.Sessions`."""

    def __init__(self, spec: RunSpec, channel: socket.socket, local: Sessions) -> None:
        self.spec, self.local = spec, local
        self._channel = channel
        self._numbers = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[Any]] = {}
        self._live: dict[int, DeskSession] = {}
        self._places: dict[str, Whereabouts] = {}
        self._say: Say = lambda name, words: None
        self._reader: asyncio.Task[None] | None = None

    async def _connect(self) -> None:
        reader, self._writer = await asyncio.open_connection(sock=self._channel.dup())
        self._reader = asyncio.create_task(self._listen(reader), name="desk")

    async def examine(self, names: Sequence[str]) -> Mapping[str, Sequence[Check]]:
        await self._connect()
        found = await self._ask("examine", spec=self.spec.plain(), names=list(names))
        return {name: [Check(*check) for check in checks] for name, checks in found.items()}

    async def open(self, names: Sequence[str], run: str, needs: Needs, say: Say) -> None:
        self._say = say
        await self._connect()
        resume = needs.paths.get("resume")
        await self.local.open([name for name in names if self.spec.cluster.node(name).is_here], run, needs, say)
        found = await self._ask(
            "open",
            spec=self.spec.plain(),
            names=list(names),
            run=run,
            resume=None if resume is None else str(resume),
        )
        self._places = {name: Whereabouts(**place) for name, place in found.items()}

    async def start(self, name: str) -> Session:
        if name not in self._places:
            return await self.local.start(name)
        (stdin, our_in), (our_out, stdout), (our_err, stderr) = os.pipe(), os.pipe(), os.pipe()
        pipes = (await pipe_writer(our_in), await pipe_reader(our_out), await pipe_reader(our_err))
        number = next(self._numbers)
        session = self._live[number] = DeskSession(self, number, pipes)
        try:
            await self._ask("start", number, [stdin, stdout, stderr], start=name)
        finally:
            for descriptor in (stdin, stdout, stderr):
                os.close(descriptor)
        session.pid = await first_word(session, name, self.spec.cluster.start_timeout_s)
        return session

    def place(self, name: str) -> Whereabouts | None:
        return self._places.get(name)

    async def collect(self, name: str, folder: Path, *, everything: bool) -> None:
        await self._ask("collect", name=name, folder=str(folder), everything=everything)

    def guests(self) -> AsyncIterator[tuple[str, Node]]:
        return self.local.guests()  # jobs side by side take none

    async def close(self) -> None:
        if self._places:
            with contextlib.suppress(RunFailed, TimeoutError):  # it has ended, or a machine does not answer it
                async with asyncio.timeout(CLOSE_S):
                    await self._ask("close")
        await self.local.close()
        if self._reader is not None:
            self._reader.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._reader
            self._writer.close()

    def kill(self, number: int, pid: int) -> None:
        self._send({"n": next(self._numbers), "do": "kill", "process": number, "pid": pid}, [])

    async def _ask(self, do: str, number: int = 0, descriptors: Sequence[int] = (), **fields: Any) -> Any:
        number = number or next(self._numbers)
        answer = self._waiting[number] = asyncio.get_running_loop().create_future()
        self._send({"n": number, "do": do, **fields}, descriptors)
        return await answer

    def _send(self, request: Mapping[str, Any], descriptors: Sequence[int]) -> None:
        data = json.dumps(request).encode() + b"\n"
        try:
            sent = socket.send_fds(self._channel, [data], list(descriptors))
            self._channel.sendall(data[sent:])
        except OSError as error:
            raise RunFailed(f"the launcher does not answer any more: {error}") from None

    async def _listen(self, reader: asyncio.StreamReader) -> None:
        async for line in reader:
            message = json.loads(line)
            number = message["n"]
            if "say" in message:
                self._say(*message["say"])
            elif "ended" in message:
                session = self._live.pop(number, None)
                if session is not None:
                    session.end(message["ended"], message["how"])
            else:
                answer = self._waiting.pop(number, None)
                if answer is not None and not answer.done():
                    if "refused" in message:
                        answer.set_exception(RunFailed(message["refused"]))
                    else:
                        answer.set_result(message["done"])
        for answer in self._waiting.values():
            if not answer.done():
                answer.set_exception(RunFailed("the launcher has ended"))


class DeskSession(Pipes):
    """A node process that the launcher has started for this lead."""

    def __init__(self, desk: DeskSessions, number: int, pipes: tuple[Any, Any, Any]) -> None:
        super().__init__(*pipes)
        self._desk, self._number, self.pid = desk, number, 0
        self._ended: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._how = ""

    async def wait(self) -> int:
        return await asyncio.shield(self._ended)

    def how(self, code: int) -> str:
        return self._how or super().how(code)

    def kill(self) -> None:
        if not self._ended.done():
            self._desk.kill(self._number, self.pid)

    def end(self, code: int, how: str) -> None:
        self._how = how
        if not self._ended.done():
            self._ended.set_result(code)

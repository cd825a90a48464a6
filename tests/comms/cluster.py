"""Nodes without roles, all in one event loop: members, certificates, transports of one kind, views, and a bad wire."""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections.abc import Callable, Coroutine, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from smolcluster.comms.buffers import Layout
from smolcluster.comms.membership import dialler
from smolcluster.comms.peers import NodePeers, Patience
from smolcluster.comms.security import Authority, Credentials
from smolcluster.comms.transport.memory import Memory
from smolcluster.comms.transport.tcp import Tcp
from smolcluster.comms.transport.zmq import Zmq
from smolcluster.messages import Message
from smolcluster.ports import Member, Received, View

QUICK: dict[str, float] = {"heartbeat_s": 0.05, "lost_after_s": 0.4}
KINDS: dict[str, Any] = {
    "tcp": Tcp(**QUICK),
    "tcp plain": Tcp(**QUICK, encryption="off"),
    "zmq": Zmq(**QUICK),
    "memory": Memory(),
}
NETWORKED = [kind for kind, config in KINDS.items() if config.separate_processes]
PATIENCE = Patience(connect_s=20.0, silent_s=QUICK["lost_after_s"], lost_s=20.0)
SERVER = Member(name="server", role="server", rank=0, joined=1)
SMALL = 1000
LARGE = 300_000
LAYOUTS = {
    "gradient": Layout("float32", LARGE),
    "parameters": Layout("float32", LARGE),
    "buffers": Layout("float64", 7),
}
WITHIN_S = 20.0
"""Whatever a test waits for comes sooner than that, or never."""


def worker(rank: int = 0, joined: int = 1) -> Member:
    return Member(name=f"worker{rank}", role="worker", rank=rank, joined=joined)


_open: list[Cluster] = []


def go(test: Coroutine[Any, Any, None], within: float = 60.0) -> None:
    """Run a test; whatever happens, no node outlives it."""

    async def limited() -> None:
        try:
            async with asyncio.timeout(within):
                await test
        finally:
            for cluster in _open:
                await cluster.close(0.0)

    asyncio.run(limited())


@dataclass(eq=False)
class Cluster:
    """Nodes of one run on transports of one kind. Every address goes through ``via`` where that names the node."""

    kind: str
    layouts: Mapping[str, Layout] = field(default_factory=lambda: dict(LAYOUTS))
    patience: Patience = PATIENCE
    config: Any = None
    run: str = "run"
    authority: Authority = field(init=False)
    nodes: dict[Member, NodePeers] = field(default_factory=dict)
    events: list[dict[str, Any]] = field(default_factory=list)
    via: dict[str, tuple[str, int]] = field(default_factory=dict)
    _issued: dict[Member, Credentials] = field(default_factory=dict)
    _in_memory: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.config = self.config or KINDS[self.kind]
        self.authority = Authority(self.run)
        _open.append(self)
        if not self.config.separate_processes:  # all transports of a process are made together
            members = [SERVER, worker(0), worker(1)]
            transports = self.config.transports([self.credentials(member) for member in members], "", 0)
            self._in_memory = {member.name: each for member, each in zip(members, transports, strict=True)}

    def credentials(self, member: Member) -> Credentials:
        if member not in self._issued:
            self._issued[member] = self.authority.issue(member.name, member.joined)
        return self._issued[member]

    def start(self, *members: Member) -> list[NodePeers]:
        """Bring up nodes that know of nobody yet."""
        started = []
        for member in members:
            transport = self._in_memory.get(member.name)
            if transport is None:
                transport = self.config.transports([self.credentials(member)], "127.0.0.1", 0)[0]
            node = NodePeers(self.run, member, transport, self.patience, self._reporter(member))
            node.agree(self.layouts)
            self.nodes[member] = node
            started.append(node)
        return started

    def _reporter(self, member: Member) -> Callable[..., None]:
        return lambda event, **fields: self.events.append({"event": event, "of": member.name, **fields})

    def view(self, node: NodePeers, generation: int, members: Iterable[Member]) -> None:
        """What the controller says to one node."""
        members = tuple(members)
        for member in members:
            self.credentials(member)
        links = []
        for other in members:
            if len({node.me.role, other.role}) == 2:
                dials = dialler(node.me, other) == node.me
                links.append((other, self.address(other) if dials else None))
        view = View(generation=generation, members=members)
        node.change_view(view, links, f"generation {generation}", self.authority.curve_keys(members))

    def address(self, member: Member) -> tuple[str, int]:
        return self.via.get(member.name) or self.nodes[member].transport.address

    def view_all(self, generation: int, *members: Member) -> None:
        for node in list(self.nodes.values()):
            self.view(node, generation, members)

    async def close(self, flush_within: float = 2.0) -> None:
        if self in _open:
            _open.remove(self)
            await asyncio.gather(*(node.close(flush_within) for node in self.nodes.values()))

    def of(self, event: str, node: Member) -> list[dict[str, Any]]:
        return [each for each in self.events if each["event"] == event and each["of"] == node.name]


def together(kind: str, *members: Member, **options: Any) -> Cluster:
    """A cluster whose members are up and know of each other."""
    cluster = Cluster(kind, **options)
    cluster.start(*members)
    cluster.view_all(1, *members)
    return cluster


async def receive(node: NodePeers, count: int, within: float = WITHIN_S) -> list[Message]:
    """The next ``count`` messages, whoever sent them; changes of view are passed over."""
    until = asyncio.get_running_loop().time() + within
    found: list[Message] = []
    while len(found) < count:
        event = await node.next(until, "a message")
        assert event is not None, f"{len(found)} of {count} messages within {within} s; refused: {node.refusals}"
        if isinstance(event, Received):
            found.append(event.message)
    return found


async def until(true: Callable[[], bool], what: str, within: float = WITHIN_S) -> None:
    """Wait for a condition that other threads bring about."""
    deadline = time.monotonic() + within
    while not true():
        assert time.monotonic() < deadline, f"not within {within} s: {what}"
        await asyncio.sleep(0.002)


def descriptors() -> set[str]:
    """Open sockets, pipes and the like of this process, where the system tells."""
    folder = Path("/proc/self/fd")
    found = set()
    for entry in folder.iterdir() if folder.is_dir() else ():
        try:
            target = os.readlink(entry)
        except FileNotFoundError:  # the one that lists the folder
            continue
        if target.startswith(("socket:", "pipe:", "anon_inode:")):
            found.add(target)
    return found


def native_threads() -> set[str]:
    """Threads that ZeroMQ has started beside Python's, as ``name:number``."""
    folder = Path("/proc/self/task")
    found = set()
    for entry in folder.iterdir() if folder.is_dir() else ():
        try:
            name = (entry / "comm").read_text().strip()
        except (FileNotFoundError, ProcessLookupError):  # it has just ended
            continue
        if name.startswith("ZMQ"):
            found.add(f"{name}:{entry.name}")
    return found


def resident_bytes(process: int | str = "self") -> int:
    """Resident memory of a process, where the system tells; else 0."""
    file = Path(f"/proc/{process}/statm")
    return int(file.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") if file.exists() else 0


class Relay:
    """A wire that can be cut, silenced and listened to: forwards connections to ``target`` (None: hangs up)."""

    def __init__(self, target: tuple[str, int] | None, seed: int = 0, mean_bytes: float | None = None) -> None:
        self.target, self.mean_bytes = target, mean_bytes
        self.rng = random.Random(seed)
        self.breaks = self.connections = 0
        self.forwarded = {"there": 0, "back": 0}
        self.open = asyncio.Event()
        self.open.set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._writers: set[asyncio.StreamWriter] = set()

    async def __aenter__(self) -> Relay:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.address: tuple[str, int] = self._server.sockets[0].getsockname()[:2]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for writer in self._writers:
            writer.transport.abort()
        await self._server.wait_closed()

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._tasks.add(asyncio.create_task(self._serve(reader, writer)))
        self._writers.add(writer)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.target is None:
            writer.transport.abort()
            return
        self.connections += 1
        try:
            other_reader, other_writer = await asyncio.open_connection(*self.target)
        except OSError:
            writer.transport.abort()
            return
        self._writers.add(other_writer)
        left = [self.rng.expovariate(1 / self.mean_bytes) if self.mean_bytes else float("inf")]
        ends = (writer, other_writer)
        await asyncio.gather(
            self._forward(reader, other_writer, "there", left, ends),
            self._forward(other_reader, writer, "back", left, ends),
        )

    async def _forward(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        way: str,
        left: list[float],
        ends: tuple[asyncio.StreamWriter, asyncio.StreamWriter],
    ) -> None:
        """Forward until an end closes, or until ``left`` bytes of this connection are used up: then break it."""
        try:
            while data := await reader.read(1 << 16):
                await self.open.wait()
                part = data[: max(0, int(left[0]))] if left[0] < len(data) else data
                left[0] -= len(data)
                writer.write(part)
                self.forwarded[way] += len(part)
                if len(part) < len(data):
                    self.breaks += 1
                    if self.rng.random() < 0.5:
                        await writer.drain()  # what was forwarded arrives, then the end comes in the middle
                    break
                await writer.drain()
        except OSError:
            pass  # an end has gone: so does the other
        for end in ends:
            if self.rng.random() < 0.5 and not end.is_closing():
                end.close()
            else:
                end.transport.abort()

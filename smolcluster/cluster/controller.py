"""The controller: starts a run's nodes, listens to them, supervises, and brings everything to an end.

It is the process that a person started. It never imports torch, holds no open port, and is the only writer of the
run directory's records. Whatever happens, :meth:`Controller.run` returns with no node left behind.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import time
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from smolcluster.cluster import routes
from smolcluster.cluster.session import Session, Sessions, Whereabouts
from smolcluster.cluster.supervision import (
    Action,
    EndRun,
    KillNode,
    PublishView,
    Rules,
    StartNode,
    Supervisor,
)
from smolcluster.comms.security import Authority
from smolcluster.errors import SmolclusterError
from smolcluster.ports import Member
from smolcluster.spec.needs import Needs
from smolcluster.tracking.fields import finite

if TYPE_CHECKING:
    from smolcluster.spec.run import RunSpec

TICK_S = 0.2
MIN_SILENCE_S = 4.0
"""Nodes report twice a second; a heavy import may hold that up for a moment."""
PING_S = 5.0
"""How often nodes hear that the controller is alive."""
OUTPUT_S = 5.0
"""How long the rest of a node's output is waited for after it has ended."""

Status = Literal["done", "failed", "interrupted"]
OnEvent = Callable[[dict[str, Any]], None]


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a run ended, and why."""

    status: Status
    reason: str

    @property
    def exit_code(self) -> int:
        return {"done": 0, "failed": 1, "interrupted": 130}[self.status]


@dataclass
class Handle:
    """A node process that the controller has started. ``names`` are the nodes that live in it."""

    names: tuple[str, ...]
    session: Session
    tasks: list[asyncio.Task[None]] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class Job:
    """What the controller needs besides the spec."""

    run: str
    folder: Path
    cache: Path
    threads: int
    resume: str | None = None
    """Folder of the checkpoint to start from."""
    needs: Needs = field(default_factory=Needs)
    """Files of this machine that nodes elsewhere must have, too."""
    purpose: str = "train"
    """``train``; ``evaluate``: the owner of the weights alone, with the checkpoint's; ``survey``: what all can do."""

    def links(self, spec: RunSpec) -> str:
        """Who talks to whom."""
        return "full" if self.purpose == "survey" else spec.algo.links


def roster(spec: RunSpec, purpose: str = "train") -> list[Member]:
    """The nodes of a run; the owner of the weights first."""
    return _all_nodes(spec)[: 1 if purpose == "evaluate" else None]


def _all_nodes(spec: RunSpec) -> list[Member]:
    workers = [
        Member(name=name, role="worker", rank=rank)
        for rank, name in enumerate(spec.cluster.worker_names[: spec.algo.max_workers])
    ]
    if spec.algo.has_server:
        return [Member(name=spec.cluster.server_name, role="server", rank=0), *workers]
    return workers


def moved(plain: Mapping[str, Any], paths: Mapping[str, str]) -> dict[str, Any]:
    """A spec with the values of the keys in ``paths`` (``data.path``) replaced: files lie elsewhere over there."""
    result = dict(plain)
    for key, value in paths.items():
        head, _, rest = key.partition(".")
        result[head] = moved(result[head], {rest: value}) if rest else value
    return result


class Controller:
    """Runs one run."""

    def __init__(self, spec: RunSpec, job: Job, sessions: Sessions, on_event: OnEvent) -> None:
        self.spec, self.job, self.sessions, self.on_event = spec, job, sessions, on_event
        self.roster = roster(spec, job.purpose)
        self.authority = Authority(job.run)
        self.supervisor = Supervisor(
            self.roster,
            Rules(
                survives_workers=spec.algo.survives_workers and spec.comms.separate_processes,
                max_restarts=spec.cluster.max_restarts,
                min_workers=spec.algo.min_workers if spec.algo.has_server else len(self.roster),
                start_timeout_s=spec.cluster.start_timeout_s,
                silence_s=max(spec.comms.lost_after_s, MIN_SILENCE_S) + 1.0,
            ),
        )
        self.handles: dict[str, Handle] = {}
        self.outcome: Outcome | None = None
        self._over = asyncio.Event()
        self._interrupts = 0
        self._view: dict[str, Any] | None = None
        self._starting: set[asyncio.Task[None]] = set()
        self._launched = False
        self._collecting: asyncio.Task[None] | None = None
        self._collect_again = False
        self._relay_ports: dict[tuple[str, str], int] = {}

    async def run(self) -> Outcome:
        """Start, supervise, end. Never raises for what a node does."""
        ticker: asyncio.Task[None] | None = None
        visitors: asyncio.Task[None] | None = None
        try:
            if await self._ready():
                self.carry_out(self.supervisor.begin(asyncio.get_running_loop().time()))
                ticker = self._spawn(self._tick(), "ticker")
                visitors = self._spawn(self._receive_guests(), "guests")
            await self._over.wait()
        finally:
            for task in filter(None, (ticker, visitors)):
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await task
            await self._end_all()
        assert self.outcome is not None
        return self.outcome

    async def _ready(self) -> bool:
        """Reach the machines; what is in the way is the run's end, and so is an interrupt in the meantime."""
        names = [member.name for member in self.roster]
        opening = asyncio.create_task(self.sessions.open(names, self.job.run, self.job.needs, self._prepared))
        over = asyncio.create_task(self._over.wait())
        await asyncio.wait((opening, over), return_when=asyncio.FIRST_COMPLETED)
        over.cancel()
        if not opening.done():
            opening.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            try:
                await opening
            except SmolclusterError as error:
                self.end(EndRun(status="failed", reason=str(error)))
        return self.outcome is None

    async def _receive_guests(self) -> None:
        """Start a node on each machine that joins now."""
        async for name, node in self.sessions.guests():
            cluster = self.spec.cluster
            nodes = {**(cluster.nodes or {}), name: node}
            # who was counted on stays as it was: batches and shares follow from that
            self.spec = dataclasses.replace(
                self.spec, cluster=dataclasses.replace(cluster, nodes=nodes, workers=cluster.worker_names)
            )
            rank = 1 + max(member.rank for member in self.roster if member.role == "worker")
            guest = Member(name=name, role="worker", rank=rank)
            self.roster.append(guest)
            self.carry_out(self.supervisor.admit(guest, asyncio.get_running_loop().time()))

    def _prepared(self, name: str, words: str) -> None:
        self.journal("prepared", peer=name, reason=words)

    def interrupt(self) -> None:
        """The person wants to stop: the first time politely, the second time at once."""
        self._interrupts += 1
        if self._interrupts > 1:
            for handle in self.handles.values():
                handle.session.kill()
        else:
            self.journal("stopping", reason="the last step is saved; a second Ctrl-C does not wait for that")
        self.end(EndRun(status="interrupted", reason="stopped by the user"))

    def end(self, end: EndRun) -> None:
        if self.outcome is None:
            self.outcome = Outcome(status=end.status, reason=end.reason)
            self.supervisor.ended = end
            self._over.set()

    # --- carrying out ------------------------------------------------------------------------------------

    def carry_out(self, actions: list[Action]) -> None:
        for action in actions:
            match action:
                case StartNode(name=name, joined=joined):
                    self._start(name, joined)
                case PublishView(view=view, addresses=addresses, reason=reason):
                    members = [dataclasses.asdict(member) for member in view.members]
                    self._view = {
                        "op": "view",
                        "generation": view.generation,
                        "members": members,
                        "addresses": addresses,
                        "curve_keys": self.authority.curve_keys(view.members),
                        "passive": [m.name for m in view.members if self.spec.cluster.node(m.name).dials_only],
                        "reason": reason,
                    }
                    for handle in self._running():
                        handle.session.send(self._view_of(handle.names[0], self._view))
                    self.journal("view", generation=view.generation, members=len(members), reason=reason)
                case KillNode(name=name, reason=reason):
                    self.journal("killed", peer=name, reason=reason)
                    if name in self.handles:
                        self.handles[name].session.kill()
                case EndRun():
                    self.end(action)

    def _start(self, name: str, joined: int) -> None:
        """Start the process of node ``name``; with comms=memory one process holds them all."""
        names = (name,) if self.spec.comms.separate_processes else tuple(m.name for m in self.roster)
        if len(names) > 1 and self._launched:
            return
        self._launched = True
        task = self._spawn(self._start_process(names, joined), f"starting {name}")
        self._starting.add(task)
        task.add_done_callback(self._starting.discard)

    def _spawn(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        """A task whose failure is the run's failure: what it should have noticed would otherwise go unnoticed."""

        def look(task: asyncio.Task[None]) -> None:
            if not task.cancelled() and (error := task.exception()) is not None:
                self.end(EndRun(status="failed", reason=f"controller: {name}: {type(error).__name__}: {error}"))

        task = asyncio.create_task(work, name=name)
        task.add_done_callback(look)
        return task

    async def _start_process(self, names: tuple[str, ...], joined: int) -> None:
        loop, limit = asyncio.get_running_loop(), self.spec.cluster.start_timeout_s
        try:
            async with asyncio.timeout(limit):
                session = await self.sessions.start(names[0])
        except (SmolclusterError, OSError) as error:
            why = f"no process within {limit:g} s" if isinstance(error, TimeoutError) else str(error)
            self.carry_out(self.supervisor.failed(names[0], f"could not be started: {why}"))
            self.carry_out(self.supervisor.exited(names[0], 1, loop.time()))
            return
        handle = Handle(names, session)
        self.handles.update(dict.fromkeys(names, handle))
        for name in names:
            self.journal("started", peer=name, pid=session.pid, joined=joined)
        session.send(self._start_command(names, joined))
        handle.tasks = [
            self._spawn(self._listen(handle), f"events of {names[0]}"),
            self._spawn(self._hear_errors(handle), f"errors of {names[0]}"),
        ]
        handle.tasks.append(self._spawn(self._await_exit(handle), f"end of {names[0]}"))
        if self._view is not None:
            session.send(self._view_of(names[0], self._view))

    def _view_of(self, name: str, view: Mapping[str, Any]) -> dict[str, Any]:
        """The view as node ``name`` needs it: where *it* reaches the others, and whom it passes bytes on to."""
        cluster, found = self.spec.cluster, dict(view["addresses"])
        if cluster.nodes is None:
            return dict(view)
        for other, where in view["addresses"].items():
            way = routes.route(cluster, name, other) if other != name else None
            if way is not None and way.via:
                port = self._relay_ports.get((way.via, other)) if way.via in found else None
                found[other] = [way.address, port] if port is not None else []
            elif way is not None and where:
                found[other] = [way.address or where[0], where[1]]
        on_to = self._relays_of(name)
        known = {target: view["addresses"].get(target) for target in on_to}
        relays = {target: [on_to[target], where[1]] for target, where in known.items() if where}
        return {**view, "addresses": found, "relays": relays}

    def _start_command(self, names: tuple[str, ...], joined: int) -> dict[str, Any]:
        by_name = {member.name: dataclasses.replace(member, joined=joined) for member in self.roster}
        place = self.sessions.place(names[0]) or Whereabouts(
            folder=str(self.job.folder), cache=str(self.job.cache), threads=self.job.threads, paths={}
        )
        return {
            "op": "start",
            "run": self.job.run,
            "spec": moved(self.spec.plain(), place.paths),
            "members": [dataclasses.asdict(by_name[name]) for name in names],
            "credentials": [dataclasses.asdict(self.authority.issue(name, joined)) for name in names],
            "roster": [dataclasses.asdict(member) for member in self.roster],
            "host": self._host_of(names[0]),
            "listens_on": routes.listens_on(self.spec.cluster.node(names[0])),
            "links": self.job.links(self.spec),
            "relays": sorted(self._relays_of(names[0])),
            "folder": place.folder,
            "cache": place.cache,
            "threads": place.threads,
            "uses": place.uses,
            "resume": place.paths.get("resume", self.job.resume),
            "purpose": self.job.purpose,
        }

    def _host_of(self, name: str) -> str:
        """Where the others reach a node, as far as one address can say that."""
        names = [member.name for member in self.roster]
        return routes.common_address(self.spec.cluster, name, names) or self.spec.cluster.node(name).host

    def _relays_of(self, name: str) -> dict[str, str]:
        cluster = self.spec.cluster
        return {} if cluster.nodes is None else routes.relays(cluster, name, cluster.pairs(self.job.links(self.spec)))

    def _running(self) -> list[Handle]:
        """Every process once, whatever number of nodes it holds."""
        return list({id(handle): handle for handle in self.handles.values()}.values())

    def _broadcast(self, command: Mapping[str, Any]) -> None:
        for handle in self._running():
            handle.session.send(command)

    # --- listening ---------------------------------------------------------------------------------------

    async def _listen(self, handle: Handle) -> None:
        async for event in handle.session.events():
            name = event.pop("of", handle.names[0])
            if name in handle.names:  # a node speaks for itself only
                self._take(name, event)

    def _take(self, name: str, event: dict[str, Any]) -> None:
        member = self.supervisor.nodes[name].member
        now = asyncio.get_running_loop().time()
        stamped = {**event, "node": name, "role": member.role, "rank": member.rank, "t": time.time()}
        self.on_event(stamped)
        self.supervisor.heard(name)
        match event["event"]:
            case "listening":
                ports = event.get("relays") or {}
                self._relay_ports.update({(name, target): int(port) for target, port in ports.items()})
                self.carry_out(self.supervisor.listening(name, event["address"]))
            case "finished":
                self.carry_out(self.supervisor.finished(name, now))
            case "failed" | "stopped":
                reason, final = str(event.get("reason")), event.get("final") is True
                self.carry_out(self.supervisor.failed(name, reason, final=final))
            case "alive":
                self.supervisor.computed(name, finite(event.get("cpu_s")) or 0.0)
            case "state" | "log":
                self.supervisor.got_on(name)
            case "ready":
                self.carry_out(self.supervisor.built(name))
            case "checkpoint":
                self._collect(name)
            case "silent" if self.job.purpose != "survey":  # which is to find such links, and goes on without them
                self.carry_out(self.supervisor.silent(name, str(event.get("peer")), str(event.get("reason"))))

    async def _hear_errors(self, handle: Handle) -> None:
        member = self.supervisor.nodes[handle.names[0]].member
        async for line in handle.session.errors():
            event = {"event": "log", "level": "WARNING", "logger": "stderr", "message": line, "step": None}
            self.on_event({**event, "node": member.name, "role": member.role, "rank": member.rank, "t": time.time()})

    async def _await_exit(self, handle: Handle) -> None:
        """After the end of a process: first all it has said, then what follows from its end."""
        code = await handle.session.wait()
        await asyncio.wait(handle.tasks[:2], timeout=OUTPUT_S)
        handle.session.close()
        how, now = handle.session.how(code), asyncio.get_running_loop().time()
        for name in handle.names:
            if self.handles.get(name) is handle:
                del self.handles[name]
            state = self.supervisor.nodes[name]
            lost = not (state.phase.value == "finished" and code == 0)
            if lost and self.outcome is None:
                self._take(name, {"event": "state", "state": "lost", "detail": self.supervisor.loss(name, how)})
            self.carry_out(self.supervisor.exited(name, code, now, how=how))

    async def _tick(self) -> None:
        loop = asyncio.get_running_loop()
        next_ping = loop.time()
        while True:
            now = loop.time()
            self.carry_out(self.supervisor.tick(now))
            if now >= next_ping:
                self._broadcast({"op": "ping"})
                next_ping = now + PING_S
            await asyncio.sleep(TICK_S)

    def journal(self, kind: str, **fields: Any) -> None:
        """A line of events.jsonl in the controller's own name."""
        event = {"event": "journal", "kind": kind, "step": None, **fields}
        self.on_event({**event, "node": "controller", "role": "controller", "rank": 0, "t": time.time()})

    # --- what nodes elsewhere have saved -----------------------------------------------------------------

    def _collect(self, name: str) -> None:
        """Fetch a new checkpoint; while one is being fetched, the next one waits for that."""
        if self.sessions.place(name) is None:
            return
        if self._collecting is None or self._collecting.done():
            self._collecting = asyncio.create_task(self._fetch(name, everything=False), name=f"fetching from {name}")
        else:
            self._collect_again = True

    async def _fetch(self, name: str, *, everything: bool) -> None:
        while True:
            self._collect_again = False
            try:
                await self.sessions.collect(name, self.job.folder, everything=everything)
            except (SmolclusterError, OSError) as error:
                self.journal("not fetched", peer=name, reason=str(error))
            if not self._collect_again:
                return

    # --- ending ------------------------------------------------------------------------------------------

    async def _end_all(self) -> None:
        """Stop whoever is left: the owner of the weights first, so that it can save; then the others; then kill."""
        reason = self.outcome.reason if self.outcome else "the controller failed"
        for task in self._starting:
            task.cancel()
        await asyncio.gather(*self._starting, return_exceptions=True)
        limit = self.spec.cluster.stop_timeout_s
        owner = self.handles.get(self.roster[0].name)
        if owner is not None and len(owner.names) < len(self.roster):
            owner.session.send({"op": "stop", "reason": reason})
            await self._ended([owner], limit)
        self._broadcast({"op": "stop", "reason": reason})
        left = list(self.handles.values())
        await self._ended(left, 1.0 if owner is not None else limit)
        for handle in self.handles.values():
            handle.session.kill()
        await self._ended(list(self.handles.values()), None)
        if self._collecting is not None:
            await self._collecting
        if self.sessions.place(self.roster[0].name) is not None:
            await self._fetch(self.roster[0].name, everything=True)
        await self.sessions.close()

    async def _ended(self, handles: list[Handle], within: float | None) -> None:
        tasks = [handle.tasks[-1] for handle in handles if handle.tasks]
        if tasks:
            await asyncio.wait(tasks, timeout=within)

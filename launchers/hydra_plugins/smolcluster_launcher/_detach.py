"""``hydra.launcher.detach=true``: starts a run and leaves it going on the machine of its server.

The machines are reached, looked at and given what they lack as for any run. Then the process that conducts the run is
started beside the server (``_conductor.py``), and on every other machine a keeper that joins it there
(``smolcluster.node.keeper``): from then on the machines need no connection from here, and no keys among themselves.
Until all nodes take part everything hangs on this process; then it says so, and lets go.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra_plugins.smolcluster_launcher._bundle import Parcel
from hydra_plugins.smolcluster_launcher._here import Here, importable
from hydra_plugins.smolcluster_launcher._leavable import joins_by_hand, unfit
from hydra_plugins.smolcluster_launcher._left import Left
from hydra_plugins.smolcluster_launcher._look import look
from hydra_plugins.smolcluster_launcher._mirror import fetch_run, turn
from hydra_plugins.smolcluster_launcher._order import LOG, SILENT_S, Order, Ready
from hydra_plugins.smolcluster_launcher._process import SSHSession, first_word
from hydra_plugins.smolcluster_launcher._reached import HostFailed, Reached
from hydra_plugins.smolcluster_launcher._session import ClusterSessions, Options, Remote, target_of, typed_there
from hydra_plugins.smolcluster_launcher._ssh import Machines

from smolcluster.cluster.controller import Job, Outcome, roster
from smolcluster.cluster.session import Say
from smolcluster.errors import ConfigError, RunFailed
from smolcluster.pipeline.job import Origin, Place, Result, infos
from smolcluster.tracking.console import console_for
from smolcluster.tracking.rundir import RunReader
from smolcluster.tracking.tracker import RunInfo

if TYPE_CHECKING:
    from smolcluster.spec.needs import Needs
    from smolcluster.spec.run import RunSpec

CONDUCTOR = "hydra_plugins.smolcluster_launcher._conductor"
PING_S = 5.0
LEAVE_S = 30.0
"""A run that is called off before it was left has that time to end."""


class ReadySessions(ClusterSessions):
    """Makes the machines of a run ready, this one among them, and starts nothing on them."""

    def __init__(self, spec: RunSpec, options: Options, machines: Machines, needs: Needs) -> None:
        super().__init__(spec, options, machines, None)
        self.needs = needs

    def remote(self, name: str) -> Remote:
        return self._remote[name]

    def _is_far(self, name: str) -> bool:
        return True

    def _is_manual(self, name: str) -> bool:
        return False  # those are not among the machines that are made ready

    async def _prepare(self, name: str, parcels: Mapping[str, Parcel], say: Say) -> None:
        node = self.spec.cluster.node(name)
        if not node.is_here:
            await super()._prepare(name, parcels, say)
            return
        here = Here()
        report = await look(here, name, replace(node, python=sys.executable), [])
        environment = {"PYTHONPATH": os.pathsep.join(importable())}
        told = f"{report.system} {report.machine}, {report.cores} cores, this machine"
        say(name, told)
        self._remote[name] = Remote(
            machine=here,
            report=report,
            python=sys.executable,
            environment=environment,
            paths={key: str(path) for key, path in self.needs.paths.items()},
            told=told,
        )

    def _machine(self, name: str, node: Any) -> Reached:
        return self.machines.at(target_of(name, node))


class Detach:
    """Implements :class:`smolcluster.pipeline.job.Leave`."""

    def __init__(self, options: Options, machines: Machines, connect_timeout_s: float) -> None:
        self.options, self.machines, self.connect_timeout_s = options, machines, connect_timeout_s

    def __call__(self, spec: RunSpec, place: Place, job: Job) -> Result:
        names = [member.name for member in roster(spec, job.purpose)]
        if problems := list(unfit(spec, names, self.options)):
            raise ConfigError(problems)
        return asyncio.run(Departure(self, spec, place, job, names).leave())


class Departure:
    """One run on its way."""

    def __init__(self, by: Detach, spec: RunSpec, place: Place, job: Job, names: Sequence[str]) -> None:
        self.options, self.machines, self.connect_timeout_s = by.options, by.machines, by.connect_timeout_s
        self.spec, self.place, self.job, self.names = spec, place, job, list(names)
        self.owner = self.names[0]
        self.at_home = spec.cluster.node(self.owner).is_here
        self.console = console_for(sys.stdout)
        self.ready: dict[str, Remote] = {}
        self.told: list[tuple[str, str]] = []
        self.keepers: list[SSHSession] = []
        self.tasks: set[asyncio.Task[None]] = set()
        self.obstacles: list[str] = []
        self.over: Mapping[str, Any] = {}

    async def leave(self) -> Result:
        """Start the run and let go of it when all nodes take part. One that ends before is one that has ended."""
        spec, place, purpose = self.spec, self.place, self.job.purpose
        self.console.start(
            RunInfo.of(spec, path=place.folder, run_id=self.job.run, nodes=infos(spec, purpose), purpose=purpose)
        )
        try:
            await self.make_ready()
            session, detached = await self.start_conductor(), False
            try:
                detached = await self.see_off(session)
            finally:
                await self.settle(session, detached=detached)
        except BaseException:
            self.console.stop()
            raise
        return self.left() if detached else await self.ended()

    async def make_ready(self) -> None:
        if self.spec.cluster.is_local:
            return
        sessions = ReadySessions(self.spec, self.options, self.machines, self.job.needs)
        names = [name for name in self.names if not joins_by_hand(self.spec, name, self.options)]
        await sessions.open(names, self.job.run, self.job.needs, self.say)
        self.ready = {name: sessions.remote(name) for name in names}
        if self.ready[self.owner].report.system == "Windows":
            raise HostFailed(f"{self.owner}: is a Windows machine: no run can be left there, only joined by it")

    def say(self, name: str, words: str) -> None:
        self.told.append((name, words))
        self.console.note(f"{name}: {words}")

    # --- over there --------------------------------------------------------------------------------------

    @property
    def remote(self) -> Remote | None:
        """The machine of the server; None where it is this one, as it stands."""
        return None if self.at_home else self.ready[self.owner]

    @property
    def machine(self) -> Reached:
        return Here() if self.remote is None else self.remote.machine

    @property
    def folder(self) -> str:
        """The run's directory on the machine of the server."""
        return str(self.place.folder) if self.remote is None else f"{self.remote.report.workdir}/runs/{self.job.run}"

    async def start_conductor(self) -> SSHSession:
        remote = self.remote
        python = sys.executable if remote is None else remote.python
        directory = os.getcwd() if remote is None else remote.report.workdir
        environment = {"PYTHONPATH": os.pathsep.join(importable())} if remote is None else remote.environment
        session = await self.start(self.machine, [python, "-m", CONDUCTOR], directory, environment)
        session.pid = await self.greeted(session, self.owner)
        session.send(asdict(self.order()))
        return session

    async def start(
        self, machine: Reached, argv: Sequence[str], directory: str, environment: Mapping[str, str]
    ) -> SSHSession:
        start = partial(machine.start, list(argv), directory=directory, environment=environment)
        return await SSHSession.begin(lambda descriptors, on_end: start(descriptors, on_end))

    async def greeted(self, session: SSHSession, name: str) -> int:
        try:
            return await first_word(session, name, self.spec.cluster.start_timeout_s)
        except BaseException:
            session.close()
            raise

    def order(self) -> Order:
        job, remote = self.job, self.remote
        return Order(
            spec=self.spec.plain(),
            run=job.run,
            folder=self.folder,
            cache=str(job.cache) if remote is None else f"{remote.report.workdir}/cache",
            threads=job.threads if remote is None else self.spec.cluster.threads_per_node or remote.report.cores,
            purpose=job.purpose,
            resume=job.resume,
            overrides=list(self.place.overrides),
            number=self.place.number,
            home=None if remote is None else str(self.place.folder),
            origin=asdict(Origin.here(self.spec)),
            owner=self.owner,
            paths={} if remote is None else remote.paths,
            modules=[] if remote is None else list(modules_at(remote, job.needs)),
            uses=None if remote is None else list(remote.uses),
            nodes={name: asdict(Ready.of(ready)) for name, ready in self.ready.items() if name != self.owner},
            told=[words for words in self.told if words[0] == self.owner or words[0] not in self.ready],
            options=asdict(replace(self.options, env=None, wheelhouse=None)),
            environment={key: value for key, value in os.environ.items() if key.startswith("WANDB_")},
        )

    # --- until it goes -----------------------------------------------------------------------------------

    async def see_off(self, session: SSHSession) -> bool:
        """Bring the other machines, and let go when all nodes take part; False where the run has ended before."""
        pinging, going = asyncio.create_task(keep_saying(session, {"op": "ping"}), name="pings"), False
        try:
            async for event in heard(session, self.owner):
                match own(event):
                    case "invite":
                        self._spawn(self.bring(session, event["name"], event["word"]))
                    case "detached":
                        return True
                    case "over":
                        self.over = event
                    case "note":
                        self.console.note(event["message"])
                    case _ if event.get("kind") == "prepared":
                        continue  # told when it was done
                    case _:
                        self.console.on_event(event)
                        if event.get("kind") == "view" and not (self.obstacles or going):
                            going = True
                            self.known().write(self.place.folder)
                            session.send({"op": "go"})
        finally:
            pinging.cancel()
        return False

    def _spawn(self, work: Any) -> None:
        task = asyncio.create_task(work)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    async def bring(self, conductor: SSHSession, name: str, word: str) -> None:
        """Let a machine join; what is in the way of that is in the way of the run."""
        ready = self.ready.get(name)
        if ready is None:
            self.console.note(f"{name}: {typed_there(word)}")
            return
        argv, directory = [ready.python, "-m", "smolcluster.node.keeper"], ready.report.workdir
        try:
            keeper = await self.start(ready.machine, argv, directory, ready.environment)
            self.keepers.append(keeper)
            keeper.send({"word": word, "log": f"{directory}/runs/{self.job.run}/keeper-{name}.log"})
            await self.greeted(keeper, name)
        except RunFailed as error:
            self.obstacles.append(str(error))
            conductor.send({"op": "stop"})

    async def settle(self, session: SSHSession, *, detached: bool) -> None:
        """Close what is open to the run. Where it has not been left, it ends by that: wait for it."""
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        if not detached:
            session.send({"op": "stop"})
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LEAVE_S):
                    await session.wait()
        for each in (*self.keepers, session):
            each.close()

    def known(self) -> Left:
        remote = self.remote
        return Left(
            run=self.job.run,
            node=self.owner,
            folder=self.folder,
            python=sys.executable if remote is None else remote.python,
            target=None if remote is None else target_of(self.owner, self.spec.cluster.node(self.owner)),
            connect_timeout_s=self.connect_timeout_s,
        )

    # --- what it comes to --------------------------------------------------------------------------------

    def left(self) -> Result:
        self.console.stop()
        reason = f"the run goes on without this command: {self.known().where}"
        return self.result({"status": "detached", "reason": reason})

    async def ended(self) -> Result:
        """A run that has ended before it was left: its records are here as of any other."""
        remote, summary = self.remote, None
        if not self.obstacles:
            if remote is not None:
                async with turn(self.place.folder):
                    await fetch_run(remote.machine, remote.python, self.folder, self.place.folder)
            summary = RunReader(self.place.folder).summary()
        self.console.stop(summary)
        if summary is None:
            reason = "\n".join(self.obstacles) or self.over.get("reason")
            died = f"{self.owner}: the process that conducted the run has died (see {self.folder}/{LOG})"
            raise RunFailed(reason or died)
        return self.result(summary)

    def result(self, summary: Mapping[str, Any]) -> Result:
        status = summary["status"]
        return Result(
            outcome=Outcome(status="done" if status == "detached" else status, reason=summary["reason"]),
            folder=self.place.folder,
            summary=summary,
            overrides=self.place.overrides,
            number=self.place.number,
        )


async def keep_saying(session: SSHSession, word: Mapping[str, Any]) -> None:
    """Let a process know that somebody is here."""
    while True:
        session.send(word)
        await asyncio.sleep(PING_S)


async def heard(session: SSHSession, name: str) -> AsyncIterator[dict[str, Any]]:
    """What a process says that says something every few seconds. HostFailed where it does not."""
    events = session.events()
    while True:
        try:
            async with asyncio.timeout(SILENT_S):
                event = await anext(events)
        except StopAsyncIteration:
            return
        except TimeoutError:
            raise HostFailed(f"{name} does not answer any more") from None
        if own(event) != "alive":
            yield event


def own(event: Mapping[str, Any]) -> str:
    """The kind of an event that the process itself has to tell; empty where it passes on what a node has said."""
    return "" if "node" in event else str(event["event"])


def modules_at(remote: Remote, needs: Needs) -> Iterable[str]:
    """Where the person's own modules lie on a machine that has been made ready."""
    for path in needs.modules:
        yield f"{remote.report.workdir}/files/{Parcel.of(Path(path)).name}/{path.name}"

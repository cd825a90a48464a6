"""``attach=<run>`` and ``stop=<run>``: back to a run that was left going: its live view, and its artefacts.

A small process on the run's machine (``_follow.py``) tells what its records say; what is shown here is shown by the
same console as of any run. Any number of people may watch at the same time.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

from hydra_plugins.smolcluster_launcher import _follow
from hydra_plugins.smolcluster_launcher._detach import heard, keep_saying, own
from hydra_plugins.smolcluster_launcher._left import Left
from hydra_plugins.smolcluster_launcher._mirror import fetch_run, turn
from hydra_plugins.smolcluster_launcher._order import LOG
from hydra_plugins.smolcluster_launcher._process import SSHSession
from hydra_plugins.smolcluster_launcher._reached import HostFailed, Reached
from hydra_plugins.smolcluster_launcher._ssh import Machines

from smolcluster.cluster.controller import Outcome
from smolcluster.errors import RunFailed, SmolclusterError
from smolcluster.pipeline.job import Place, heeded, infos, reason_with_checkpoint
from smolcluster.spec.build import build
from smolcluster.tracking.console import Console, console_for
from smolcluster.tracking.rundir import PLOT, RunReader
from smolcluster.tracking.tables import show, summary_table
from smolcluster.tracking.tracker import RunInfo

REMOVE = "import shutil, sys; shutil.rmtree(sys.argv[1])"
CLEAR_S = 10.0
"""Longest time to wait for a run's folder to go."""


class Visit:
    """One look at a run that was left going."""

    def __init__(self, folder: Path, left: Left, machines: Machines) -> None:
        self.folder, self.left = folder, left
        self.machine: Reached = left.reach(machines)
        self.console: Console = console_for(sys.stdout)
        self._late = 0.0
        """Seconds that the clock over there is behind ours."""

    async def pay(self, *, stop: bool) -> Mapping[str, Any]:
        """Watch until the run is over or somebody types Ctrl-C, fetch what there is, and return the run's summary:
        of a run that goes on, with the status ``detached``."""
        if (known := self.all_is_here()) is not None:
            sys.stdout.write("the run is over, and all of it is here\n")
            show(sys.stdout, summary_table(known))
            return known
        await self.machine.open()
        leaving = asyncio.Event()
        async with self.follower() as session:
            with on_interrupt(leaving):
                if stop:
                    session.send({"op": "stop"})
                became = await self.watch(session, leaving)
        return await self.depart(became)

    def all_is_here(self) -> dict[str, Any] | None:
        """The summary of a run that is over and fetched; it is the last thing that is."""
        conducted = self.left.target is None and (self.folder / _follow.HELD).exists()
        return None if conducted else RunReader(self.folder).summary()

    @asynccontextmanager
    async def follower(self) -> AsyncIterator[SSHSession]:
        script = Path(_follow.__file__).read_text(encoding="utf-8")
        argv = [self.left.python, "-c", script, self.left.folder]
        start = partial(self.machine.start, argv, directory=None, environment={})
        session = await SSHSession.begin(lambda descriptors, on_end: start(descriptors, on_end))
        staying = asyncio.create_task(keep_saying(session, {}), name="pings")
        try:
            yield session
        finally:
            staying.cancel()
            session.close()

    async def watch(self, session: SSHSession, leaving: asyncio.Event) -> str:
        """Show what happens; what became of the run, or ``going`` where the watcher leaves first."""
        showing = asyncio.create_task(self.show(session), name="live view")
        gone = asyncio.create_task(leaving.wait(), name="Ctrl-C")
        try:
            await asyncio.wait((showing, gone), return_when=asyncio.FIRST_COMPLETED)
            return showing.result() if showing.done() else "going"
        finally:
            for task in (showing, gone):
                task.cancel()
            await asyncio.gather(showing, gone, return_exceptions=True)

    async def show(self, session: SSHSession) -> str:
        """What became of the run. RunFailed where that is not heard of any more."""
        try:
            async for event in heard(session, self.left.node):
                if own(event) == "over":
                    return str(event["became"])
                self.take(event)
            why = f"{self.left.node}: watching has ended there ({await said(session)})"
        except HostFailed as error:
            why = str(error)
        raise RunFailed(f"{why}; as far as is known from here, the run goes on: attach again")

    def take(self, event: Mapping[str, Any]) -> None:
        match own(event):
            case "hello":
                self._late = time.time() - event["time"]
            case "record":
                self.console.start(self.run(event["record"]), began=event["began"] + self._late)
            case _ if event["event"] == "note":
                self.console.note(event["message"])
            case _:
                self.console.on_event({**event, "t": (event.get("t") or 0.0) + self._late})

    def run(self, record: Mapping[str, Any]) -> RunInfo:
        """The run as its record has it, in the directory that it has here."""
        spec, purpose = build(record["spec"]), record["purpose"]
        nodes = infos(spec, purpose)
        return RunInfo.of(spec, path=self.folder, run_id=record["run_id"], nodes=nodes, purpose=purpose)

    async def depart(self, became: str) -> Mapping[str, Any]:
        """Fetch what there is, and say what it comes to. RunFailed where the run has ended without an end."""
        left = self.left
        failure = await self.fetch(became)
        summary = self.all_is_here()
        self.console.stop(summary)
        if summary is not None:
            draw(self.folder, summary)
            return summary
        if failure:
            raise RunFailed(failure)
        if became == "going":
            return {"status": "detached", "reason": f"the run goes on: {left.where}; what it has saved so far is here"}
        log = f"{left.folder}/{LOG}"
        died = f"{left.node}: the process that conducted the run has died (see {log} there)"
        raise RunFailed(reason_with_checkpoint(Outcome(status="failed", reason=died), Place(folder=self.folder)))

    async def fetch(self, became: str) -> str:
        """Bring what is there, and leave nothing there of a run that is over; why that is not possible, or empty."""
        left = self.left
        if became == "missing":
            return f"{left.node}: {left.folder} is not there any more: the run cannot be fetched"
        if left.target is None:
            return ""
        try:
            async with turn(self.folder):
                if self.all_is_here():
                    return ""  # somebody else has fetched it a moment before
                await fetch_run(self.machine, left.python, left.folder, self.folder)
                if self.all_is_here():
                    await self.clear()
        except (SmolclusterError, OSError) as error:
            return f"what {left.where} has could not be fetched: {error}"
        return ""

    async def clear(self) -> None:
        """Leave nothing of the run there."""
        argv = [self.left.python, "-c", REMOVE, self.left.folder]
        with contextlib.suppress(SmolclusterError):  # who does not answer now keeps it
            await self.machine.run(argv, silent_s=CLEAR_S)


@contextlib.contextmanager
def on_interrupt(leaving: asyncio.Event) -> Iterator[None]:
    """Ctrl-C asks to leave; a second one does not wait."""

    def leave() -> None:
        if leaving.is_set():
            raise KeyboardInterrupt
        leaving.set()

    with heeded(leave):
        yield


async def said(session: SSHSession) -> str:
    """Why a process that should still be talking is not."""
    words = [line async for line in session.errors()]
    return words[-1] if words else session.how(await session.wait())


def draw(folder: Path, summary: Mapping[str, Any]) -> None:
    """The picture of a run whose machine has nothing to draw with."""
    if (folder / PLOT).exists() or summary.get("purpose") != "train":
        return
    from smolcluster.tracking.plots import loss_png

    reader = RunReader(folder)
    title = f"{summary['algo']} · {summary['model']} on {summary['data']}"
    loss_png(reader.metrics(), reader.evaluations(), folder / PLOT, title)


def visit(folder: Path, *, key: str, stop: bool) -> Mapping[str, Any]:
    """Come back to the run that ``folder`` is the directory of; ``key`` is the word that asked for it.

    Returns the run's summary, or one with the status ``detached`` where it goes on. ConfigError, or RunFailed, says why
    there is none.
    """
    left = Left.read(folder, key)
    machines = Machines(left.connect_timeout_s)
    try:
        return asyncio.run(Visit(folder, left, machines).pay(stop=stop))
    finally:
        machines.close()

"""``python -m hydra_plugins.smolcluster_launcher._conductor``: conducts one detached run, beside its server.

Started by the launcher, which says in one JSON line on standard input what is to be done (``Order``), hears on standard
output what happens, and brings the other machines: for each of them the conductor hands out a word to join with. Until
the launcher says ``go`` the two live and die together; from then on nothing here depends on it any more. What people
want to know afterwards is in files of the run's directory, where ``_follow.py`` looks.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import threading
import time
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from hydra_plugins.smolcluster_launcher._bundle import Parcel
from hydra_plugins.smolcluster_launcher._follow import HELD, LIVE, STOP
from hydra_plugins.smolcluster_launcher._order import LOG, SILENT_S, Order, Ready
from hydra_plugins.smolcluster_launcher._session import ClusterSessions, Options
from hydra_plugins.smolcluster_launcher._ssh import Machines
from hydra_plugins.smolcluster_launcher._tmux import nodes_here

from smolcluster.cluster import routes
from smolcluster.cluster.session import Say, Sessions, Whereabouts, opener
from smolcluster.errors import SmolclusterError
from smolcluster.node.control import Events, split_streams
from smolcluster.node.keeper import stay
from smolcluster.pipeline.job import Origin, Result, see_through
from smolcluster.spec.build import build
from smolcluster.spec.needs import Needs
from smolcluster.tracking.fields import text
from smolcluster.tracking.jsonl import dumps
from smolcluster.tracking.tracker import Event, RunInfo

if TYPE_CHECKING:
    from smolcluster.spec.run import RunSpec

LOOK_S = 0.2
LIVE_S = 0.5
"""How often the file of what no record keeps is written."""
MAX_ERRORS = 50
"""Errors that nodes have logged, kept for people who come later; all of them are in logs/."""


class GateSessions(ClusterSessions):
    """The sessions of a detached run: one node on this machine, all others on machines that join through a gate."""

    def __init__(self, spec: RunSpec, order: Order, local: Sessions, invite: Say) -> None:
        super().__init__(spec, Options(**order.options), Machines(1.0), local)
        self.order, self._hand_over = order, invite
        self._prepared = {name: Ready(**ready) for name, ready in order.nodes.items()}
        self._by_hand: set[str] = set()

    async def open(self, names: Sequence[str], run: str, needs: Needs, say: Say) -> None:
        for name, words in self.order.told:
            say(name, words)
        self._by_hand = set(names) - {self.order.owner, *self._prepared}
        await super().open(names, run, needs if self._by_hand else Needs(), say)

    def place(self, name: str) -> Whereabouts | None:
        order = self.order
        if name != order.owner:
            return super().place(name)
        return Whereabouts(
            folder=order.folder, cache=order.cache, threads=order.threads, paths=order.paths, uses=order.uses
        )

    def _is_far(self, name: str) -> bool:
        return name != self.order.owner

    def _is_manual(self, name: str) -> bool:
        return True

    def _differences(self) -> Sequence[str]:
        return ()  # the launcher has compared them with its own machine

    def _gate_host(self, name: str) -> str:
        address = routes.shared(self.spec.cluster.node(name), self.spec.cluster.node(self.order.owner))
        assert address is not None  # or the launcher would have refused
        return address

    @property
    def _guests_gate_host(self) -> str:
        host: str = self.spec.cluster.node(self.order.owner).host
        return host

    def _hand_out(self, name: str, word: str, say: Say) -> None:
        self._hand_over(name, word)

    @property
    def _join_limit(self) -> tuple[float, str]:
        return super()._join_limit if self._by_hand else (self.spec.cluster.start_timeout_s, "cluster.start_timeout_s")

    async def _prepare(self, name: str, parcels: Mapping[str, Parcel], say: Say) -> None:
        ready = self._prepared.get(name)
        if ready is None:
            await super()._prepare(name, parcels, say)
            return
        assert self._gate is not None
        self._remote[name] = ready.joined(self._gate.machine(name))
        say(name, ready.told)


class Window:
    """Implements :class:`smolcluster.tracking.console.Console`: what nobody may be there to see.

    Until ``go``, the launcher hears everything. What no record keeps (each node's latest measurements, errors that were
    logged) is in one small file, written anew twice a second at most.
    """

    def __init__(self, folder: Path, report: Events) -> None:
        self._path, self._report = folder / LIVE, report
        self._nodes: dict[str, Event] = {}
        self._errors: list[tuple[int, Event]] = []
        self._num_errors, self._written = 0, 0.0
        self.heard = True
        """The launcher still listens."""

    def start(self, run: RunInfo, *, began: float | None = None) -> None:
        return

    def on_event(self, event: Event) -> None:
        self._tell(event)
        kind = event.get("event")
        if kind == "node":
            self._nodes[text(event.get("node"))] = event
        elif kind == "log" and text(event.get("level")).upper() in ("ERROR", "CRITICAL"):
            self._num_errors += 1
            self._errors = [*self._errors[1 - MAX_ERRORS :], (self._num_errors, event)]
        else:
            return
        if time.monotonic() - self._written >= LIVE_S:
            self._write()

    def note(self, words: str) -> None:
        self._tell({"event": "note", "message": words})

    def stop(self, summary: Mapping[str, Any] | None = None) -> None:
        self._write()

    def _tell(self, event: Event) -> None:
        if self.heard:
            fields = dict(event)
            self._report(fields.pop("event"), **fields)

    def _write(self) -> None:
        self._written = time.monotonic()
        beside = self._path.with_name(f"{LIVE}.part")
        try:
            beside.write_text(dumps({"nodes": self._nodes, "errors": self._errors}))
            beside.replace(self._path)
        except OSError:  # the records are in the same folder, and whoever writes those says what is wrong with it
            beside.unlink(missing_ok=True)


class Leash:
    """What ties the run to the launcher until ``go``, and to nobody afterwards. Heeded in a thread."""

    def __init__(self, lines: IO[bytes], report: Events, window: Window, stop: Path) -> None:
        self._lines, self._report, self._window, self._stop = lines, report, window, stop
        self._heard, self._loose, self._pulled = time.monotonic(), False, False
        threading.Thread(target=self._listen, name="launcher", daemon=True).start()

    async def until_stop(self) -> None:
        """Come back when the run shall stop: somebody wants it, or the launcher is gone before it said ``go``."""
        while not (self._stop.exists() or self._pulled or self._forgotten):
            await asyncio.sleep(LOOK_S)

    @property
    def _forgotten(self) -> bool:
        return not self._loose and time.monotonic() - self._heard > SILENT_S

    def _listen(self) -> None:
        while (line := self._lines.readline()).endswith(b"\n"):
            self._heard = time.monotonic()
            match json.loads(line)["op"]:
                case "ping":
                    self._report("alive")
                case "go":
                    self._let_go()
                    return
                case "stop":
                    break
        self._pulled = True

    def _let_go(self) -> None:
        self._loose, self._window.heard = True, False
        self._report("detached")
        self._report.close()
        self._lines.close()


def main() -> None:
    commands, events = split_streams()
    report, lines = Events(events), os.fdopen(commands, "rb")
    report("hello", pid=os.getpid())
    line = lines.readline()
    if not line.endswith(b"\n"):
        os._exit(1)  # the launcher was gone before it said what for
    order = Order(**json.loads(line))
    code, folder = 1, Path(order.folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        stay(str(folder / LOG))
        held = hold(folder)
        window = Window(folder, report)
        result = conduct(order, window, Leash(lines, report, window, folder / STOP), report)
        code = result.outcome.exit_code
        report("over", status=result.outcome.status, reason=result.outcome.reason)
        for name in (LIVE, STOP, HELD):
            (folder / name).unlink(missing_ok=True)
        held.close()
    except (SmolclusterError, OSError) as error:
        traceback.print_exc()
        report("over", status="failed", reason=str(error))
    report.close()
    sys.stderr.flush()
    os._exit(code)


def hold(folder: Path) -> IO[str]:
    """Be the one who conducts the run in that folder, for as long as this process lives."""
    import fcntl  # Windows has none, and imports this module for what it says of orders

    file = (folder / HELD).open("w")
    fcntl.flock(file, fcntl.LOCK_EX)
    file.write(f"{os.getpid()}\n")
    file.flush()
    return file


def conduct(order: Order, window: Window, leash: Leash, report: Events) -> Result:
    os.environ.update(order.environment)
    spec = build(order.spec)
    if not spec.cluster.is_local:

        def invite(name: str, word: str) -> None:
            report("invite", name=name, word=word)

        def make(spec: RunSpec, threads: int) -> Sessions:
            return GateSessions(spec, order, nodes_here(threads, in_tmux=bool(order.options["tmux"])), invite)

        opener.set(make)
    return see_through(spec, order.place(), order.job(), Origin(**order.origin), window, leash.until_stop)


if __name__ == "__main__":
    main()

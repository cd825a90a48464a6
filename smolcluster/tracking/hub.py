"""Where a run's events come in and are handed on: to its directory, summary, logs, console and trackers.

Nothing that breaks behind this point reaches the run. A tracker, or the console, that raises is reported once and
dropped; the directory, the logs and the summary get every further event all the same (a full disk may have room again).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from smolcluster.spec.run import RunSpec
from smolcluster.tracking.console import Console
from smolcluster.tracking.logs import LogSink, stderr_event
from smolcluster.tracking.rundir import PLOT, RunDirectory, RunReader
from smolcluster.tracking.summary import Status, Summary
from smolcluster.tracking.tracker import Event, NodeInfo, RunInfo, Tracker, window

logger = logging.getLogger(__name__)
NEVER_DROPPED = frozenset({"directory", "summary", "logs"})
CONTROLLER = {"node": "controller", "role": "controller", "rank": 0}
"""What events say that come from this process."""


class Tracking:
    """Follows one run, from one thread: start, any number of events, finish.

    ``trackers`` are by name; ``plot=False`` leaves out ``loss.png`` (for runs that do not train).
    """

    def __init__(
        self,
        run: RunInfo,
        *,
        console: Console,
        trackers: Mapping[str, Tracker],
        logs: LogSink,
        plot: bool = True,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.run, self.summary = run, Summary(run, started=clock())
        self._directory, self._logs, self._console = RunDirectory(run.path), logs, console
        self._trackers, self._plot, self._clock = dict(trackers), plot, clock
        self._receivers: dict[str, Callable[[Event], None]] = {
            "directory": self._directory.on_event,
            "summary": self.summary.on_event,
            "logs": logs.on_event,
            "console": console.on_event,
            **{name: tracker.on_event for name, tracker in trackers.items()},
        }
        self._reported: set[str] = set()
        self._result: dict[str, Any] | None = None

    @classmethod
    def of(cls, spec: RunSpec, run: RunInfo, console: Console, *, plot: bool = True) -> Tracking:
        """Tracking with the tracker and the logs that ``spec`` asks for."""
        name = spec.choices.get("tracking", type(spec.tracking).__name__)
        make = window.get()
        shown = {} if make is None else {"window": make(run)}
        trackers = {**shown, name: spec.tracking.tracker(run)}
        return cls(run, console=console, trackers=trackers, logs=spec.logging.sink(run), plot=plot)

    def start(self, record: Mapping[str, Any]) -> None:
        """``record`` becomes ``run_spec.json``."""
        self._guard("directory", lambda: self._directory.write_spec(record))
        self._guard("console", lambda: self._console.start(self.run))
        for name, tracker in list(self._trackers.items()):
            self._guard(name, partial(self._begin, tracker, record))

    def rewrite(self, record: Mapping[str, Any]) -> None:
        """More is known now: ``record`` becomes ``run_spec.json`` instead."""
        self._guard("directory", lambda: self._directory.write_spec(record))

    def on_event(self, event: Event) -> None:
        """``event`` as the controller has stamped it; ``t`` is added where it is missing."""
        if "t" not in event:
            event = {**event, "t": self._clock()}
        for name, receive in tuple(self._receivers.items()):
            try:
                receive(event)
            except Exception as error:
                logger.debug("%s has failed", name, exc_info=True)
                self._failed(name, error)

    def on_stderr(self, node: NodeInfo, line: str) -> None:
        """A line that a node's process wrote to its standard error."""
        self.on_event(stderr_event(node, line, self._clock()))

    def note(self, words: str) -> None:
        """Something that a person should know: shown, and kept in ``events.jsonl``."""
        self._guard("console", lambda: self._console.note(words))
        record = {"event": "note", **CONTROLLER, "t": self._clock(), "message": words}
        self._guard("directory", lambda: self._directory.on_event(record))

    def finish(
        self, status: Status, reason: str, *, digest: str | None = None, also: Mapping[str, Any] | None = None
    ) -> dict[str, Any]:
        """Write ``summary.json`` and ``loss.png``, end the trackers and the view; a second call changes nothing.

        The summary is on the disk before anything that may take long.
        """
        if self._result is not None:
            return self._result
        found = self.summary.result(status, reason, now=self._clock(), digest=digest)
        result = self._result = {**found, **(also or {})}
        self._guard("directory", lambda: self._directory.write_summary(result))
        try:
            if self._plot:
                self._guard("plot", self._draw)
            for name, tracker in list(self._trackers.items()):
                self._guard(name, partial(self._end, tracker, result))
        finally:
            self._guard("console", lambda: self._console.stop(result))
            self._guard("logs", self._logs.close)
            self._guard("directory", self._directory.close)
        return result

    def _begin(self, tracker: Tracker, record: Mapping[str, Any]) -> None:
        for words in tracker.start(record):
            self.note(words)

    def _end(self, tracker: Tracker, result: Mapping[str, Any]) -> None:
        for words in tracker.finish(result):
            self.note(words)

    def _draw(self) -> None:
        from smolcluster.tracking.plots import loss_png

        reader = RunReader(self.run.path)
        title = f"{self.run.algo} · {self.run.model} on {self.run.data}"
        loss_png(reader.metrics(), reader.evaluations(), self.run.path / PLOT, title)

    def _guard(self, name: str, action: Callable[[], None]) -> None:
        """Do what concerns ``name``; should it raise, the run goes on."""
        try:
            action()
        except Exception as error:
            logger.debug("%s has failed", name, exc_info=True)
            self._failed(name, error)

    def _failed(self, name: str, error: Exception) -> None:
        """Report the first failure of ``name``, and drop it where the run can do without."""
        if name in self._reported:
            return
        self._reported.add(name)
        without = "" if name in NEVER_DROPPED else " without it"
        if without:
            self._receivers.pop(name, None)
            self._trackers.pop(name, None)
        self.note(f"{name} has failed, the run goes on{without}: {type(error).__name__}: {error}")

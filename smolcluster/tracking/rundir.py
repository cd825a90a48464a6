"""A run's directory: what is written there while the run lasts, and how it is read back.

    run_spec.json    the resolved configuration, and what it ran on
    metrics.jsonl    a line per logged step
    events.jsonl     everything else that happened: evaluations, checkpoints, states, joins, losses, retries ...
    logs/            a file per node (smolcluster.tracking.logs)
    summary.json     one record, written last

The measurements that each node sends twice a second are shown and summed up, but not kept line by line.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from smolcluster.tracking.fields import text
from smolcluster.tracking.jsonl import JsonLines, read_lines, read_whole, write_whole
from smolcluster.tracking.tracker import Event

SPEC, METRICS, EVENTS, SUMMARY = "run_spec.json", "metrics.jsonl", "events.jsonl", "summary.json"
LOGS, PLOT = "logs", "loss.png"
NOT_KEPT = frozenset({"node", "alive", "log"})
"""Events that are no line here: measurements of a moment, and log lines, which have files of their own."""


class RunDirectory:
    """Writes a run's directory; makes it where it does not exist, and adds to it where it does."""

    def __init__(self, path: Path) -> None:
        self.path = path
        (path / LOGS).mkdir(parents=True, exist_ok=True)
        self._metrics = JsonLines(path / METRICS)
        self._events = JsonLines(path / EVENTS)

    def on_event(self, event: Event) -> None:
        kind = text(event.get("event"))
        if kind == "metrics":
            self._metrics.write({key: value for key, value in event.items() if key != "event"})
        elif kind not in NOT_KEPT:
            self._events.write(event)

    def write_spec(self, record: Mapping[str, Any]) -> None:
        write_whole(self.path / SPEC, record)

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        write_whole(self.path / SUMMARY, summary)

    def close(self) -> None:
        self._metrics.close()
        self._events.close()


@dataclass(frozen=True)
class RunReader:
    """Reads a run's directory, also one whose run was killed or is still going on."""

    path: Path

    def spec(self) -> dict[str, Any] | None:
        return read_whole(self.path / SPEC)

    def summary(self) -> dict[str, Any] | None:
        """None while the run goes on, and for ever where it was killed."""
        return read_whole(self.path / SUMMARY)

    def metrics(self) -> list[dict[str, Any]]:
        """A dict per logged step, in the order written."""
        return read_lines(self.path / METRICS)

    def events(self) -> list[dict[str, Any]]:
        return read_lines(self.path / EVENTS)

    def evaluations(self) -> list[dict[str, Any]]:
        """The events that hold a validation loss."""
        return [event for event in self.events() if event.get("event") == "evaluation"]

    def logs(self) -> dict[str, list[dict[str, Any]]]:
        """Node label -> its log lines."""
        return {file.stem: read_lines(file) for file in sorted((self.path / LOGS).glob("*.jsonl"))}

"""Log lines: what a node's ``logging`` records become, and the files that they end up in.

On a node, :func:`node_handler` turns records into ``log`` events; here, :class:`FileLogs` writes those to
``logs/<role>-rank<k>-<host>.jsonl``. Times are the controller's, taken when the event arrives: a Raspberry Pi
has no clock that survives being switched off.
"""

from __future__ import annotations

import logging
import re
import traceback
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Protocol

from smolcluster.errors import Problem
from smolcluster.ports import Reporter
from smolcluster.spec.schema import Range
from smolcluster.tracking.fields import finite, text, whole
from smolcluster.tracking.jsonl import JsonLines
from smolcluster.tracking.rundir import LOGS
from smolcluster.tracking.tracker import Event, NodeInfo, RunInfo

if TYPE_CHECKING:
    from smolcluster.spec.run import RunSpec

STDERR = "stderr"
"""The ``logger`` of a line that a node's process wrote to its standard error: kept at every level."""
MAX_MESSAGE = 16384
"""Longest message in characters: a traceback fits."""
MAX_REMEMBERED = 256
"""So many different messages are watched for repetition; the one not seen for longest is forgotten."""

UNPRINTABLE = (OSError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RuntimeError)
"""What formatting or sending a record may raise: the line is lost then, with a word on standard error."""


class LogSink(Protocol):
    """Where log lines go. Called from one thread."""

    def on_event(self, event: Event) -> None:
        """Takes every event of the run and keeps those of the kind ``log``."""

    def close(self) -> None: ...


@dataclass(frozen=True, kw_only=True)
class FileLogs:
    """Logs as JSON lines, one file per node."""

    level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    """The least that a node logs and that is kept."""
    repeat_s: Annotated[float, Range(ge=0, le=3600, unit="seconds")] = 10.0
    """A message that a node repeats is written once in that time, with a count; 0 writes all."""
    max_mb: Annotated[int, Range(ge=1, le=1_000_000, unit="MB")] = 256
    """Per node: what comes after that is counted, not written."""

    def problems(self, spec: RunSpec) -> Iterable[Problem]:
        return ()

    def sink(self, run: RunInfo) -> LogSink:
        return LogFiles(run, level=self.level, max_bytes=self.max_mb * 10**6)


class LogFiles:
    """One file per node, opened at its first line."""

    def __init__(self, run: RunInfo, *, level: str, max_bytes: int) -> None:
        self._run, self._max_bytes = run, max_bytes
        self._least = logging.getLevelNamesMapping()[level]
        self._files: dict[Path, JsonLines] = {}
        self._dropped: dict[Path, int] = {}

    def on_event(self, event: Event) -> None:
        if event.get("event") != "log":
            return
        line = log_line(event, self._run)
        if line["logger"] != STDERR and _severity(line["level"]) < self._least:
            return
        path = self._run.path / LOGS / f"{file_name(line['host'])}.jsonl"
        file = self._files.get(path)
        if file is None:
            file = self._files[path] = JsonLines(path)
        if file.size < self._max_bytes:
            file.write(line)
        else:
            self._dropped[path] = self._dropped.get(path, 0) + 1

    def close(self) -> None:
        for path, dropped in self._dropped.items():
            message = f"{dropped} later lines are left out: the file is full (logging.max_mb)"
            self._files[path].write({"level": "WARNING", "logger": __name__, "message": message})
        for file in self._files.values():
            file.close()
        self._files.clear()
        self._dropped.clear()


def log_line(event: Event, run: RunInfo) -> dict[str, Any]:
    """The line that a ``log`` event becomes; fields beyond those that every line has are kept as they are."""
    node = _node(event, run)
    line = {
        "ts": timestamp(finite(event.get("t")) or 0.0),
        "level": text(event.get("level")).upper() or "INFO",
        "job": f"smolcluster-{node.role}",
        "component": node.role,
        "host": node.label,
        "rank": node.rank,
        "run_id": run.run_id,
        "step": event.get("step"),
        "logger": text(event.get("logger")),
        "message": text(event.get("message")),
    }
    return line | {key: value for key, value in event.items() if key not in line and key not in ("event", "t", "role")}


def stderr_event(node: NodeInfo, line: str, now: float) -> dict[str, Any]:
    """The event of a line that a node's process wrote to its standard error."""
    origin = {"event": "log", "node": node.name, "role": node.role, "rank": node.rank, "t": now}
    return {**origin, "level": "WARNING", "logger": STDERR, "message": line.rstrip("\r\n")[:MAX_MESSAGE], "step": None}


def timestamp(seconds: float) -> str:
    """Unix seconds as RFC 3339 in UTC.

    >>> timestamp(1.5)
    '1970-01-01T00:00:01.500000Z'
    """
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def file_name(label: str) -> str:
    """``label`` as a file name that every system takes and that leads nowhere else.

    >>> file_name("worker-rank0-../../etc")
    'worker-rank0-.._.._etc'
    """
    return re.sub(r"[^A-Za-z0-9._-]", "_", label)[:120].lstrip(".") or "node"


def _node(event: Event, run: RunInfo) -> NodeInfo:
    """Who said it: as the run knows it, else as the event has it."""
    name = text(event.get("node"))
    known = run.node(name)
    if known is not None:
        return known
    return NodeInfo(name=name, role=text(event.get("role")) or "node", rank=whole(event.get("rank")) or 0, host=name)


def _severity(level: str) -> int:
    """The number of a level; a level that nobody knows is kept."""
    return logging.getLevelNamesMapping().get(level, logging.CRITICAL)


def node_handler(
    report: Reporter, *, repeat_s: float = 10.0, step: Callable[[], int | None] = lambda: None
) -> logging.Handler:
    """A handler for the root logger of a node process: each record becomes a ``log`` event, with the present ``step``.

    A message that was already sent less than ``repeat_s`` seconds ago is counted instead; the count comes as
    ``repeated`` with the next one like it, or when the handler is flushed or closed. Times are the records' own.
    """
    return _NodeHandler(report, repeat_s, step)


@dataclass
class _Sent:
    """A message that was sent: when, what, and how often it came again since."""

    at: float
    fields: dict[str, Any]
    again: int = 0


class _NodeHandler(logging.Handler):
    def __init__(self, report: Reporter, repeat_s: float, step: Callable[[], int | None]) -> None:
        super().__init__()
        self._report, self._repeat_s, self._step = report, repeat_s, step
        self._sent: OrderedDict[tuple[str, int, str], _Sent] = OrderedDict()
        self._busy = False

    def emit(self, record: logging.LogRecord) -> None:
        if self._busy:
            return  # the reporter itself has logged something: to report that would never end
        self._busy = True
        try:
            self._take(record)
        except UNPRINTABLE:
            self.handleError(record)
        finally:
            self._busy = False

    def flush(self) -> None:
        """Tell of the repetitions that are still only counted."""
        self.acquire()
        try:
            while self._sent:
                self._tell_repetitions(self._sent.popitem(last=False)[1])
        finally:
            self.release()

    def close(self) -> None:
        self.flush()
        super().close()

    def _take(self, record: logging.LogRecord) -> None:
        fields = _fields(record, self._step())
        key = (record.name, record.levelno, fields["message"])
        last = self._sent.pop(key, None)
        if last is not None and record.created - last.at < self._repeat_s:
            last.again += 1
            self._sent[key] = last
            return
        repeated = {"repeated": last.again} if last is not None and last.again else {}
        self._report("log", **fields, **repeated)
        self._sent[key] = _Sent(record.created, fields)
        if len(self._sent) > MAX_REMEMBERED:
            self._tell_repetitions(self._sent.popitem(last=False)[1])

    def _tell_repetitions(self, sent: _Sent) -> None:
        if sent.again:
            self._report("log", **sent.fields, repeated=sent.again)


def _fields(record: logging.LogRecord, step: int | None) -> dict[str, Any]:
    """What a ``log`` event says of a record made in ``step`` (or in that of ``logger.info(.., extra={"step": 7})``)."""
    fields = {
        "level": record.levelname,
        "message": record.getMessage()[:MAX_MESSAGE],
        "logger": record.name,
        "step": getattr(record, "step", step),
    }
    if record.exc_info and record.exc_info[0] is not None:
        fields["exception"] = "".join(traceback.format_exception(*record.exc_info))[-MAX_MESSAGE:]
    return fields

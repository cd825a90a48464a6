"""Tables for people: what came of one run, and how the runs of a sweep compare."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TextIO

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from smolcluster.tracking import wording
from smolcluster.tracking.fields import finite, number, table, text, whole
from smolcluster.tracking.news import quality
from smolcluster.tracking.wording import NOTHING, clean

PLAIN_WIDTH = 120
"""Columns of a table in a file or a pipe, where COLUMNS does not say."""
STATUS_STYLES = {"done": "green", "failed": "bold red", "interrupted": "yellow"}
BEST_STYLE = "bold green"


class RaisingConsole(Console):
    """A Rich console that raises where its reader has gone, instead of ending the whole process."""

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError("whoever read the output has gone")


def show(stream: TextIO, shown: RenderableType) -> None:
    """Write ``shown`` to ``stream``; characters that its encoding lacks become question marks."""
    width = None if stream.isatty() else int(os.environ.get("COLUMNS") or PLAIN_WIDTH)
    console = RaisingConsole(file=stream, width=width, highlight=False)
    with console.capture() as capture:
        console.print(shown)
    encoding = getattr(stream, "encoding", None) or "utf-8"
    lines = (line.rstrip(" ") for line in capture.get().splitlines())
    stream.write("".join(f"{line}\n" for line in lines).encode(encoding, "replace").decode(encoding))
    stream.flush()


def summary_table(summary: Mapping[str, Any]) -> RenderableType:
    """What ``summary.json`` holds, on one screen; every text in it is made safe."""
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column(overflow="fold")
    for key, value in _lines(summary):
        grid.add_row(key, value if isinstance(value, Text) else Text(clean(value)))
    if summary.get("purpose") == "evaluate":  # its one node has done nothing that the lines above do not tell
        return grid
    return Group(grid, Text(), _nodes(summary.get("nodes") or ()))


def _lines(summary: Mapping[str, Any]) -> Iterable[tuple[str, Text | str]]:
    """Name and value of every line above the nodes; what a run does not have is left out."""
    status, reason = text(summary.get("status")), text(summary.get("reason"))
    words = f"{status}: {reason}" if reason and reason != status else status
    yield "status", Text(clean(words, 400), style=STATUS_STYLES.get(status, ""))
    yield "run", " · ".join(text(summary.get(key)) for key in ("algo", "model", "data"))
    if summary.get("purpose") == "evaluate":
        yield from _evaluated(summary)
        return
    yield "steps", _pace(summary)
    for key in ("final", "best"):
        if summary.get(key):
            result = table(summary[key])
            what = "training " if result.get("training") else ""
            yield key, f"{what}{quality(result)} at step {result.get('step')}"
    yield "wire", _wire(table(summary.get("wire_bytes")))
    if finite(summary.get("wait_share")) is not None:
        yield "waiting", f"{wording.share(summary['wait_share'])} of a worker's time"
    staleness = table(summary.get("staleness"))
    if finite(staleness.get("mean")) is not None:
        mean, largest = (wording.number(number(staleness.get(key))) for key in ("mean", "max"))
        yield "staleness", f"mean {mean}, max {largest}"
    for key in ("checkpoint", "digest"):
        if summary.get(key):
            yield key, text(summary[key])
    if rerun := table(summary.get("rerun")):
        same = {True: "bit for bit the weights of", False: "other weights than", None: "not to be compared with"}
        yield "rerun", f"{same.get(rerun.get('identical'), '?')} {text(rerun.get('of'))}"


def _evaluated(summary: Mapping[str, Any]) -> Iterable[tuple[str, str]]:
    """What evaluating some weights has found."""
    if summary.get("final"):
        result = table(summary["final"])
        yield "found", f"{quality(result)} with the weights of step {wording.number(number(result.get('step')))}"
    yield "time", wording.duration(finite(summary.get("seconds")))
    if summary.get("digest"):
        yield "digest", text(summary["digest"])


def _pace(summary: Mapping[str, Any]) -> str:
    words = f"{wording.number(number(summary.get('steps')))} in {wording.duration(finite(summary.get('seconds')))}"
    for key, unit in (("samples_per_s", "samples/s"), ("tokens_per_s", "tokens/s")):
        speed = finite(summary.get(key))
        words += f", {wording.number(speed)} {unit}" if speed is not None else ""
    return words.replace(", ", ", at ", 1)


def _wire(wire: Mapping[str, Any]) -> str:
    """``1.2 MB sent, 1.2 MB received (3.9x less than 4.7 MB)``."""
    counts = {key: whole(wire.get(key)) for key in ("sent", "received", "uncompressed")}
    if counts["sent"] is None:
        return wording.NOT_COUNTED
    words = f"{wording.byte_count(counts['sent'])} sent, {wording.byte_count(counts['received'])} received"
    saved = wording.times_less(counts)
    return words if saved is None else f"{words} ({saved:.1f}x less than {wording.byte_count(counts['uncompressed'])})"


def _nodes(nodes: Sequence[Mapping[str, Any]]) -> Table:
    found = Table(box=None, pad_edge=False, header_style="dim")
    for name in ("node", "role", "on"):
        found.add_column(name, no_wrap=True, overflow="ellipsis")
    for name in ("steps", "samples", "sent", "received", "waiting"):
        found.add_column(name, justify="right", no_wrap=True)
    for node in nodes:
        place = " ".join(text(node.get(key)) for key in ("host", "device") if node.get(key))
        names = (text(node.get("name")), f"{text(node.get('role'))} {text(node.get('rank'))}", place)
        counts = [wording.number(number(node.get(key))) for key in ("steps", "samples")]
        sizes = [wording.byte_count(number(node.get(key))) for key in ("sent", "received")]
        texts = [Text(clean(name, 60)) for name in names]
        found.add_row(*texts, *counts, *sizes, wording.share(number(node.get("wait_share"))))
    return found


class _Column:
    """A column of numbers in a comparison. ``better`` picks the best of several."""

    def __init__(
        self,
        name: str,
        value: Callable[[Mapping[str, Any]], float | None],
        words: Callable[[float | None], str],
        better: Callable[[Iterable[float]], float],
    ) -> None:
        self.name, self.value, self.words, self._better = name, value, words, better

    def best(self, rows: Sequence[Mapping[str, Any]]) -> str | None:
        """The best value among the runs that are done, as it is shown; None where they all show the same."""
        done = [self.value(row) for row in rows if row.get("status") == "done"]
        values = [value for value in done if value is not None]
        alike = len({self.words(value) for value in values}) < 2
        return None if alike else self.words(self._better(values))

    def cell(self, row: Mapping[str, Any], best: str | None) -> Text:
        words = self.words(self.value(row))
        if words == best and row.get("status") == "done":
            return Text(f"{words} *", style=BEST_STYLE)
        return Text(words)


def _final(key: str) -> Callable[[Mapping[str, Any]], float | None]:
    return lambda row: finite(table(row.get("final")).get(key))


def _own(key: str) -> Callable[[Mapping[str, Any]], float | None]:
    return lambda row: finite(row.get(key))


def _sent(row: Mapping[str, Any]) -> float | None:
    return finite(table(row.get("wire_bytes")).get("sent"))


COLUMNS = (
    _Column("loss", _final("loss"), wording.number, min),
    _Column("accuracy", _final("accuracy"), wording.accuracy, max),
    _Column("perplexity", _final("perplexity"), wording.number, min),
    _Column("samples/s", _own("samples_per_s"), wording.number, max),
    _Column("time", _own("seconds"), wording.duration, min),
    _Column("sent", _sent, wording.byte_count, min),
    _Column("waiting", _own("wait_share"), wording.share, min),
)


def comparison_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """The runs of a sweep side by side; a star marks the best value of a column among the runs that are done.

    A row is what ``summary.json`` holds, with the number of the ``run`` and its ``overrides`` (``["optim.lr=0.1"]``)
    besides. Overrides that all runs share are left out, and so are columns that no run has a value in.
    """
    shared = set.intersection(*(set(row.get("overrides") or ()) for row in rows)) if rows else set()
    columns = [column for column in COLUMNS if any(column.value(row) is not None for row in rows)]
    bests = [column.best(rows) for column in columns]
    found = Table(box=None, pad_edge=False, header_style="dim")
    found.add_column("run", justify="right", no_wrap=True)
    found.add_column("overrides", overflow="fold", ratio=1)
    found.add_column("status", no_wrap=True)
    for column in columns:
        found.add_column(column.name, justify="right", no_wrap=True)
    for row in rows:
        own = " ".join(clean(word) for word in row.get("overrides") or () if word not in shared)
        status = text(row.get("status"))
        cells = [column.cell(row, best) for column, best in zip(columns, bests, strict=True)]
        styled = Text(clean(status, 20), style=STATUS_STYLES.get(status, ""))
        found.add_row(text(row.get("run")), Text(own or NOTHING), styled, *cells)
    return found

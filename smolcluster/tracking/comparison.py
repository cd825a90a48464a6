"""The runs of a sweep held against each other, in files that open in one click: ``sweep.md``, ``.csv`` and ``.png``."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from smolcluster.tracking import wording
from smolcluster.tracking.fields import finite, table, text
from smolcluster.tracking.jsonl import replace_whole
from smolcluster.tracking.wording import clean

MARKDOWN, TABLE, PICTURE = "sweep.md", "sweep.csv", "sweep.png"
QUALITIES = ("loss", "accuracy", "perplexity")
LARGER_IS_BETTER = frozenset({"accuracy"})
UNITS = {
    "loss": ("loss (mean per item)", 1.0),
    "accuracy": ("accuracy (%)", 100.0),
    "perplexity": ("perplexity", 1.0),
    "seconds": ("time (s)", 1.0),
    "bytes sent": ("sent (MB)", 1e-6),
}
"""What is drawn: its axis, and the factor to that unit."""
MAX_LABEL = 44
"""Characters of a run's words beside its bars."""


class Compared(NamedTuple):
    """One run: its number, the words that only some runs have, and what it came to (None: nothing)."""

    number: str
    words: str
    status: str
    values: dict[str, float | None]


def compared(rows: Sequence[Mapping[str, Any]]) -> list[Compared]:
    """A row is what ``summary.json`` holds, with ``run`` (its number) and ``overrides`` besides."""
    shared = set.intersection(*(set(row.get("overrides") or ()) for row in rows)) if rows else set()
    return [
        Compared(
            text(row.get("run")),
            " ".join(clean(word) for word in row.get("overrides") or () if word not in shared),
            clean(text(row.get("status")), 20),
            _values(row),
        )
        for row in rows
    ]


def _values(row: Mapping[str, Any]) -> dict[str, float | None]:
    final, best, wire = (table(row.get(key)) for key in ("final", "best", "wire_bytes"))
    values = {f"final {key}": finite(final.get(key)) for key in QUALITIES}
    values |= {f"best {key}": finite(best.get(key)) for key in QUALITIES}
    values |= {"best at step": finite(best.get("step")), "steps": finite(row.get("steps"))}
    values |= {"seconds": finite(row.get("seconds")), "samples/s": finite(row.get("samples_per_s"))}
    values |= {"bytes sent": finite(wire.get("sent")), "waiting": finite(row.get("wait_share"))}
    return values


def write(folder: Path, rows: Sequence[Mapping[str, Any]]) -> list[Path]:
    """Write the three files; returns them."""
    runs = compared(rows)
    columns = [name for name in runs[0].values if any(run.values[name] is not None for run in runs)] if runs else []
    files = {
        MARKDOWN: _markdown(runs, columns).encode(),
        TABLE: _csv(runs, columns).encode(),
        PICTURE: _png(runs, columns, folder.name),
    }
    for name, data in files.items():
        replace_whole(folder / name, data)
    return [folder / name for name in files]


def _csv(runs: Sequence[Compared], columns: Sequence[str]) -> str:
    """Numbers as they are, for other programs."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(["run", "overrides", "status", *columns])
    for run in runs:
        values = (run.values[name] for name in columns)
        writer.writerow(
            [run.number, run.words, run.status, *("" if value is None else repr(value) for value in values)]
        )
    return stream.getvalue()


def _markdown(runs: Sequence[Compared], columns: Sequence[str]) -> str:
    """A table for people; the best of each kind of result is bold."""
    lines = [
        "| run | overrides | status | " + " | ".join(columns) + " |",
        "|---:|---|---|" + "---:|" * len(columns),
    ]
    bests = {name: _best(name, runs) for name in columns}
    for run in runs:
        words = f"`{run.words}`".replace("|", "\\|") if run.words else ""
        cells = []
        for name in columns:
            value = run.values[name]
            shown = "" if value is None else in_words(name, value)
            cells.append(f"**{shown}**" if value is not None and value == bests[name] else shown)
        lines.append(f"| {run.number} | {words} | {run.status} | " + " | ".join(cells) + " |")
    best = best_of(runs)
    told = [f"Best: {in_words_of(best, mark='`')}.", ""] if best else []
    return "\n".join(["# Sweep", "", *lines, "", *told, f"![The runs compared]({PICTURE})", ""])


def best_of(runs: Sequence[Compared]) -> Compared | None:
    """The run with the smallest final loss; None where no two runs have come to different ones."""
    done = [run for run in runs if run.status == "done" and run.values["final loss"] is not None]
    if len({run.values["final loss"] for run in done}) < 2:
        return None
    return min(done, key=lambda run: run.values["final loss"] or 0.0)


def in_words_of(run: Compared, mark: str = "") -> str:
    """A run, its words between two ``mark``, and its final loss."""
    words = f"{mark}{run.words}{mark}" if run.words else "without words of its own"
    return f"run {run.number}, {words}, final loss {wording.number(run.values['final loss'])}"


def _best(name: str, runs: Sequence[Compared]) -> float | None:
    kind = name.rpartition(" ")[2]
    values = [run.values[name] for run in runs if run.status == "done"]
    known = [value for value in values if value is not None]
    if kind not in QUALITIES or len(set(known)) < 2:
        return None
    return max(known) if kind in LARGER_IS_BETTER else min(known)


def in_words(name: str, value: float) -> str:
    """A value of a column with its unit."""
    kind = name.rpartition(" ")[2]
    if kind == "accuracy":
        return wording.accuracy(value)
    words = {"seconds": wording.duration, "sent": wording.byte_count, "waiting": wording.share}
    return words[kind](value) if kind in words else wording.number(value)


def _png(runs: Sequence[Compared], columns: Sequence[str], title: str) -> bytes:
    """A line for each run: final and best result as points, time and bytes as bars."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    results = [kind for kind in QUALITIES if f"final {kind}" in columns]
    costs = [name for name in UNITS if name in columns and name not in QUALITIES]
    count = len(results) + len(costs)
    height = min(1.7 + 0.3 * len(runs), 60)
    figure = Figure(figsize=(4 + 2.6 * max(count, 1), height), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    if not count:
        figure.text(0.5, 0.5, "No run got so far that there is anything to compare.", ha="center", va="center")
    for place, name in enumerate([*results, *costs]):
        axes = figure.add_subplot(1, count, place + 1)
        (_points if name in results else _bars)(axes, runs, name)
        labels = [_label(run) for run in runs] if place == 0 else [""] * len(runs)
        axes.set_yticks(range(len(runs)), labels, fontsize=8, parse_math=False)
        axes.set_ylim(len(runs) - 0.5, -0.5)
        axes.set_ylabel("run" if place == 0 else "")
        axes.set_xlabel(UNITS[name][0], fontsize=9)
        axes.tick_params(axis="x", labelsize=7)
        axes.grid(axis="y" if name in results else "x", alpha=0.3, linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
        if place == 0:
            axes.set_title(f"Sweep {title}", loc="left", fontsize=11, parse_math=False)
            if results:
                figure.legend(loc="outside upper right", ncols=2, fontsize=8, frameon=False)
    stream = io.BytesIO()
    figure.savefig(stream, format="png")
    return stream.getvalue()


def _label(run: Compared) -> str:
    words = run.words if len(run.words) <= MAX_LABEL else run.words[: MAX_LABEL - 1] + "…"
    told = f"{run.number}: {words}" if words else run.number
    return told if run.status == "done" else f"{told} ({run.status})"


def _points(axes: Any, runs: Sequence[Compared], kind: str) -> None:
    """The axis need not begin at zero: what counts is which is better."""
    from smolcluster.tracking.plots import BLUE, ORANGE

    scale = UNITS[kind][1]
    for name, colour, marker, size in (("best", ORANGE, "*", 90), ("final", BLUE, "o", 28)):
        found = [(run.values[f"{name} {kind}"], row) for row, run in enumerate(runs)]
        known = [(value * scale, row) for value, row in found if value is not None]
        axes.scatter([x for x, _ in known], [y for _, y in known], s=size, color=colour, marker=marker, label=name)
    axes.margins(x=0.15)


def _bars(axes: Any, runs: Sequence[Compared], name: str) -> None:
    from smolcluster.tracking.plots import BLUE, GREY

    scale = UNITS[name][1]
    for row, run in enumerate(runs):
        value = run.values[name]
        if value is not None:
            axes.barh(row, value * scale, 0.6, color=BLUE if run.status == "done" else GREY)
            axes.text(value * scale, row, f" {in_words(name, value)}", va="center", fontsize=7)
    axes.margins(x=0.3)

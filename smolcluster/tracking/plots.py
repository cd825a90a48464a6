"""One picture of a run: its loss over the steps, and what validation says."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter, StrMethodFormatter

from smolcluster.tracking.fields import finite, whole
from smolcluster.tracking.jsonl import replace_whole

Series = tuple[list[int], list[float]]
BLUE, ORANGE, GREEN, RED, GREY = "#0072b2", "#d55e00", "#009e73", "#b00020", "#555555"
"""Colours that people who see red and green alike can tell apart (Okabe and Ito)."""
QUALITIES = ("accuracy", "perplexity")
NEVER_FINITE = "Every loss was NaN or infinite."
NOTHING_LOGGED = "No step was logged and nothing was evaluated."
SMOOTHING, MIN_SMOOTHING = 40, 3
"""The smooth line averages over a fortieth of the steps; there is none where that is less than three."""
MAX_LOG_RATIO = 50.0
"""Losses that span more than this are drawn on a logarithmic scale."""


def loss_png(
    metrics: Sequence[Mapping[str, Any]], evaluations: Sequence[Mapping[str, Any]], path: Path, title: str
) -> None:
    """Draw ``path``: training loss as logged and smoothed, validation loss, and accuracy or perplexity below.

    ``metrics`` and ``evaluations`` are lines of a run's directory, in the order written. Losses that are not
    finite are marked at the foot of the picture; where there is nothing to draw, the picture says so.
    """
    figure = Figure(figsize=(8, 5), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    name = next((key for key in QUALITIES if any(finite(line.get(key)) is not None for line in evaluations)), None)
    if name is None:
        panels = [figure.add_subplot()]
    else:
        panels = list(figure.subplots(2, 1, sharex=True, height_ratios=(2, 1)))
        _quality(panels[1], series(evaluations, name), name)
    panels[0].set_title(title, loc="left", fontsize=11, parse_math=False)
    _loss(panels[0], metrics, evaluations)
    panels[-1].set_xlabel("optimizer steps")
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png")
    replace_whole(path, drawn.getvalue())


def series(lines: Sequence[Mapping[str, Any]], key: str) -> Series:
    """Steps and values of the lines whose ``key`` is a finite number."""
    found = [(whole(line.get("step")), finite(line.get(key))) for line in lines]
    kept = [(step, value) for step, value in found if step is not None and value is not None]
    return [step for step, _ in kept], [value for _, value in kept]


def smooth(values: Sequence[float], window: int) -> list[float]:
    """The mean of the ``window`` values around each, of fewer at the ends.

    >>> smooth([0.0, 3.0, 6.0, 3.0], 3)
    [1.5, 3.0, 4.0, 4.5]
    """
    sums, half = [0.0, *accumulate(values)], window // 2
    edges = [(max(0, i - half), min(len(values), i + half + 1)) for i in range(len(values))]
    return [(sums[stop] - sums[start]) / (stop - start) for start, stop in edges]


def _loss(axes: Axes, metrics: Sequence[Mapping[str, Any]], evaluations: Sequence[Mapping[str, Any]]) -> None:
    steps, values = series(metrics, "loss")
    checked, losses = series(evaluations, "loss")
    _frame(axes, "loss (mean per item)")
    if steps:
        _training(axes, steps, values)
    if checked:
        _validation(axes, checked, losses)
    missing = _not_finite(axes, metrics, evaluations)
    if not steps and not checked:
        words = NEVER_FINITE if missing else NOTHING_LOGGED
        axes.text(0.5, 0.5, words, transform=axes.transAxes, ha="center", va="center", color=GREY)
        axes.set_yticks([])
        return
    seen = {*steps, *checked}
    if len(seen) == 1:
        axes.set_xlim(min(seen) - 1, max(seen) + 1)
    if _spans_decades([*values, *losses]):
        _logarithmic(axes, "loss (mean per item, log scale)")
    axes.legend(frameon=False, loc="upper right")


def _training(axes: Axes, steps: list[int], values: list[float]) -> None:
    window = max(1, len(values) // SMOOTHING)
    marker = "o" if len(values) == 1 else None
    if window < MIN_SMOOTHING:
        axes.plot(steps, values, color=BLUE, linewidth=1.5, marker=marker, label="training")
        return
    axes.plot(steps, values, color=BLUE, linewidth=0.8, alpha=0.25)
    axes.plot(steps, smooth(values, window), color=BLUE, linewidth=1.8, label=f"training (mean of {window} steps)")


def _validation(axes: Axes, steps: list[int], losses: list[float]) -> None:
    axes.plot(steps, losses, color=ORANGE, linewidth=1.5, marker="o", markersize=4, label="validation")
    best = min(range(len(losses)), key=losses.__getitem__)
    label = f"best: {losses[best]:.4g} at step {steps[best]:,}"
    axes.plot(steps[best], losses[best], color=ORANGE, linestyle="", marker="*", markersize=13, label=label)


def _not_finite(axes: Axes, metrics: Sequence[Mapping[str, Any]], evaluations: Sequence[Mapping[str, Any]]) -> int:
    """Marks where a loss was NaN or infinite (null in the files), and returns how often that was."""
    lines = [line for line in (*metrics, *evaluations) if "loss" in line and finite(line["loss"]) is None]
    steps = [step for step in (whole(line.get("step")) for line in lines) if step is not None]
    if steps:
        foot = [0.03] * len(steps)
        where, label = axes.get_xaxis_transform(), "not finite"
        axes.plot(steps, foot, transform=where, color=RED, linestyle="", marker="x", markersize=6, label=label)
    return len(steps)


def _quality(axes: Axes, points: Series, name: str) -> None:
    axes.plot(*points, color=GREEN, linewidth=1.5, marker="o", markersize=4)
    _frame(axes, "accuracy (%)" if name == "accuracy" else name)
    if name == "accuracy":
        axes.yaxis.set_major_formatter(PercentFormatter(xmax=1, symbol=""))
    elif _spans_decades(points[1]):
        _logarithmic(axes, f"{name} (log scale)")


def _logarithmic(axes: Axes, label: str) -> None:
    axes.set_yscale("log")
    axes.set_ylabel(label)


def _frame(axes: Axes, label: str) -> None:
    axes.set_ylabel(label)
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))


def _spans_decades(values: Sequence[float]) -> bool:
    return min(values) > 0 and max(values) / min(values) > MAX_LOG_RATIO

"""Draws live.svg beside this file: the live view of a real run, as it stood after three fifths of its steps.

Usage: python docs/images/draw_live_view.py [overrides of the run]
"""

from __future__ import annotations

import io
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from rich.terminal_theme import TerminalTheme

from smolcluster.pipeline.job import Place, conduct
from smolcluster.spec.compose import validate_jobs
from smolcluster.tracking.board import Board
from smolcluster.tracking.live import screen
from smolcluster.tracking.tracker import Event, RunInfo

WIDTH, HEIGHT = 104, 24
MOMENT = 0.6
"""Share of the steps that are done in the picture."""
THEME = TerminalTheme(
    (22, 27, 34),
    (201, 209, 217),
    [(72, 79, 88), (255, 123, 114), (63, 185, 80), (210, 153, 34), (88, 166, 255), (188, 140, 255), (57, 197, 207),
     (177, 186, 196)],
    [(110, 118, 129), (255, 161, 152), (86, 211, 100), (227, 179, 65), (121, 192, 255), (210, 168, 255), (86, 212, 221),
     (255, 255, 255)],
)  # fmt: skip
FONT = "ui-monospace, SFMono-Regular, Menlo, Consolas, 'DejaVu Sans Mono', monospace"
SVG = """<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img"
aria-label="The live view of a run on a terminal" xml:space="preserve">
<style>.{unique_id}-matrix {{ font-family: FONT; font-size: {char_height}px; line-height: {line_height}px; }}
.{unique_id}-title {{ font-family: FONT; font-size: 16px; }}
{styles}</style>
<defs><clipPath id="{unique_id}-clip-terminal">
<rect x="0" y="0" width="{terminal_width}" height="{terminal_height}"/></clipPath>
{lines}</defs>
{chrome}
<g transform="translate({terminal_x}, {terminal_y})" clip-path="url(#{unique_id}-clip-terminal)">
{backgrounds}<g class="{unique_id}-matrix">{matrix}</g></g>
</svg>
""".replace("FONT", FONT)
"""Rich's own template, with fonts that need no network."""


class Recorder:
    """A console that shows nothing and keeps everything."""

    def __init__(self) -> None:
        self.run: RunInfo | None = None
        self.began = 0.0
        self.events: list[Event] = []

    def start(self, run: RunInfo) -> None:
        self.run, self.began = run, time.time()

    def on_event(self, event: Event) -> None:
        self.events.append(event)

    def note(self, words: str) -> None:
        self.events.append({"event": "note", "message": words})

    def stop(self, summary: Mapping[str, Any] | None = None) -> None:
        return


class Recording(NamedTuple):
    """A run, when it began, and its events in order."""

    run: RunInfo
    began: float
    events: list[Event]


def recorded(words: Sequence[str], folder: Path) -> Recording:
    """Run the command line ``words`` in ``folder``."""
    (spec,) = validate_jobs(words, None)
    recorder = Recorder()
    outcome = conduct(spec, Place(folder=folder), console=recorder).outcome
    if outcome.status != "done" or recorder.run is None:
        raise SystemExit(outcome.reason)
    return Recording(recorder.run, recorder.began, recorder.events)


def until(events: Sequence[Event], share: float) -> list[Event]:
    """The events up to the step that completes ``share`` of the run."""
    for place, event in enumerate(events):
        if event["event"] == "metrics" and event["step"] >= share * event["num_steps"]:
            return list(events[: place + 1])
    raise SystemExit("the run has too few steps for a picture")


def picture(recording: Recording) -> str:
    """The live view as SVG, at the time of the last event."""
    board = Board(recording.run, recording.began)
    for event in recording.events:
        board.on_event(event)
    now = float(recording.events[-1]["t"])
    console = Console(record=True, width=WIDTH, file=io.StringIO(), force_terminal=True, color_system="truecolor")
    console.print(screen(board, now, WIDTH, HEIGHT))
    return console.export_svg(title="python -m smolcluster", theme=THEME, code_format=SVG, unique_id="live-view")


def main(words: Sequence[str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        run, began, events = recorded(words, Path(folder) / "0")
    shown = Path("outputs", datetime.fromtimestamp(began).strftime("%Y-%m-%d/%H-%M-%S"), "0")
    svg = picture(Recording(replace(run, path=shown), began, until(events, MOMENT)))
    Path(__file__).with_name("live.svg").write_text(svg, encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])

"""The live view: a board drawn with Rich, four times a second, in as much room as the terminal has."""

from __future__ import annotations

import atexit
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from typing import Any, TextIO

from rich.console import Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from smolcluster.tracking import wording
from smolcluster.tracking.board import Board, Headline, NodeView
from smolcluster.tracking.console import roles
from smolcluster.tracking.fields import number, table, whole
from smolcluster.tracking.news import BAD, GOOD, INFO, WARN, quality
from smolcluster.tracking.tables import RaisingConsole, show, summary_table
from smolcluster.tracking.tracker import Event, RunInfo
from smolcluster.tracking.wording import NOTHING, clean

REDRAWS_PER_SECOND = 4
WIDE = 110
"""Columns from which on there is room for long names."""
FRAME_LINES = 10
"""Lines of a screen that are neither nodes nor news: the head, the figures, a table head and blank lines."""
MIN_NODES, MIN_NEWS = 2, 4
"""Lines that nodes and news get at least, if there is room for both: a screen of 13 lines shows nodes alone."""
STATE_STYLES = {
    "starting": "yellow",
    "connecting": "yellow",
    "training": "green",
    "evaluating": "cyan",
    "saving": "blue",
    "finished": "dim green",
    "failed": "bold red",
    "lost": "bold red",
}
TONE_STYLES = {GOOD: "green", INFO: "", WARN: "yellow", BAD: "bold red"}
TROUBLE = ("failed", "lost", "starting", "connecting")
"""States of the nodes that are shown first where not all find room."""
SILENT_S = 5.0
"""A node that reports twice a second and was not heard of for so long is said to be silent."""
MUCH_WAITING = ((0.6, "red"), (0.3, "yellow"))
"""A share of waiting from which on a node is marked: something slows it down. To wait is what a server is for."""


class LiveConsole:
    """Redraws the board from a thread, so that a slow terminal holds up nothing but its own picture."""

    def __init__(self, stream: TextIO, *, clock: Callable[[], float] = time.time) -> None:
        self._stream, self._clock = stream, clock
        self._console = RaisingConsole(file=stream)
        self._lock = threading.Lock()
        self._board: Board | None = None
        self._live: Live | None = None
        self._notes: list[str] = []

    def start(self, run: RunInfo, *, began: float | None = None) -> None:
        self._board = Board(run, self._clock() if began is None else began)
        self._live = Live(
            get_renderable=self._picture,
            console=self._console,
            refresh_per_second=REDRAWS_PER_SECOND,
            transient=True,
            vertical_overflow="crop",
        )
        atexit.register(self.stop)
        self._live.start()

    def on_event(self, event: Event) -> None:
        if self._board is not None:
            with self._lock:
                self._board.on_event(event)

    def note(self, words: str) -> None:
        self._notes.append(words)
        if self._board is not None:
            with self._lock:
                self._board.note(self._clock(), clean(words))

    def stop(self, summary: Mapping[str, Any] | None = None) -> None:
        live, self._live = self._live, None
        if live is None:
            return
        live.stop()
        atexit.unregister(self.stop)
        if summary is not None:
            show(self._stream, summary_table(summary))
        if self._notes:
            show(self._stream, Group(*(Text(clean(note, 400), style="dim") for note in self._notes)))

    def _picture(self) -> RenderableType:
        if self._board is None:
            return Text()
        with self._lock:
            return screen(self._board, self._clock(), self._console.width, self._console.height)


def screen(board: Board, now: float, width: int, height: int) -> RenderableType:
    """The board at the time ``now``, in at most ``height - 1`` lines of ``width`` columns."""
    figures = list(_figures(board, width))
    room = height - 1 - FRAME_LINES - (len(figures) - 3)
    shown = min(len(board.nodes), max(MIN_NODES, room - MIN_NEWS))
    parts: list[RenderableType] = [_title(board, now), _path(board, width), _progress(board, now), Text()]
    parts += [_nodes(board, now, shown, width), Text(), _grid(figures), Text()]
    parts += [_headline(line) for line in list(board.news)[-max(0, room - shown) :]]
    return Group(*parts)


def _title(board: Board, now: float) -> RenderableType:
    run, found = board.run, Table.grid(expand=True)
    found.add_column(no_wrap=True, overflow="ellipsis", ratio=1)
    found.add_column(no_wrap=True, justify="right")
    what = Text.assemble(
        (clean(run.algo), "bold"), f"  {clean(run.model)} on {clean(run.data)}  ", (roles(board), "dim")
    )
    found.add_row(what, Text(wording.elapsed(now - board.started), style="bold"))
    return found


def _path(board: Board, width: int) -> Text:
    """The run's directory; of a long one, the end."""
    path = clean(board.run.path, 4096)
    return Text(path if len(path) < width else f"…{path[2 - width :]}", style="dim", no_wrap=True)


def _progress(board: Board, now: float) -> RenderableType:
    steps, found = board.num_steps, Table.grid(expand=True, padding=(0, 2, 0, 0))
    found.add_column(no_wrap=True)
    found.add_column(ratio=1)
    found.add_column(no_wrap=True)
    if not steps:
        found.add_row(Text(f"step {board.step:,}"), Text(), Text())
        return found
    epoch, left = whole(board.last.get("epoch")), board.seconds_left(now)
    words = [wording.share(board.step / steps)]
    words += [f"epoch {epoch}"] if epoch is not None else []
    words += [f"{wording.duration(left)} left"] if left is not None else []
    bar = ProgressBar(total=steps, completed=min(board.step, steps), complete_style="green", finished_style="green")
    found.add_row(Text(f"step {board.step:,} of {steps:,}"), bar, Text("  ".join(words)))
    return found


def _nodes(board: Board, now: float, shown: int, width: int) -> Table:
    """One row per node, the troubled ones first where there is no room for all."""
    wide = width >= WIDE
    found = Table(box=None, pad_edge=False, padding=(0, 2 if wide else 1, 0, 0), header_style="dim", expand=not wide)
    for name, least in (("node", 8), ("role", 6)):
        found.add_column(name, no_wrap=True, overflow="ellipsis", min_width=least, max_width=24 if wide else 9)
    found.add_column("on", no_wrap=True, overflow="ellipsis", ratio=None if wide else 1, max_width=40)
    found.add_column("state", no_wrap=True, min_width=10)
    for name, least in (("links", 5), ("step", 5), ("smp/s", 5), ("↑MB/s", 5), ("↓MB/s", 5), ("wait", 5)):
        found.add_column(name, no_wrap=True, justify="right", min_width=least)
    views = list(board.nodes.values())
    if len(views) > shown:
        views = sorted(views, key=lambda view: view.state not in TROUBLE)[: shown - 1]
    for view in views:
        found.add_row(*_row(view, now))
    hidden = len(board.nodes) - len(views)
    if hidden:
        found.add_row(Text(f"+{hidden}", style="dim"), Text("more", style="dim"))
    return found


def _row(view: NodeView, now: float) -> list[Text]:
    place = " ".join(part for part in (clean(view.host, 60), clean(view.device, 20)) if part)
    sent, received = view.wire_per_s
    waits = view.wait_share if view.wait_share is not None and view.info.role != "server" else 0.0
    marked = next((style for least, style in MUCH_WAITING if waits >= least), "")
    return [
        Text(clean(view.info.name, 60), style="bold"),
        Text(clean(view.info.role, 20)),
        Text(place),
        _state(view, now),
        _links(view),
        Text(NOTHING if view.step is None else f"{view.step:,}"),
        Text(wording.count(view.samples_per_s)),
        Text(wording.megabytes(sent)),
        Text(wording.megabytes(received)),
        Text(wording.share(view.wait_share), style=marked),
    ]


def _state(view: NodeView, now: float) -> Text:
    silent = view.silent_s(now)
    if silent >= SILENT_S:
        return Text(f"silent {silent:.0f}s"[:10], style="yellow")
    state = view.state or "starting"  # its process is on its way, and cannot say so yet
    return Text(clean(state, 20), style=STATE_STYLES.get(state, ""))


def _links(view: NodeView) -> Text:
    up, of = sum(view.links.values()), len(view.links)
    return Text(f"{up}/{of}" if of else NOTHING, style="bold red" if up < of else "")


def _figures(board: Board, width: int) -> Iterable[tuple[str, Text, str, Text]]:
    """Name, value, name, value of each line of figures."""
    last = board.last
    loss = Text(wording.number(number(last.get("loss"))), style="bold")
    loss.append(f"  {wording.sparkline(board.losses.points, width // 5)}", style="cyan")
    yield "loss", loss, "validation", Text(quality(board.validation) if board.validation else NOTHING)
    best = (
        f"loss {wording.number(number(board.best.get('loss')))} at step {board.best.get('step')}"
        if board.best
        else NOTHING
    )
    norms = f"{wording.number(number(last.get('lr')))}  grad norm {wording.number(number(last.get('grad_norm')))}"
    yield "lr", Text(norms), "best", Text(best)
    tokens = number(last.get("tokens_per_s"))
    speed = f"{wording.count(number(last.get('samples_per_s')))} samples/s"
    speed += f"  {wording.count(tokens)} tok/s" if tokens is not None else ""
    yield "speed", Text(speed), "wire", Text(_wire(board.traffic.total()))
    staleness = table(last.get("staleness"))
    if staleness:
        mean, largest = (wording.number(number(staleness.get(key))) for key in ("mean", "max"))
        yield "stale", Text(f"mean {mean}  max {largest}"), "", Text()


def _wire(total: Mapping[str, int | None]) -> str:
    if total["sent"] is None:
        return wording.NOT_COUNTED
    words = f"{wording.byte_count(total['sent'])} out  {wording.byte_count(total['received'])} in"
    saved = wording.times_less(total)
    return f"{words}  {saved:.1f}x less" if saved is not None else words


def _grid(figures: Iterable[tuple[str, Text, str, Text]]) -> Table:
    found = Table.grid(expand=True, padding=(0, 1, 0, 0))
    for style, ratio in (("dim", None), ("", 4), ("dim", None), ("", 5)):
        found.add_column(style=style, ratio=ratio, no_wrap=True, overflow="ellipsis")
    for first, value, second, other in figures:
        found.add_row(Text(first), value, Text(second), other)
    return found


def _headline(line: Headline) -> Text:
    at = datetime.fromtimestamp(line.at).strftime("%H:%M:%S")
    again = f" (x{line.times})" if line.times > 1 else ""
    words = Text(f"{line.news.words}{again}", style=TONE_STYLES[line.news.tone])
    return Text.assemble((f"{at}  ", "dim"), words, no_wrap=True, overflow="ellipsis")

"""What a person sees while a run works: a live view on a terminal, plain lines anywhere else."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol, TextIO

from smolcluster.tracking import wording
from smolcluster.tracking.board import Board, NodeView
from smolcluster.tracking.fields import finite, number, text
from smolcluster.tracking.news import News
from smolcluster.tracking.tracker import Event, RunInfo
from smolcluster.tracking.wording import clean

STEP_INTERVAL_S = 1.0
"""Plain lines tell of a step at most that often."""
NODES_INTERVAL_S = 10.0
"""And of the nodes' speeds at most that often."""
MAX_NEWS_PER_SECOND = 20
"""More lines than that of the kinds that come in floods are counted: events.jsonl has them all."""
PAUSES = frozenset({"evaluating", "saving"})


class Console(Protocol):
    """Shows one run. Called from one thread, in this order: start, events and notes, stop.

    Everything that came from a node is made harmless before it is printed.
    """

    def start(self, run: RunInfo, *, began: float | None = None) -> None:
        """``began``: when the run did, where that was before now."""

    def on_event(self, event: Event) -> None: ...

    def note(self, words: str) -> None:
        """Something that this process has to say; it is still to be read when the run is over."""

    def stop(self, summary: Mapping[str, Any] | None = None) -> None:
        """End the view and leave the terminal as it was; with a summary, print its table. May be called twice."""


def console_for(stream: TextIO) -> Console:
    """The live view where ``stream`` is a terminal that can show it, else plain lines."""
    capable = os.environ.get("TERM") not in (None, "", "dumb", "unknown") or os.name == "nt"
    if stream.isatty() and capable and "utf" in (stream.encoding or "").lower():
        from smolcluster.tracking.live import LiveConsole

        return LiveConsole(stream)
    return PlainConsole(stream)


class PlainConsole:
    """A line for each thing worth one: steps at most once a second, evaluations, checkpoints, what went wrong."""

    def __init__(self, stream: TextIO, *, clock: Callable[[], float] = time.time) -> None:
        self._stream, self._clock = stream, clock
        self._board: Board | None = None
        self._step_at = self._nodes_at = float("-inf")
        self._told_step = 0
        self._flood = Flood()
        self._told_states: set[tuple[str, str]] = set()

    def start(self, run: RunInfo, *, began: float | None = None) -> None:
        now = self._nodes_at = self._clock() if began is None else began
        self._board = Board(run, now)
        self._print(f"{run.algo} · {run.model} on {run.data} · {roles(self._board)}", now)
        self._print(f"directory {run.path}", now)

    def on_event(self, event: Event) -> None:
        board = self._board
        if board is None:
            return
        news, kind = board.on_event(event), event.get("event")
        now = finite(event.get("t")) or self._clock()
        if kind == "metrics" and (now - self._step_at >= STEP_INTERVAL_S or board.step == board.num_steps):
            self._tell_step(board, now)
        elif kind == "node" and now - self._nodes_at >= NODES_INTERVAL_S:
            self._nodes_at = now
            self._print(" | ".join(node_words(view) for view in board.nodes.values()), now)
        elif news is not None:
            self._tell(news, now)
        elif kind == "state":
            self._tell_state(text(event.get("node")), text(event.get("state")), text(event.get("detail")), now)

    def note(self, words: str) -> None:
        self._print(words, self._clock())

    def stop(self, summary: Mapping[str, Any] | None = None) -> None:
        board = self._board
        if board is None:
            return
        if board.step > self._told_step:
            self._tell_step(board, finite(board.last.get("t")) or self._clock())
        self._board = None
        if summary is not None:
            from smolcluster.tracking.tables import show, summary_table

            show(self._stream, summary_table(summary))

    def _tell_step(self, board: Board, now: float) -> None:
        self._step_at, self._told_step = now, board.step
        self._print("  ".join(step_words(board, now)), now)

    def _tell(self, news: News, now: float) -> None:
        """Say it, unless it is of the kind that comes in floods and does."""
        if news.topic and not self._flood.admits(now):
            return
        missed = self._flood.missed()
        if missed:
            self._print(f"({missed} more events: see events.jsonl)", now)
        self._print(news.words, now)

    def _tell_state(self, node: str, state: str, detail: str, now: float) -> None:
        """The states of a node's life, each once: pauses for evaluation and checkpoints have lines of their own."""
        if state == "starting":
            self._told_states = {(name, told) for name, told in self._told_states if name != node}
        if state in PAUSES or (node, state) in self._told_states:
            return
        self._told_states.add((node, state))
        self._print(f"{node} {state}" + (f": {detail}" if detail else ""), now)

    def _print(self, words: str, now: float) -> None:
        started = self._board.started if self._board is not None else now
        line = f"[{wording.elapsed(now - started)}] {clean(words, 400)}\n"
        encoding = self._stream.encoding or "utf-8"
        self._stream.write(line.encode(encoding, "replace").decode(encoding))
        self._stream.flush()


class Flood:
    """Admits so many lines a second and counts the rest."""

    def __init__(self, per_second: int = MAX_NEWS_PER_SECOND) -> None:
        self._per_second = per_second
        self._second, self._admitted, self._missed = 0, 0, 0

    def admits(self, now: float) -> bool:
        if int(now) != self._second:
            self._second, self._admitted = int(now), 0
        self._admitted += 1
        self._missed += self._admitted > self._per_second
        return self._admitted <= self._per_second

    def missed(self) -> int:
        """How many were refused since the last call."""
        missed, self._missed = self._missed, 0
        return missed


def roles(board: Board) -> str:
    """How many nodes of each role: ``1 server + 2 workers``."""
    found = Counter(view.info.role for view in board.nodes.values())
    return clean(" + ".join(f"{count} {role}{'s' if count > 1 else ''}" for role, count in found.items()))


def step_words(board: Board, now: float) -> Iterable[str]:
    """What a logged step is told in, part by part; a part that the run does not have is left out."""
    last, left = board.last, board.seconds_left(now)
    done = f" ({wording.share(board.step / board.num_steps)})" if board.num_steps else ""
    yield f"step {board.step:,}" + (f"/{board.num_steps:,}{done}" if board.num_steps else "")
    for name, key in (("loss", "loss"), ("lr", "lr"), ("grad norm", "grad_norm")):
        if key in last:
            yield f"{name} {wording.number(number(last[key]))}"
    for unit, key in (("samples/s", "samples_per_s"), ("tokens/s", "tokens_per_s")):
        if number(last.get(key)) is not None:
            yield f"{wording.number(number(last[key]))} {unit}"
    wire = board.traffic.total()
    if board.traffic.counted:
        yield f"{wording.byte_count(wire['sent'])} sent  {wording.byte_count(wire['received'])} received"
    if number(last.get("wait_share")) is not None:
        yield f"waiting {wording.share(number(last['wait_share']))}"
    if left is not None:
        yield f"{wording.duration(left)} left"


def node_words(view: NodeView) -> str:
    """One node's row of the live view's table, in a few words."""
    sent, received = view.wire_per_s
    up = f"{sum(view.links.values())}/{len(view.links)} links, " if view.links else ""
    wire = f"{wording.megabytes(sent)} MB/s out, {wording.megabytes(received)} in, " if sent is not None else ""
    speed = f"{wording.number(view.samples_per_s)} samples/s, " if view.samples_per_s is not None else ""
    return f"{view.info.name} {view.state}: {up}{speed}{wire}waiting {wording.share(view.wait_share)}"

"""What a node says, in lines for people who look at its pane."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

from smolcluster.tracking.fields import finite, number, text, whole
from smolcluster.tracking.news import BAD, GOOD, INFO, WARN, news_of
from smolcluster.tracking.tracker import Event
from smolcluster.tracking.wording import byte_count, clean, share
from smolcluster.tracking.wording import number as figure

STEP_INTERVAL_S = 1.0
"""Steps are told at most that often."""
MAX_LINE = 1 << 20
"""Bytes of a line that is looked at; what is longer is passed on unseen."""
COLOURS = {GOOD: "\x1b[32m", WARN: "\x1b[33m", BAD: "\x1b[31m", INFO: ""}
TONES = {"WARNING": WARN, "ERROR": BAD, "CRITICAL": BAD}
HIDDEN = frozenset({"ready", "alive", "node", "finished"})
"""Events that another line tells, or the title."""


class Line(NamedTuple):
    """One line, and how serious it is."""

    words: str
    tone: str = INFO


def lines_of(event: Event) -> Iterator[Line]:
    """What there is to say of an event, without anything that steers a terminal."""
    kind = text(event.get("event"))
    if kind == "log":
        yield from _log(event)
    elif kind in TELLERS:
        line = TELLERS[kind](event)
        yield line._replace(words=clean(line.words, 400))
    elif kind not in HIDDEN and (news := news_of(event)) is not None:
        yield Line(news.words, news.tone)


def _log(event: Event) -> Iterator[Line]:
    tone = TONES.get(text(event.get("level")).upper(), INFO)
    yield Line(clean(text(event.get("message")), 400), tone)
    for line in text(event.get("exception")).splitlines():
        yield Line(f"  {clean(line, 400)}", tone)


def _state(event: Event) -> Line:
    state, detail = text(event.get("state")), text(event.get("detail"))
    tone = BAD if state in ("failed", "lost") else GOOD if state == "finished" else INFO
    return Line(f"{state}: {detail}" if detail else state, tone)


def _link(event: Event) -> Line:
    up, reason = bool(event.get("up")), text(event.get("reason"))
    return Line(f"link to {text(event.get('peer'))} is {'up' if up else f'down: {reason}'}", GOOD if up else WARN)


def _metrics(event: Event) -> Line:
    step, last = whole(event.get("step")) or 0, whole(event.get("num_steps"))
    parts = [f"step {step:,}" + (f"/{last:,}" if last else ""), f"loss {figure(number(event.get('loss')))}"]
    speeds = {unit: number(event.get(f"{unit}_per_s")) for unit in ("samples", "tokens")}
    parts += [f"{figure(speed)} {unit}/s" for unit, speed in speeds.items() if speed is not None]
    return Line("  ".join(parts))


def _listening(event: Event) -> Line:
    where = event.get("address")
    return Line(f"listens on {':'.join(map(str, where))}" if isinstance(where, list) else "listens")


TELLERS: dict[str, Callable[[Event], Line]] = {
    "hello": lambda event: Line(f"started, process {text(event.get('pid'))}"),
    "listening": _listening,
    "state": _state,
    "link": _link,
    "metrics": _metrics,
    "failed": lambda event: Line(f"failed: {text(event.get('reason'))}", BAD),
    "stopped": lambda event: Line(f"stopped: {text(event.get('reason'))}", WARN),
    "result": lambda event: Line(f"weights after step {text(event.get('step'))}: {text(event.get('digest'))}"),
}
"""Kind of event -> its line."""


class Screen:
    """A terminal that a node's events are written to, each line with its time; its title says where the node stands."""

    def __init__(self, descriptor: int, title: str) -> None:
        self._descriptor, self._title = descriptor, title
        self._state, self._step, self._speed = "", "", ""
        self._step_at = float("-inf")
        self._shown_title = ""
        self._untitled()

    def show(self, event: Event, now: float) -> None:
        """``now``: Unix seconds at which the event happened."""
        self._note(event)
        if event.get("event") == "metrics":
            if now - self._step_at < STEP_INTERVAL_S and event.get("step") != event.get("num_steps"):
                return
            self._step_at = now
        for line in lines_of(event):
            self.write(line, now)

    def write(self, line: Line, now: float) -> None:
        colour = COLOURS[line.tone]
        moment = time.strftime("%H:%M:%S", time.localtime(now))
        self._put(f"\x1b[2m{moment}\x1b[0m {colour}{line.words}\x1b[0m\r\n")

    def _note(self, event: Event) -> None:
        kind, step = event.get("event"), whole(event.get("step"))
        if kind == "state":
            self._state = text(event.get("state"))
        if kind in ("node", "metrics", "log") and step is not None:
            self._step = f"step {step:,}"
        if kind == "node":
            speed, wait = finite(event.get("samples_per_s")), finite(event.get("wait_share"))
            self._speed = f"{figure(speed)} samples/s" if speed is not None else ""
            self._speed += f" · waits {share(wait)}" if speed is not None and wait is not None else ""
            if (memory := finite(event.get("rss_bytes"))) is not None:
                self._speed += f" · {byte_count(memory)}" if self._speed else byte_count(memory)
        self._untitled()

    def _untitled(self) -> None:
        """Put what is known into the pane's title, where that is news."""
        title = clean(" · ".join(each for each in (self._title, self._state, self._step, self._speed) if each))
        if title != self._shown_title:
            self._shown_title = title
            self._put(f"\x1b]2;{title}\x1b\\")

    def _put(self, words: str) -> None:
        view = memoryview(words.encode())
        while view:
            view = view[os.write(self._descriptor, view) :]


class Lines:
    """Whole lines out of pieces of a stream; a line that is too long is left out."""

    def __init__(self, limit: int = MAX_LINE) -> None:
        self._limit, self._pending, self._skipping = limit, bytearray(), False

    def take(self, data: bytes) -> Iterator[bytes]:
        """The lines that are complete now, without their ends."""
        *whole_lines, rest = data.split(b"\n")
        for piece in whole_lines:
            if not self._skipping:
                yield bytes(self._pending) + piece
            self._pending.clear()
            self._skipping = False
        if not self._skipping:
            self._pending += rest
        if len(self._pending) > self._limit:
            self._pending.clear()
            self._skipping = True


def event_of(line: bytes, kind: str = "") -> Event | None:
    """The event that a line holds, of that ``kind`` where it does not say; None where it holds none."""
    try:
        event = json.loads(line)
    except ValueError:
        return None
    if not isinstance(event, dict):
        return None
    event = {"event": kind, **event}
    return event if isinstance(event["event"], str) and event["event"] else None

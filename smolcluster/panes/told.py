"""What a node says, in lines for people who look at its pane."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

from smolcluster.tracking.fields import finite, text, whole
from smolcluster.tracking.news import BAD, GOOD, INFO, WARN, news_of
from smolcluster.tracking.tracker import Event
from smolcluster.tracking.wording import byte_count, clean, share
from smolcluster.tracking.wording import number as figure

MAX_LINE = 1 << 20
"""Bytes of a line that is looked at; what is longer is passed on unseen."""
COLOURS = {GOOD: "\x1b[32m", WARN: "\x1b[33m", BAD: "\x1b[31m", INFO: ""}
TONES = {"WARNING": WARN, "ERROR": BAD, "CRITICAL": BAD}
HIDDEN = frozenset({"ready", "alive", "node", "metrics", "finished"})
"""Events that another line tells, or the title."""
PAUSES = frozenset({"evaluating", "saving"})
"""States that the title tells; what came of them has lines of its own."""


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
        indent = " " * (2 + len(line) - len(line.lstrip(" ")))
        yield Line(f"{indent[:40]}{clean(line, 400)}", tone)


def _state(event: Event) -> Line:
    state, detail = text(event.get("state")), text(event.get("detail"))
    tone = BAD if state in ("failed", "lost") else GOOD if state == "finished" else INFO
    return Line(f"{state}: {detail}" if detail else state, tone)


def _link(event: Event) -> Line:
    up, reason = bool(event.get("up")), text(event.get("reason"))
    return Line(f"link to {text(event.get('peer'))} is {'up' if up else f'down: {reason}'}", GOOD if up else WARN)


def _listening(event: Event) -> Line:
    where = event.get("address")
    return Line(f"listens on {':'.join(map(str, where))}" if isinstance(where, list) else "listens")


TELLERS: dict[str, Callable[[Event], Line]] = {
    "hello": lambda event: Line(f"started, process {text(event.get('pid'))}"),
    "listening": _listening,
    "state": _state,
    "link": _link,
    "failed": lambda event: Line(f"failed: {text(event.get('reason'))}", BAD),
    "stopped": lambda event: Line(f"stopped: {text(event.get('reason'))}", WARN),
    "result": lambda event: Line(f"weights after step {text(event.get('step'))}: {text(event.get('digest'))}"),
}
"""Kind of event -> its line."""


class Screen:
    """A terminal that a node's events are written to, each line with its time; its title says where the node stands."""

    def __init__(self, descriptor: int, title: str) -> None:
        self._descriptor, self._title, self._shown_title = descriptor, title, ""
        self._facts = {"state": "", "step": "", "speed": "", "waiting": "", "memory": ""}
        self._told_state = ""
        self._entitle()

    def show(self, event: Event, now: float) -> None:
        """``now``: Unix seconds at which the event happened."""
        self._note(event)
        if event.get("event") == "state" and not self._is_new(text(event.get("state"))):
            return
        for line in lines_of(event):
            self.write(line, now)

    def _is_new(self, state: str) -> bool:
        """Whether a state has a line of its own: not after a pause, where it is what it was before."""
        if state in PAUSES or state == self._told_state:
            return False
        self._told_state = state
        return True

    def write(self, line: Line, now: float) -> None:
        colour = COLOURS[line.tone]
        moment = time.strftime("%H:%M:%S", time.localtime(now))
        self._put(f"\x1b[2m{moment}\x1b[0m {colour}{line.words}\x1b[0m\r\n")

    def _note(self, event: Event) -> None:
        """Keep what the title tells."""
        kind, facts = event.get("event"), self._facts
        step, steps = whole(event.get("step")), whole(event.get("num_steps"))
        speed, waiting = finite(event.get("samples_per_s")), finite(event.get("wait_share"))
        memory = finite(event.get("rss_bytes"))
        if kind == "state":
            facts["state"] = text(event.get("state"))
        elif kind in ("node", "metrics", "log"):
            for key, words in (
                ("step", None if step is None else f"step {step:,}" + (f"/{steps:,}" if steps else "")),
                ("speed", None if speed is None else f"{figure(speed)} samples/s"),
                ("waiting", None if waiting is None else f"waits {share(waiting)}"),
                ("memory", None if memory is None else byte_count(memory)),
            ):
                facts[key] = words or facts[key]
        self._entitle()

    def _entitle(self) -> None:
        """Put what is known into the pane's title, where that is news."""
        title = clean(" · ".join(each for each in (self._title, *self._facts.values()) if each))
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

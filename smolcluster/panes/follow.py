"""``python -m smolcluster.panes.follow ...``: one pane of a run's window, which shows one node. Started by window.py.

It reads what the controller writes into the run's directory, so that it needs no connection of its own to the node's
machine. When a run has failed, it says why and waits for a key, which closes the whole window; otherwise it ends with
the run, and at once when the controller is gone.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import termios
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

from smolcluster.panes import tmux
from smolcluster.panes.told import Line, Lines, Screen, event_of
from smolcluster.tracking.fields import finite, text
from smolcluster.tracking.news import BAD
from smolcluster.tracking.rundir import EVENTS, LOGS, METRICS, RunReader
from smolcluster.tracking.tracker import Event
from smolcluster.tracking.wording import clean

LOOK_S = 0.2
"""How often there is a look for something new."""
CHUNK_BYTES = 4 << 20
"""Read from one file at one look at most."""
ATTACHED_S = 1.0
"""How often there is a look whether somebody still watches."""
ALWAYS, ATTACHED = "always", "attached"
"""When a pane of a failed run stays until a key is pressed: in any case, or only while somebody watches."""


class Watched(NamedTuple):
    """What a pane shows, as words of a command line."""

    folder: str
    node: str
    label: str
    """What the node's log file is called."""
    title: str
    controller: str
    """Process id of who writes the directory."""
    stays: str
    """:data:`ALWAYS` or :data:`ATTACHED`."""


class Tail:
    """The events that a file gets while it is looked at; the file need not be there yet.

    ``kind`` is what they are where the file has one kind only and does not say it.
    """

    def __init__(self, path: Path, kind: str = "") -> None:
        self._path, self._kind, self._lines, self._at = path, kind, Lines(), 0

    def read(self) -> Iterator[Event]:
        """What has come since the last time."""
        try:
            with self._path.open("rb") as file:
                file.seek(self._at)
                data = file.read(CHUNK_BYTES)
        except FileNotFoundError:
            return
        self._at += len(data)
        for line in self._lines.take(data):
            if (event := event_of(line, self._kind)) is not None:
                yield event


def is_about(event: Event, node: str) -> bool:
    """Whether the node has said it, or the controller has said it of the node."""
    return event.get("node") == node or (event.get("node") == "controller" and event.get("peer") == node)


def moment(event: Event) -> float:
    """When it happened, in Unix seconds: ``t`` of an event, ``ts`` of a line of a log.

    >>> moment({"t": 1.5}), moment({"ts": "1970-01-01T00:00:02.000000Z"})
    (1.5, 2.0)
    """
    found = finite(event.get("t"))
    if found is not None:
        return found
    try:
        return datetime.fromisoformat(text(event.get("ts"))).timestamp()
    except ValueError:
        return time.time()


class Follower:
    """Shows one node of one run on a terminal."""

    def __init__(self, watched: Watched, screen: Screen) -> None:
        self._watched, self._screen = watched, screen
        folder = Path(watched.folder)
        self._run = RunReader(folder)
        self._tails = (
            Tail(folder / EVENTS),
            Tail(folder / LOGS / f"{watched.label}.jsonl", "log"),
            Tail(folder / METRICS, "metrics"),
        )

    def run(self) -> None:
        """Until the run is over, and where it has failed until a key is pressed."""
        while True:
            summary, gone = self._run.summary(), not is_running(int(self._watched.controller))
            self.look()
            if summary is not None or gone:
                break
            key_within(LOOK_S)
        if summary is not None and summary.get("status") == "failed":
            self._stay(text(summary.get("reason")))

    def look(self) -> None:
        """Show what is new, in the order in which it happened."""
        found = [event for tail in self._tails for event in tail.read() if is_about(event, self._watched.node)]
        for event in sorted(found, key=moment):
            self._screen.show(event, moment(event))

    def _stay(self, reason: str) -> None:
        """Let a person read why."""
        self._screen.write(Line(clean(f"the run has failed: {reason}", 400), BAD), time.time())
        self._screen.write(Line("any key closes this window"), time.time())
        while self._watched.stays == ALWAYS or attached():
            if key_within(ATTACHED_S):
                return


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def attached() -> bool:
    """Whether somebody looks at the session of this pane."""
    try:
        return tmux.tell("display-message", "-p", "-t", os.environ["TMUX_PANE"], "#{session_attached}") != "0"
    except tmux.TmuxFailed:
        return False


def key_within(seconds: float) -> bool:
    """Whether a key is pressed within that time; it is taken, with all that was typed before it."""
    if not select.select([0], [], [], seconds)[0]:
        return False
    if not os.read(0, 4096):  # the terminal is gone
        raise ConnectionError("hung up")
    return True


def be_quiet() -> None:
    """What is typed is not shown, and is there at once."""
    settings = termios.tcgetattr(0)
    settings[3] &= ~(termios.ECHO | termios.ICANON)
    termios.tcsetattr(0, termios.TCSANOW, settings)


def main() -> None:
    watched = Watched(*sys.argv[1:])
    signal.signal(signal.SIGINT, lambda *_: os._exit(0))  # Ctrl-C closes this pane
    try:
        be_quiet()
        Follower(watched, Screen(1, watched.title)).run()
        tmux.tell("kill-window", "-t", os.environ["TMUX_PANE"])
    except (OSError, termios.error, tmux.TmuxFailed):
        return  # the window is gone already


if __name__ == "__main__":
    main()

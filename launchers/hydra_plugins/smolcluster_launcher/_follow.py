"""Sent to the machine that a detached run is conducted on, and run there: tells what happens in the run's directory.

It reads files and nothing else, so that whoever watches, however slowly, cannot hold up the run. Its argument is the
directory. Its output is newline-delimited JSON: ``hello``, the run's ``record``, all events so far (of many steps a
selection), then further ones as they come, and ``over`` with what became of the run. Its input is lines that say
that somebody is still there; one with the word ``stop`` asks the run to stop. It ends when its input does, or is
silent. Standard library only: it runs with whatever Python is there.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

HELD, LIVE, STOP = ".conducted", ".live.json", ".stop"
"""Locked while somebody conducts the run; what no record keeps (speeds, errors logged); there once it shall stop."""
LOOK_S = 0.2
SILENT_S = 60
"""Whoever watches says so every few seconds; after so long without a word nobody does."""
ALIVE_S = 5.0
MAX_STEPS = 500
"""Of the steps before somebody came so many are told, from the first to the last."""
CHUNK_BYTES = 1 << 20


class Tail:
    """The complete lines of a file that grows."""

    def __init__(self, path: str) -> None:
        self.path, self._at, self._part = path, 0, b""

    def lines(self) -> Iterator[dict[str, Any]]:
        """The objects that have come since the last call; what is none is left out, as it is by who reads records."""
        try:
            with open(self.path, "rb") as file:
                file.seek(self._at)
                while data := file.read(CHUNK_BYTES):
                    self._at += len(data)
                    *whole, self._part = (self._part + data).split(b"\n")
                    for line in whole:
                        try:
                            value = json.loads(line)
                        except ValueError:
                            continue
                        if isinstance(value, dict):
                            yield value
        except FileNotFoundError:
            return


class Follower:
    """Looks at one run's directory again and again."""

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self._metrics, self._events = Tail(self.at("metrics.jsonl")), Tail(self.at("events.jsonl"))
        self._told_record, self._live, self._seen = False, 0, 0
        self._said = 0.0

    def at(self, name: str) -> str:
        return os.path.join(self.folder, name)

    def follow(self) -> str:
        """Tell all there is until nobody conducts the run any more; returns what became of it."""
        if not os.path.isdir(self.folder):
            return "missing"
        first = True
        while True:
            going = self.conducted()  # asked first: what was written before its end is told, too
            self.tell(first)
            first = first and not self._told_record
            if not going:
                return "ended" if os.path.exists(self.at("summary.json")) else "died"
            if time.monotonic() - self._said > ALIVE_S:
                self.say({"event": "alive"})
            time.sleep(LOOK_S)

    def conducted(self) -> bool:
        """Whether a process lives that conducts the run: the system takes its lock away when it dies."""
        import fcntl  # Windows has none, and imports this module for the names of files

        try:
            descriptor = os.open(self.at(HELD), os.O_RDONLY)
        except FileNotFoundError:
            return False
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(descriptor)
        return False

    def tell(self, first: bool) -> None:
        record = None if self._told_record else read(self.at("run_spec.json"))
        if record is None and not self._told_record:
            return
        steps = [{"event": "metrics", **line} for line in self._metrics.lines()]
        events = list(self._events.lines())
        if record is not None:
            began = min((event.get("t") or time.time() for event in (*events[:1], *steps[:1])), default=time.time())
            self.say({"event": "record", "record": record, "began": began})
            self._told_record = True
        if first and len(steps) > MAX_STEPS:
            steps = [steps[number * (len(steps) - 1) // (MAX_STEPS - 1)] for number in range(MAX_STEPS)]
        for event in sorted((*events, *steps), key=lambda event: event.get("t") or 0.0):
            self.say(event)
        self.tell_live()

    def tell_live(self) -> None:
        """What no record keeps. Errors are numbered, so that each is told once."""
        try:
            written = os.stat(self.at(LIVE)).st_mtime_ns
        except FileNotFoundError:
            return
        found = read(self.at(LIVE)) if written != self._live else None
        if found is None:
            return
        self._live = written
        for number, event in found["errors"]:
            if number > self._seen:
                self._seen = number
                self.say(event)
        for event in found["nodes"].values():
            self.say(event)

    def say(self, event: dict[str, Any]) -> None:
        self._said = time.monotonic()
        sys.stdout.write(json.dumps(event, separators=(",", ":")) + "\n")
        sys.stdout.flush()


def read(path: str) -> dict[str, Any] | None:
    """The object in a file; None where there is none yet."""
    try:
        with open(path, "rb") as file:
            value = json.load(file)
    except (FileNotFoundError, ValueError):
        return None
    return value if isinstance(value, dict) else None


def listen(folder: str) -> None:
    """Heed who watches. The alarm ends this process also where it waits for a reader that will never come back."""
    signal.alarm(SILENT_S)
    for line in sys.stdin:
        signal.alarm(SILENT_S)
        if "stop" in line:
            with open(os.path.join(folder, STOP), "w", encoding="utf-8"):
                pass
    os._exit(0)


def main() -> None:
    folder = sys.argv[1]
    follower = Follower(folder)
    follower.say({"event": "hello", "pid": os.getpid(), "time": time.time()})
    threading.Thread(target=listen, args=(folder,), daemon=True).start()
    follower.say({"event": "over", "became": follower.follow()})
    os._exit(0)


if __name__ == "__main__":
    main()

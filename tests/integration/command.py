"""The command as a person runs it: a process of its own, its output line by line, and its node processes."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from smolcluster.tracking.rundir import RunReader

LIMIT_S = 150.0
PROMPT_S = 10.0
"""What takes a second or two where nothing else runs; tests run side by side."""
ENDLESS = ("train.max_steps=100000", "train.epochs=100000", "comms.chaos_delay_s=0.05")
"""A run that is there to be disturbed. Its messages are late, so that it leaves the cores to the tests beside it."""


@dataclass
class Command:
    """``python -m smolcluster ...`` with its run directory in ``folder``. Use as a context manager."""

    folder: Path
    words: tuple[str, ...]
    home: Path | None = None
    """Home of the person who types it; None: that of who runs the tests."""
    lines: list[str] = field(default_factory=list)
    stderr: str = ""

    def __enter__(self) -> Command:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "smolcluster", *self.arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            stdin=subprocess.DEVNULL,
            text=True,
            start_new_session=True,
            env={**os.environ, "COLUMNS": "200", **({} if self.home is None else {"HOME": str(self.home)})},
        )
        self._changed = threading.Condition()
        self._readers = [threading.Thread(target=self._read), threading.Thread(target=self._read_errors)]
        for reader in self._readers:
            reader.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        for reader in self._readers:
            reader.join()
        self.end_nodes()

    def end_nodes(self) -> None:
        """Only after a test that has failed is there any node to end."""
        for pid in self.pids().values():
            if alive(pid):
                os.kill(pid, signal.SIGKILL)

    @property
    def arguments(self) -> Sequence[str]:
        return (f"hydra.sweep.dir={self.folder}", *self.words)

    def _read(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as stream:
            for line in stream:
                with self._changed:
                    self.lines.append(line.rstrip("\n"))
                    self._changed.notify_all()
        with self._changed:
            self._changed.notify_all()

    def _read_errors(self) -> None:
        assert self.process.stderr is not None
        with self.process.stderr as stream:
            self.stderr = stream.read()

    def wait_for(self, pattern: str, within: float = LIMIT_S) -> str:
        """The first line (from the beginning of the output) that has ``pattern``."""
        until, seen = time.monotonic() + within, 0
        with self._changed:
            while True:
                for line in self.lines[seen:]:
                    if re.search(pattern, line):
                        return line
                seen = len(self.lines)
                left = until - time.monotonic()
                if left <= 0 or (self.process.poll() is not None and not self._readers[0].is_alive()):
                    raise AssertionError(f"no line with {pattern!r} in:\n" + "\n".join(self.lines) + self.stderr)
                self._changed.wait(min(left, 0.5))

    def wait_until(self, found: Callable[[], bool], what: str, within: float = LIMIT_S) -> None:
        """Look at the run's records until ``found``; they are written by another process, so there is no signal."""
        until = time.monotonic() + within
        while not found():
            if time.monotonic() > until or self.process.poll() is not None:
                raise AssertionError(f"{what} did not happen:\n" + "\n".join(self.lines) + self.stderr)
            threading.Event().wait(0.01)

    def states(self, node: str) -> list[str]:
        """The states that a node has reported so far."""
        if not (self.run / "events.jsonl").exists():
            return []
        events = RunReader(self.run).events()
        return [event["state"] for event in events if event["event"] == "state" and event["node"] == node]

    def steps(self) -> int:
        """Optimizer steps on record."""
        return len(self.metrics) if (self.run / "metrics.jsonl").exists() else 0

    def finish(self, within: float = LIMIT_S) -> int:
        """The exit code."""
        code = self.process.wait(within)
        for reader in self._readers:
            reader.join(within)
        return code

    @property
    def run(self) -> Path:
        return self.folder / "0"

    @property
    def summary(self) -> dict[str, Any]:
        summary: dict[str, Any] = json.loads((self.run / "summary.json").read_text())
        return summary

    @property
    def metrics(self) -> list[dict[str, Any]]:
        return RunReader(self.run).metrics()

    def journal(self, kind: str) -> list[dict[str, Any]]:
        events = RunReader(self.run).events()
        return [event for event in events if event.get("kind") == kind]

    def pids(self) -> dict[str, int]:
        """Node name -> pid of its newest process."""
        if not (self.run / "events.jsonl").exists():
            return {}
        return {event["peer"]: event["pid"] for event in self.journal("started")}

    def all_pids(self) -> list[int]:
        return [event["pid"] for event in self.journal("started")] + [self.process.pid]

    def samples(self, after: int = 0, upto: int = 10**9) -> Counter[tuple[int, int]]:
        """How often each (epoch, position) went into the optimizer steps ``after`` < step <= ``upto``."""
        return Counter(
            (epoch, position)
            for line in self.metrics
            if after < line["step"] <= upto
            for epoch, start, stop in line["spans"]
            for position in range(start, stop)
        )


class Back(Command):
    """A command that comes back to the run in ``folder``."""

    @property
    def arguments(self) -> Sequence[str]:
        return self.words

    @property
    def run(self) -> Path:
        return self.folder

    def end_nodes(self) -> None:
        return

    @classmethod
    def to(cls, run: Path, word: str = "attach", home: Path | None = None) -> Back:
        return cls(run, (f"{word}={run}",), home)


def command(folder: Path, *words: str) -> Command:
    """Run to the end; the exit code must be 0."""
    with Command(folder, words) as started:
        code = started.finish()
    assert code == 0, "\n".join(started.lines) + started.stderr
    return started


def alive(pid: int) -> bool:
    """Whether the process runs (a zombie does not)."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def gone(pids: list[int], within: float) -> float:
    """Seconds until all of these processes have ended; AssertionError where they do not in time."""
    began = time.monotonic()
    while left := [pid for pid in pids if alive(pid)]:
        if time.monotonic() - began > within:
            raise AssertionError(f"still there after {within:g} s: {left}")
        threading.Event().wait(0.02)
    return time.monotonic() - began

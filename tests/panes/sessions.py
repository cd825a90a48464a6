"""tmux as tests use it: what is on a screen, and what is left of sessions and processes."""

from __future__ import annotations

import os
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

needs_tmux = pytest.mark.skipif(shutil.which("tmux") is None, reason="tmux is missing (package tmux)")
LIMIT_S = 20.0


def tmux(*words: str, at: Path | None = None) -> str:
    """What tmux prints; ``at``: the TMUX_TMPDIR of another host's server. Empty where it refuses."""
    environment = {**os.environ, **({} if at is None else {"TMUX_TMPDIR": str(at)})}
    done = subprocess.run(["tmux", "-u", *words], env=environment, capture_output=True, text=True, check=False)
    return done.stdout.rstrip("\n") if done.returncode == 0 else ""


def sessions(at: Path | None = None) -> list[str]:
    return tmux("list-sessions", "-F", "#{session_name}", at=at).splitlines()


def screen(target: str, at: Path | None = None) -> str:
    """What a pane shows."""
    return tmux("capture-pane", "-p", "-t", target, at=at)


def titles(session: str) -> list[str]:
    """The titles of a session's panes, in order."""
    return tmux("list-panes", "-s", "-t", f"={session}", "-F", "#{pane_title}").splitlines()


def until(found: Callable[[], object], what: str, within: float = LIMIT_S) -> float:
    """Look until ``found``; what is looked at are other processes, so there is no signal. Returns the seconds."""
    began = time.monotonic()
    while not found():
        assert time.monotonic() - began < within, f"{what} did not happen within {within:g} s"
        threading.Event().wait(0.01)
    return time.monotonic() - began


def children(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def pane_pid(session: str, at: Path | None = None) -> int:
    """The program in a session's pane."""
    return int(tmux("list-panes", "-t", f"={session}", "-F", "#{pane_pid}", at=at))


def server_pid(at: Path | None = None) -> int:
    return int(tmux("display-message", "-p", "#{pid}", at=at))


def words_of(pid: int) -> Sequence[str]:
    """The command line of a process."""
    return Path(f"/proc/{pid}/cmdline").read_text().split("\0")

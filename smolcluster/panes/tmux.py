"""tmux as a program: where it is, what its sessions are called here, and how it is told to do something."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import smolcluster
from smolcluster.errors import RunFailed

PLACES = ("/opt/homebrew/bin", "/usr/local/bin", "/opt/local/bin", "/home/linuxbrew/.linuxbrew/bin")
"""Where package managers put programs that a login over SSH does not find by itself."""
ANSWER_S = 10.0
"""tmux answers within milliseconds, or hangs."""
ENDING = ("server exited", "lost server", "no server running", "error connecting")
"""What tmux says when its server was just ending."""
AGAIN_S = 0.05
SIZE = ("-x", "200", "-y", "50")
"""Columns and lines of a session that nobody has attached to yet."""
INSTALL = {"Darwin": "brew install tmux", "Linux": "sudo apt install tmux"}


class TmuxFailed(RunFailed):
    """tmux did not do what it was told; the text is its own."""


def program() -> str | None:
    """The path of tmux; None where there is none."""
    return shutil.which("tmux") or shutil.which("tmux", path=os.pathsep.join(PLACES))


def absence(system: str) -> str:
    """What to say of a machine without tmux; ``system`` as ``platform.system()`` names it.

    >>> absence("Darwin")
    'has no tmux, which hydra.launcher.tmux=true needs: brew install tmux'
    """
    if system == "Windows":
        return "is a Windows machine, where there is no tmux: hydra.launcher.tmux=false, or a cluster without it"
    return f"has no tmux, which hydra.launcher.tmux=true needs: {INSTALL.get(system, 'install it')}"


def session_name(run: str, node: str = "") -> str:
    """What the session of a run's node is called, or (without a node) that of its window.

    >>> session_name("0-ab12", "mini2"), session_name("a.b:c d-ab12")
    ('smolcluster-0-ab12-mini2', 'smolcluster-a-b-c-d-ab12')
    """
    return re.sub(r"[^A-Za-z0-9_-]", "-", "-".join(["smolcluster", run, *([node] if node else [])]))


def tell(*words: str) -> str:
    """Run one tmux command, or several with ";" between them; returns what it prints. TmuxFailed where it refuses."""
    path = program()
    if path is None:
        raise TmuxFailed("tmux: there is no such program")
    try:
        done = subprocess.run(
            [path, *words], capture_output=True, text=True, timeout=ANSWER_S, stdin=subprocess.DEVNULL, check=False
        )
    except subprocess.TimeoutExpired:
        raise TmuxFailed(f"tmux: no answer within {ANSWER_S:g} s") from None
    if done.returncode != 0:
        said = (done.stderr or done.stdout).strip().splitlines()
        raise TmuxFailed(f"tmux: {said[-1] if said else f'exit code {done.returncode}'}")
    return done.stdout.strip()


def begin(*words: str) -> str:
    """Make a session: ``tell("new-session", ...)``.

    A server that has lost its last session ends, and may take with it who has just connected: then it is asked anew.
    """
    until = time.monotonic() + ANSWER_S
    while True:
        try:
            return tell("new-session", "-d", *words)
        except TmuxFailed as error:
            if time.monotonic() >= until or not any(said in str(error) for said in ENDING):
                raise
            time.sleep(AGAIN_S)


def exists(session: str) -> bool:
    """Whether there is a session of exactly that name."""
    try:
        tell("has-session", "-t", f"={session}")
    except TmuxFailed:
        return False
    return True


def end(session: str) -> None:
    """End a session, with all that runs in it; where there is none, nothing is to be done."""
    try:
        tell("kill-session", "-t", f"={session}")
    except TmuxFailed as error:
        if exists(session):
            raise error


def bare(target: str, hint: str) -> list[str]:
    """Words that make a session of ours look as it should, whatever the person's own settings are; to be put behind the
    command that makes it. ``{}`` in ``hint`` stands for the prefix key."""
    hint = hint.replace("{}", "#{prefix}")
    session = {"destroy-unattached": "off", "status-left-length": "60", "status-left": "#{session_name} "}
    session |= {"status-right-length": "60", "status-right": hint}
    words = [word for key, value in session.items() for word in (";", "set-option", "-t", target, key, value)]
    return [*words, *framed(target)]


def framed(target: str) -> list[str]:
    """Words that give the panes of a window their titles, and let them go when their programs end."""
    window = {"remain-on-exit": "off", "pane-border-status": "top", "pane-border-format": " #{pane_title} "}
    return [word for key, value in window.items() for word in (";", "set-option", "-w", "-t", target, key, value)]


def command(module: str, *words: str) -> list[str]:
    """The words that run a module of ours in a pane.

    A pane has the environment of the tmux server, which may be older than this process: what is needed to find the
    module goes along.
    """
    root = Path(smolcluster.__file__).parents[1]
    places = [] if root.name in ("site-packages", "dist-packages") else [str(root)]
    places += [place for place in (os.environ.get("PYTHONPATH"),) if place]
    settings = [f"PYTHONPATH={os.pathsep.join(places)}"] if places else []
    line = ["/usr/bin/env", *settings, sys.executable, "-m", module, *words]
    return [re.sub(r";$", r"\\;", word) for word in line]  # a semicolon at its end would end tmux's command

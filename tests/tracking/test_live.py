import io
import os
import pty
import subprocess
import sys
from typing import Any

import pytest
from rich.console import Console

from smolcluster.tracking.board import Board
from smolcluster.tracking.live import LiveConsole, screen
from smolcluster.tracking.tracker import NodeInfo, RunInfo

START = 1_000_000.0


def drawn(board: Board, width: int, height: int, after: float = 10.5, *, styles: bool = False) -> str:
    console = Console(file=io.StringIO(), width=width, height=height, force_terminal=True, record=True)
    console.print(screen(board, START + after, width, height))
    return console.export_text(styles=styles)


def row(picture: str, name: str) -> list[str]:
    return next(line.split() for line in picture.splitlines() if line.startswith(name))


@pytest.fixture
def board(run: RunInfo, story: list[dict[str, Any]]) -> Board:
    found = Board(run, START)
    for event in story:
        found.on_event(event)
    return found


@pytest.mark.parametrize(("width", "height"), [(80, 24), (140, 40), (60, 16)])
def test_the_picture_fits(board: Board, width: int, height: int) -> None:
    lines = drawn(board, width, height).splitlines()
    assert len(lines) < height
    assert max(len(line) for line in lines) <= width


@pytest.mark.parametrize(("width", "height"), [(80, 24), (140, 40)])
def test_everything_is_on_one_screen(board: Board, run: RunInfo, width: int, height: int) -> None:
    picture = drawn(board, width, height)
    lines = [" ".join(line.split()) for line in picture.splitlines()]
    assert lines[0] == "SyncPS simplenn on digits 1 server + 2 workers 0:00:10"
    assert lines[1].endswith(str(run.path)[-50:])
    assert lines[2].startswith("step 10 of 10 ━")
    assert lines[2].endswith("100 % epoch 0 0.0 s left")
    assert row(picture, "node") == ["node", "role", "on", "state", "links", "step", "smp/s", "↑MB/s", "↓MB/s", "wait"]
    assert "mini1 server mini1 mps training 2/2 10 30 0.00 0.00 50 %" in lines
    assert "mini3 worker mini3 mps training 1/1 10 30 0.00 0.00 30 %" in lines
    assert any(line.startswith("loss 0.2 █▄") and "validation loss 0.25, accuracy 62.50 %" in line for line in lines)
    assert any(line == "lr 0.001 grad norm 0.5 best loss 0.25 at step 10" for line in lines)
    assert any(line == "speed 60 samples/s wire 30.0 kB out 27.0 kB in 2.0x less" for line in lines)
    assert lines[-1].endswith("mini3 answered too late at step 10: no answer in 5 s")


def test_before_the_first_event_all_are_starting(run: RunInfo) -> None:
    picture = drawn(Board(run, START), 80, 24, after=0.0)
    assert row(picture, "mini2") == ["mini2", "worker", "mini2", "mps", "starting", "–", "–", "–", "–", "–", "–"]
    assert "step 0" in picture
    assert "wire       0 B out  0 B in" in picture


def test_colours_tell_good_from_bad(board: Board, say: Any) -> None:
    board.on_event(say("mini1", "link", after=10.5, peer="mini3", up=False, reason="reset"))
    board.on_event(say("mini3", "state", after=10.5, state="failed", detail="out of memory"))
    picture = drawn(board, 80, 24, styles=True)
    assert "\x1b[32mtraining" in picture
    assert "\x1b[1;31mfailed" in picture
    assert "\x1b[1;31m  1/2" in picture
    assert "\x1b[1;31mmini3 failed: out of memory" in picture


def test_a_node_that_says_nothing_is_said_to_be_silent(board: Board) -> None:
    assert row(drawn(board, 80, 24, after=22.6), "mini3")[4:6] == ["silent", "12s"]


def test_what_a_node_says_can_neither_style_nor_steer(run: RunInfo, say: Any) -> None:
    board = Board(run, START)
    board.on_event(say("[red]x[/]", "state", state="[bold]hm", detail=""))
    board.on_event(say("mini3", "ready", hardware={"device": "\x1b[2J[/]"}))
    board.on_event(say("mini2", "log", level="ERROR", message="[link=http://evil]here[/link]\x1b]0;title\x07\r\u202e"))
    picture = drawn(board, 140, 40, styles=True)
    assert "[red]x[/]" in picture
    assert "[link=http://evil]here[/link]·]0;title···" in picture
    assert "\x1b[2J" not in picture
    assert "\x1b]" not in picture


def test_with_many_nodes_the_troubled_come_first_and_the_rest_is_counted(run: RunInfo, say: Any) -> None:
    workers = tuple(NodeInfo(name=f"pi{k}", role="worker", rank=k, host=f"pi{k}") for k in range(40))
    many = Board(RunInfo(**{**vars(run), "nodes": workers}), START)
    many.on_event(say("pi37", "state", state="lost", detail=""))
    picture = drawn(many, 80, 24)
    shown = [line.split()[0] for line in picture.splitlines() if line.startswith("pi")]
    assert shown[:2] == ["pi37", "pi0"]
    assert row(picture, "+") == [f"+{40 - len(shown)}", "more"]
    assert len(picture.splitlines()) < 24


class Terminal(io.StringIO):
    encoding = "utf-8"  # type: ignore[assignment]

    def isatty(self) -> bool:
        return True


def test_the_view_ends_with_a_summary_and_the_notes(
    run: RunInfo, story: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("LINES", "24")
    terminal = Terminal()
    console = LiveConsole(terminal, clock=lambda: START)
    console.start(run)
    for event in story:
        console.on_event(event)
    console.note("W&B: offline")
    console.stop({"status": "done", "reason": "all steps done", "steps": 10, "seconds": 12.5})
    console.stop()
    written = terminal.getvalue()
    assert written.count("\x1b[?25l") == written.count("\x1b[?25h") == 1
    ending = written.split("\x1b[?25h")[1]
    assert "done: all steps done" in ending
    assert ending.rstrip().endswith("W&B: offline\x1b[0m")


INTERRUPTED = """
import sys
from pathlib import Path
from smolcluster.tracking.console import console_for
from smolcluster.tracking.live import LiveConsole
from smolcluster.tracking.tracker import NodeInfo, RunInfo
nodes = (NodeInfo(name="a", role="worker", rank=0, host="a"),)
run = RunInfo(path=Path("outputs"), run_id="r", project="p", algo="EDP", model="m", data="d", lr=1.0, batch_size=1,
              nodes=nodes)
console = console_for(sys.stdout)
assert isinstance(console, LiveConsole)
console.start(run)
raise KeyboardInterrupt
"""


def test_an_interrupted_view_gives_the_cursor_back() -> None:
    ours, theirs = pty.openpty()
    environ = {**os.environ, "TERM": "xterm", "PYTHONIOENCODING": "utf-8"}
    subprocess.run([sys.executable, "-c", INTERRUPTED], stdin=theirs, stdout=theirs, stderr=theirs, env=environ)
    os.close(theirs)
    written = _all_of(ours)
    assert "KeyboardInterrupt" in written
    assert "\x1b[?25l" in written
    assert written.rindex("\x1b[?25h") > written.rindex("\x1b[?25l")


def _all_of(descriptor: int) -> str:
    parts = []
    with open(descriptor, "rb", buffering=0) as file:
        try:
            while part := file.read(4096):
                parts.append(part)
        except OSError:  # how Linux says that the other end is closed
            return b"".join(parts).decode()
    return b"".join(parts).decode()

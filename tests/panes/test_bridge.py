"""A program in a tmux session, with its streams here: the same bytes, the same end, and nothing left of it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tests.integration.command import alive
from tests.panes.sessions import children, needs_tmux, pane_pid, screen, server_pid, sessions, tmux, until

pytestmark = [needs_tmux, pytest.mark.xdist_group("tmux")]
NAME = "smolcluster-0-ab12-mini2"
HELLO = 'import json, os, sys; print(json.dumps({"event": "hello", "pid": os.getpid()}), flush=True); '
WAIT = "sys.stdin.read()"


class Started:
    """A bridge, and the program that it has had started."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        self.process, self.stdin, self.stdout = process, process.stdin, process.stdout

    @property
    def node(self) -> int:
        """Its pid, as it says first."""
        return int(json.loads(self.stdout.readline())["pid"])

    def finish(self, within: float = 20) -> tuple[int, bytes, bytes]:
        """(exit code, the rest of what it said, its errors)."""
        out, err = self.process.communicate(timeout=within)
        return self.process.returncode, out, err


@contextlib.contextmanager
def bridge(tmp_path: Path, *argv: str) -> Iterator[Started]:
    """The bridge to ``argv``; when that is over, nothing may be left of it."""
    private = tmp_path / "private"
    private.mkdir(exist_ok=True)
    process = subprocess.Popen(
        [sys.executable, "-m", "smolcluster.panes.bridge", NAME, "mini2", *argv], cwd=tmp_path,
        env={**os.environ, "TMPDIR": str(private), "FROM_HERE": "a b;"},
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    try:
        yield Started(process)
    finally:
        process.kill()
        process.wait()
        for stream in (process.stdin, process.stdout, process.stderr):
            assert stream is not None
            with contextlib.suppress(BrokenPipeError):
                stream.close()
    until(lambda: NAME not in sessions(), "the end of the session", within=5)
    assert list(private.iterdir()) == []


def python(script: str) -> Sequence[str]:
    return [sys.executable, "-c", script]


def test_every_byte_arrives_and_so_does_the_exit_code(tmp_path: Path) -> None:
    data = os.urandom(5_000_000)
    copy = "import shutil, sys; shutil.copyfileobj(sys.stdin.buffer, sys.stdout.buffer); print('w', file=sys.stderr)"
    with bridge(tmp_path, *python(f"{copy}; sys.exit(3)")) as started:
        feeder = threading.Thread(target=lambda: (started.stdin.write(data), started.stdin.close()))
        feeder.start()
        out = started.stdout.read()
        feeder.join()
        assert started.process.wait(20) == 3
        assert out == data
        assert started.process.stderr is not None
        assert started.process.stderr.read() == b"w\n"
        assert NAME not in sessions(), "it is gone before its bridge is"


def test_it_has_the_place_and_the_environment_of_its_bridge(tmp_path: Path) -> None:
    show = "import json, os; print(json.dumps([os.getcwd(), dict(os.environ)]))"
    with bridge(tmp_path, *python(show)) as started:
        code, out, err = started.finish()
    assert (code, err) == (0, b"")
    place, environment = json.loads(out)
    assert place == str(tmp_path)
    assert environment["FROM_HERE"] == "a b;"
    assert not [name for name in environment if name in ("TMUX", "TMUX_PANE")]


def test_what_it_says_is_on_the_screen(tmp_path: Path) -> None:
    say = f'{HELLO}print(json.dumps({{"event": "state", "state": "training", "detail": ""}}), flush=True)'
    with bridge(tmp_path, *python(f"{say}; print('careful', file=sys.stderr, flush=True); {WAIT}")) as started:
        node = started.node
        until(lambda: "careful" in screen(f"={NAME}:") and "training" in screen(f"={NAME}:"), "lines on the screen")
        assert f"started, process {node}" in screen(f"={NAME}:")
        assert tmux("display-message", "-p", "-t", f"={NAME}:", "#{pane_title}").endswith(" · training")
        assert tmux("display-message", "-p", "-t", f"={NAME}:", "#{window_width}x#{window_height}") == "200x50"
        tmux("send-keys", "-t", f"={NAME}:", "C-c")
        until(lambda: "no key reaches the node" in screen(f"={NAME}:"), "a hint")
        assert alive(node), "Ctrl-C in its pane is no way to end a node"
        started.stdin.close()
        assert started.process.wait(20) == 0


def test_no_program(tmp_path: Path) -> None:
    with bridge(tmp_path, "/no/such/program") as started:
        assert started.finish() == (127, b"", b"/no/such/program: No such file or directory\n")


def test_without_tmux(tmp_path: Path) -> None:
    code = "from smolcluster.panes import tmux, bridge; tmux.PLACES = (); bridge.main()"
    done = subprocess.run(
        [sys.executable, "-c", code, NAME, "mini2"], env={**os.environ, "PATH": "/nowhere"}, capture_output=True,
        text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (127, "tmux: there is no such program\n")


def test_nothing_piles_up_where_nobody_reads(tmp_path: Path) -> None:
    count = tmp_path / "count"
    write = f"n += os.write(1, b'x' * 8191 + b'\\n'); open({str(count)!r}, 'w').write(str(n))"
    flood = f"import os\nn = 0\nwhile n < 1 << 22: {write}"
    seen = [-1]

    def still() -> bool:
        """It has written, and half a second later no more than that."""
        size = int(count.read_text() or 0) if count.exists() else 0
        stands, seen[0] = size > 0 and size == seen[0], size
        threading.Event().wait(0.5)
        return stands

    with bridge(tmp_path, *python(flood)) as started:
        until(still, "coming to a halt")
        assert seen[0] < 1 << 20
        code, out, _ = started.finish()
    assert (code, len(out)) == (0, 1 << 22)


def test_a_terminal_that_takes_nothing_holds_up_nobody(tmp_path: Path) -> None:
    line = json.dumps({"event": "log", "level": "INFO", "message": "m" * 300})
    flood = f"{HELLO}{WAIT[:-2].replace('read', 'readline')}(); [print({line!r}) for _ in range(30000)]"
    with bridge(tmp_path, *python(flood)) as started:
        assert started.node
        server = server_pid()
        os.kill(server, signal.SIGSTOP)
        try:
            started.stdin.write(b"go\n")
            started.stdin.flush()
            for _ in range(30000):
                assert started.stdout.readline() == line.encode() + b"\n"
        finally:
            os.kill(server, signal.SIGCONT)
        assert started.finish()[0] == 0


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGSEGV])
def test_a_killed_node_is_told_apart(tmp_path: Path, number: signal.Signals) -> None:
    with bridge(tmp_path, *python(HELLO + WAIT)) as started:
        os.kill(started.node, number)
        assert started.finish() == (-number, b"", b"")


def test_a_killed_bridge_ends_the_node(tmp_path: Path) -> None:
    with bridge(tmp_path, *python(HELLO + WAIT)) as started:
        node, pane = started.node, pane_pid(NAME)
        started.process.kill()
        until(lambda: not alive(node) and not alive(pane), "the end of all", within=2)


@pytest.mark.parametrize("victim", ["session", "server", "pane", "hang-up"])
def test_an_ended_session_ends_the_node_and_is_named(tmp_path: Path, victim: str) -> None:
    with bridge(tmp_path, *python(HELLO + WAIT)) as started:
        node, pane, server = started.node, pane_pid(NAME), server_pid()
        assert children(pane) == [node]
        if victim == "session":
            tmux("kill-session", "-t", f"={NAME}")
        else:
            target = {"server": server, "pane": pane, "hang-up": pane}[victim]
            os.kill(target, signal.SIGHUP if victim == "hang-up" else signal.SIGKILL)
        code, out, _ = started.finish(within=2)
        assert not alive(node)
        assert not alive(pane)
    assert code == 1
    event = json.loads(out.strip())
    how = "is gone: the program in its pane was killed" if victim == "pane" else "was ended from outside"
    assert event == {
        "event": "failed", "reason": f"its tmux session {NAME} {how}", "kind": "TmuxFailed", "final": False
    }  # fmt: skip


def test_bridge_and_pane_killed_at_once(tmp_path: Path) -> None:
    """The system hangs up on whoever is left in the terminal."""
    with bridge(tmp_path, *python(HELLO + WAIT)) as started:
        node, pane = started.node, pane_pid(NAME)
        started.process.kill()
        os.kill(pane, signal.SIGKILL)
        until(lambda: not alive(node), "the end of the node", within=2)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_bridge_that_is_ended_while_it_starts(tmp_path: Path, number: signal.Signals) -> None:
    """At whatever moment: nothing comes up afterwards, and nothing stays."""
    run = "import sys; sys.stdin.read()"
    for delay in (0.02, 0.05, 0.1, 0.15, 0.2, 0.3):
        command = [sys.executable, "-m", "smolcluster.panes.bridge", NAME, "mini2", *python(run)]
        place = {**os.environ, "TMPDIR": str(tmp_path)}
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=place) as process:
            threading.Event().wait(delay)
            process.send_signal(number)
            assert process.stdout is not None
            assert process.stdout.read() == b"", "until all that had been started has ended"
        until(lambda: NAME not in sessions(), "the end of the session", within=5)
        if number == signal.SIGTERM:
            assert list(tmp_path.iterdir()) == []


def test_a_successor_takes_the_place_of_a_session_that_is_still_there(tmp_path: Path) -> None:
    with bridge(tmp_path, *python(HELLO + WAIT)) as first:
        before = first.node
        with bridge(tmp_path, *python(HELLO + WAIT)) as second:
            assert alive(second.node)
            assert not alive(before)
            assert first.finish()[0] == 1
            second.stdin.close()
            assert second.process.wait(20) == 0

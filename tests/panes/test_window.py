"""The window of a run: a pane for each node that shows what the run's directory gets, and when it goes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from smolcluster.panes import tmux as program
from smolcluster.panes.follow import Tail, is_about, moment
from smolcluster.panes.window import Window
from smolcluster.tracking.logs import FileLogs
from smolcluster.tracking.rundir import RunDirectory
from smolcluster.tracking.tracker import NodeInfo, RunInfo, TrackerFailed
from tests.panes.sessions import needs_tmux, screen, sessions, titles, tmux, until

pytestmark = [needs_tmux, pytest.mark.xdist_group("tmux")]


def run_of(path: Path, count: int = 3) -> RunInfo:
    workers = [NodeInfo(name=f"mini{k}", role="worker", rank=k - 2, host=f"mini{k}") for k in range(2, count + 1)]
    nodes = (NodeInfo(name="mini1", role="server", rank=0, host="mini1"), *workers)
    return RunInfo(
        path=path, run_id=f"0-{path.name[-20:]}", project="p", algo="SyncPS", model="m", data="d", lr=0.1,
        batch_size=1, nodes=nodes,
    )  # fmt: skip


class Written:
    """A run's directory, and events that get into it as a controller writes them."""

    def __init__(self, run: RunInfo) -> None:
        self.directory, self.logs = RunDirectory(run.path), FileLogs().sink(run)

    def __call__(self, node: str, event: str, **fields: object) -> None:
        stamped = {"event": event, **fields, "node": node, "role": "worker", "rank": 0, "t": time.time()}
        self.directory.on_event(stamped)
        self.logs.on_event(stamped)

    def end(self, status: str, reason: str = "") -> dict[str, str]:
        summary = {"status": status, "reason": reason}
        self.directory.write_summary(summary)
        self.directory.close()
        self.logs.close()
        return summary


def panes(name: str) -> list[str]:
    """What each pane of a session shows, in order."""
    found = tmux("list-panes", "-s", "-t", f"={name}", "-F", "#{pane_id}").split()
    return [screen(pane) for pane in found]


def test_each_node_has_a_pane_until_the_run_is_done(tmp_path: Path) -> None:
    run = run_of(tmp_path / "run")
    window, write = Window(run), Written(run)
    (told,) = window.start({})
    assert told == f"a pane for each node: tmux attach -t {window.name}"
    assert window.name in sessions()
    write("mini2", "state", state="training", detail="")
    write("mini2", "log", level="INFO", logger="x", message="Epoch 1, step 7", step=7)
    write("mini3", "log", level="WARNING", logger="stderr", message="careful", step=None)
    write("mini1", "metrics", step=7, num_steps=9, samples_per_s=50.0)
    write("controller", "journal", kind="started", peer="mini3", pid=4711)
    until(lambda: "careful" in panes(window.name)[2] and "Epoch 1" in panes(window.name)[1], "what was written")
    one, two, three = panes(window.name)
    assert "training" in two
    assert "careful" not in two
    assert "mini3 is started (pid 4711)" in three
    assert "Epoch" not in one + three
    until(lambda: titles(window.name)[0] == "mini1 (server 0) · step 7/9 · 50 samples/s", "the title of the first")
    assert titles(window.name)[1] == "mini2 (worker 0) · training · step 7"
    assert window.finish(write.end("done")) == ()
    assert window.name not in sessions()


def test_a_person_may_close_it(tmp_path: Path) -> None:
    run = run_of(tmp_path / "run-closed")
    window, write = Window(run), Written(run)
    window.start({})
    tmux("kill-session", "-t", f"={window.name}")
    assert window.finish(write.end("done")) == ()


@pytest.mark.parametrize("status", ["failed", "interrupted"])
def test_a_window_that_nobody_sees_is_not_left_over(tmp_path: Path, status: str) -> None:
    run = run_of(tmp_path / f"run-{status}")
    window, write = Window(run), Written(run)
    window.start({})
    window.finish(write.end(status, "no reason"))
    assert window.name not in sessions()


def test_when_the_run_has_failed_it_waits_for_a_key(tmp_path: Path) -> None:
    run = run_of(tmp_path / "run-seen")
    window, write = Window(run), Written(run)
    window.start({})
    program.begin("-s", "person", *program.SIZE, f"env -u TMUX tmux attach -t {window.name}")
    until(lambda: tmux("display-message", "-p", "-t", f"={window.name}:", "#{session_attached}") == "1", "attaching")
    window.finish(write.end("failed", "mini3: killed by signal 9"))
    until(lambda: all("any key closes this window" in pane for pane in panes(window.name)), "the reason")
    assert all("the run has failed: mini3: killed by signal 9" in pane for pane in panes(window.name))
    tmux("send-keys", "-t", "person", "x")
    until(lambda: not {window.name, "person"} & set(sessions()), "the end of the window")


def test_when_the_run_has_failed_it_goes_with_who_watched(tmp_path: Path) -> None:
    run = run_of(tmp_path / "run-left")
    window, write = Window(run), Written(run)
    window.start({})
    program.begin("-s", "person", *program.SIZE, f"env -u TMUX tmux attach -t {window.name}")
    until(lambda: tmux("display-message", "-p", "-t", f"={window.name}:", "#{session_attached}") == "1", "attaching")
    window.finish(write.end("failed", "no reason"))
    until(lambda: all("any key closes" in pane for pane in panes(window.name)), "the reason")
    tmux("detach-client", "-s", f"={window.name}")
    until(lambda: window.name not in sessions(), "the end of the window")


def test_inside_of_tmux_it_is_a_window_of_that_session(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program.begin("-s", "person", "-n", "typing", *program.SIZE, "cat")
    for name, value in (("TMUX", "#{socket_path},#{pid},0"), ("TMUX_PANE", "#{pane_id}")):
        monkeypatch.setenv(name, tmux("display-message", "-p", "-t", "=person:", value))
    run = run_of(tmp_path / "run-inside")
    window, write = Window(run), Written(run)
    assert list(window.start({})) == [f"a pane for each node: window {window.name} of this tmux session"]
    assert sessions() == ["person"]
    windows = lambda: tmux("list-windows", "-t", "=person", "-F", "#{window_name} #{window_active}").splitlines()  # noqa: E731
    assert windows() == ["typing 1", f"{window.name} 0"], "the person stays where the command was typed"
    window.finish(write.end("failed", "no reason"))
    until(lambda: "any key closes this window" in screen(f"=person:={window.name}"), "the reason")
    tmux("send-keys", "-t", f"=person:={window.name}", "x")
    until(lambda: windows() == ["typing 1"], "the end of the window")
    tmux("kill-session", "-t", "=person")


def test_it_goes_when_the_controller_is_killed(tmp_path: Path) -> None:
    path = tmp_path / "run-killed"
    code = (
        "import sys; from pathlib import Path; from tests.panes.test_window import run_of, Window, Written\n"
        f"run = run_of(Path({str(path)!r})); Written(run); window = Window(run); window.start({{}})\n"
        "print(window.name, flush=True); sys.stdin.read()"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as controller:
        assert controller.stdout is not None
        name = controller.stdout.readline().decode().strip()
        assert name in sessions()
        os.kill(controller.pid, signal.SIGKILL)
    until(lambda: name not in sessions(), "the end of the window", within=5)


def test_who_finds_no_room_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(program, "SIZE", ("-x", "40", "-y", "10"))
    run = run_of(tmp_path / "run-many", 20)
    window = Window(run)
    _, lack = window.start({})
    shown = len(titles(window.name))
    assert 1 < shown < 20
    assert lack == f"no room for a pane for {', '.join(node.name for node in run.nodes[shown:])}"
    window.finish({"status": "done"})
    assert window.name not in sessions()


def test_without_tmux_the_run_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setattr(program, "PLACES", ())
    with pytest.raises(TrackerFailed, match="tmux: there is no such program"):
        Window(run_of(tmp_path / "run-without")).start({})


def test_a_file_that_grows_is_read_once(tmp_path: Path) -> None:
    tail = Tail(tmp_path / "metrics.jsonl", "metrics")
    assert list(tail.read()) == []
    with (tmp_path / "metrics.jsonl").open("w") as file:
        file.write('{"step":1}\n{"st')
        file.flush()
        assert list(tail.read()) == [{"event": "metrics", "step": 1}]
        file.write('ep":2}\n')
        file.flush()
        assert list(tail.read()) == [{"event": "metrics", "step": 2}]
        assert list(tail.read()) == []


def test_whose_event_it_is() -> None:
    assert is_about({"node": "mini2"}, "mini2")
    assert is_about({"node": "controller", "peer": "mini2"}, "mini2")
    assert not is_about({"node": "mini1", "peer": "mini2"}, "mini2")
    assert moment({"t": 3}) == 3.0
    assert moment({"ts": "1970-01-01T00:00:05Z"}) == 5.0
    assert moment({}) == pytest.approx(time.time(), abs=60)

"""hydra.launcher.tmux=true: nodes in tmux sessions, here and on hosts; the same results, the same guarantees."""

from __future__ import annotations

import os
import re
import signal
import sys
import time
from pathlib import Path

import pytest

from smolcluster.tracking.rundir import RunReader
from tests.integration.command import ENDLESS, PROMPT_S, Back, Command, alive, command, gone
from tests.integration.hosts import why_not
from tests.integration.on_hosts import Cluster
from tests.panes.sessions import (
    children,
    needs_tmux,
    pane_pid,
    screen,
    server_pid,
    sessions,
    titles,
    tmux,
    until,
    words_of,
)

pytestmark = [needs_tmux, pytest.mark.xdist_group("tmux on hosts")]
isolated = pytest.mark.skipif(bool(why_not()), reason=f"needs hosts with networks of their own: {why_not()}")
WORDS = ("train.export=false", "train.eval_samples=64", "train.eval_steps=null")
TMUX = "hydra.launcher.tmux=true"
HERE = ("server", "worker0", "worker1")


def run_id(run: Command) -> str:
    """What the run's window is called, from the line that tells of it."""
    return run.wait_for("a pane for each node: tmux attach -t ").rpartition(" ")[2]


def panes(session: str) -> str:
    found = tmux("list-panes", "-s", "-t", f"={session}", "-F", "#{pane_id}").split()
    return "\n".join(screen(pane) for pane in found)


def test_nodes_of_this_machine_have_a_session_each(tmp_path: Path) -> None:
    words = (*WORDS, "train.epochs=2", "comms.chaos_delay_s=0.004")
    plain = command(tmp_path / "plain", *words)
    with Command(tmp_path / "run", (*words, TMUX)) as run:
        name = run_id(run)
        run.wait_until(lambda: run.steps() > 5, "step 5")
        assert set(sessions()) == {name, *(f"{name}-{node}" for node in HERE)}
        for node in HERE:
            shown = f"={name}-{node}:"
            until(lambda: "training" in screen(shown) and "loss" in screen(shown), f"{node} on its screen")  # noqa: B023
            assert f"started, process {run.pids()[node]}" in screen(shown)
        until(lambda: panes(name).count("training") == 3 and "loss" in panes(name), "all nodes in one window")
        assert [title.split(" on ")[0] for title in titles(name)] == [
            "server (server 0)", "worker0 (worker 0)", "worker1 (worker 1)",
        ]  # fmt: skip
        assert run.finish() == 0, "\n".join(run.lines) + run.stderr
        assert sessions() == [], "nothing is left when the command has ended"
    assert run.summary["digest"] == plain.summary["digest"]
    gone(run.all_pids(), 5)


def bridge_pid(controller: int, session: str) -> int:
    """The process that stands for a node of this machine."""
    (found,) = [pid for pid in children(controller) if session in words_of(pid)]
    return found


def test_whatever_of_a_worker_is_killed_it_is_named_and_comes_back(tmp_path: Path) -> None:
    words = (*WORDS, *ENDLESS, "cluster.max_restarts=4", TMUX)
    with Command(tmp_path / "run", words) as run:
        name = run_id(run)
        mine = f"{name}-worker1"
        run.wait_until(lambda: run.steps() > 5, "step 5")
        for count, (victim, reason) in enumerate(
            (
                ("node", r"killed by signal 9 \(SIGKILL\)"),
                ("bridge", r"killed by signal 9 \(SIGKILL\)"),
                ("pane", f"its tmux session {mine} is gone: the program in its pane was killed"),
                ("session", f"its tmux session {mine} was ended from outside"),
            )
        ):
            run.wait_until(lambda: len(run.journal("started")) == 3 + count, "its return")  # noqa: B023
            node, pane = run.pids()["worker1"], pane_pid(mine)
            told = {"node": node, "bridge": bridge_pid(run.process.pid, mine), "pane": pane}
            began = time.monotonic()
            if victim == "session":
                tmux("kill-session", "-t", f"={mine}")
            else:
                os.kill(told[victim], signal.SIGKILL)
            losses = lambda: [e for e in RunReader(run.run).events() if e.get("state") == "lost"]  # noqa: E731
            run.wait_until(lambda: len(losses()) > count, f"the loss of the {victim}")  # noqa: B023
            assert time.monotonic() - began < PROMPT_S
            assert re.fullmatch(reason, losses()[-1]["detail"]), victim
            until(lambda: not alive(node) and not alive(pane), "the end of the node", within=PROMPT_S)  # noqa: B023
        os.kill(run.process.pid, signal.SIGINT)
        assert run.finish() == 130
    assert sessions() == []


def test_a_killed_tmux_server_ends_the_run_and_leaves_nothing(tmp_path: Path) -> None:
    with Command(tmp_path / "run", (*WORDS, *ENDLESS, "cluster.max_restarts=0", TMUX)) as run:
        name = run_id(run)
        run.wait_until(lambda: run.steps() > 10, "step 10")
        pids = run.all_pids()
        os.kill(server_pid(), signal.SIGKILL)
        assert run.finish(within=20) == 1
    assert re.search(f": its tmux session {name}-(server|worker.) was ended from outside", run.stderr), run.stderr
    gone(pids, 5)
    assert sessions() == []


def test_a_killed_controller_leaves_nothing_here(tmp_path: Path) -> None:
    with Command(tmp_path / "run", (*WORDS, *ENDLESS, TMUX)) as run:
        name = run_id(run)
        run.wait_until(lambda: run.steps() > 10, "step 10")
        pids = [*run.all_pids(), *(pane_pid(f"{name}-{node}") for node in HERE)]
        run.process.kill()
        run.finish()
        gone(pids, 10)
        until(lambda: sessions() == [], "the end of all sessions", within=PROMPT_S)


def test_jobs_side_by_side_have_sessions_and_a_window_each(tmp_path: Path) -> None:
    words = (*WORDS, "train.epochs=3", "seed=1,2", "hydra.launcher.max_concurrent=2", TMUX)
    with Command(tmp_path / "sweep", words) as run:
        seen: set[str] = set()

        def found() -> bool:
            seen.update(sessions())
            return len(seen) == 8

        run.wait_until(found, "two windows and six sessions")
        assert run.finish() == 0, "\n".join(run.lines) + run.stderr
    assert sum(name.endswith("-worker1") for name in seen) == 2
    assert sessions() == []


def test_hosts_have_a_session_each_and_all_are_seen_here(cluster: Cluster, tmp_path: Path) -> None:
    words = (*WORDS, "train.epochs=3", "comms.chaos_delay_s=0.004")
    here = cluster.here(*words)
    with cluster.command(tmp_path / "there", *words, TMUX) as run:
        name = run_id(run)
        run.wait_until(lambda: run.steps() > 5, "step 5")
        assert sessions() == [name], "nodes are not here"
        for host in cluster.hosts:
            assert sessions(host.tmux) == [f"{name}-{host.name}"]
            shown = f"={name}-{host.name}:"
            until(lambda: "loss" in screen(shown, host.tmux), f"{host.name} on its screen")  # noqa: B023
            assert f"process {run.pids()[host.name]}" in screen(shown, host.tmux)
        until(lambda: panes(name).count("training") == 3, "all nodes in one window")
        assert [title.split(" · ")[0] for title in titles(name)] == [
            "mini1 (server 0)", "mini2 (worker 0)", "mini3 (worker 1)",
        ]  # fmt: skip
        assert run.finish() == 0, "\n".join(run.lines) + run.stderr
    assert run.summary["digest"] == here.summary["digest"]
    assert not cluster.left()
    assert not [each for host in cluster.hosts for each in sessions(host.tmux)]


def test_a_host_whose_tmux_is_killed_is_named_and_comes_back(cluster: Cluster, tmp_path: Path) -> None:
    host = cluster.hosts["mini2"]
    with cluster.command(tmp_path / "run", *WORDS, "train.epochs=20", TMUX) as run:
        name = run_id(run)
        run.wait_until(lambda: run.steps() > 20, "step 20")
        began = time.monotonic()
        os.kill(server_pid(host.tmux), signal.SIGKILL)
        run.wait_for(f"mini2 lost: its tmux session {name}-mini2 was ended from outside", within=PROMPT_S)
        assert time.monotonic() - began < PROMPT_S
        assert run.finish() == 0, "\n".join(run.lines) + run.stderr
    assert len(run.journal("started")) == 4
    assert not cluster.left()


def test_a_killed_controller_leaves_no_session_on_any_host(cluster: Cluster, tmp_path: Path) -> None:
    with cluster.command(tmp_path / "run", *WORDS, *ENDLESS, TMUX) as run:
        run_id(run)
        run.wait_until(lambda: run.steps() > 10, "step 10")
        run.process.kill()
        run.finish()
        servers = [host.tmux for host in cluster.hosts]
        until(lambda: not cluster.left() and not any(map(sessions, servers)), "the end of all", within=15)
        until(lambda: sessions() == [], "the end of the window", within=PROMPT_S)


@isolated
def test_a_host_without_tmux_is_told_before_any_node_starts(cluster: Cluster, tmp_path: Path) -> None:
    host = cluster.hosts["mini3"]
    host.stop_sshd()
    host.start(lacks=["tmux"])
    try:
        with cluster.command(tmp_path / "run", *WORDS, TMUX) as run:
            assert run.finish() == 1
        lack = "mini3: has no tmux, which hydra.launcher.tmux=true needs: sudo apt install tmux"
        assert run.stderr.splitlines()[0].startswith(f"smolcluster: {lack}")
        assert not run.journal("started")
        assert sessions() == []
        cluster.run(tmp_path / "without", *WORDS, "train.max_steps=3")
    finally:
        host.stop_sshd()
        host.start()


def test_a_run_that_was_left_going_keeps_its_sessions(cluster: Cluster, tmp_path: Path) -> None:
    with cluster.command(tmp_path / "run", *WORDS, *ENDLESS, TMUX, "hydra.launcher.detach=true") as run:
        assert run.finish() == 0, "\n".join(run.lines) + run.stderr
        try:
            assert sessions() == [], "whoever comes back has no window"
            for host in cluster.hosts:
                (name,) = sessions(host.tmux)
                until(lambda: "loss" in screen(f"={name}:", host.tmux), f"{host.name} on its screen")  # noqa: B023
        finally:
            with Back.to(run.run, "stop", cluster.me) as back:
                assert back.finish() == 130, "\n".join(back.lines) + back.stderr
    assert RunReader(run.run).summary()["status"] == "interrupted"
    servers = [host.tmux for host in cluster.hosts]
    until(lambda: not cluster.left() and not any(map(sessions, servers)), "the end of all", within=15)


def test_a_sweep_on_hosts_through_one_connection(cluster: Cluster, tmp_path: Path) -> None:
    words = ("hydra.launcher.share_nodes=true", "hydra.launcher.max_concurrent=2", "seed=1,2", TMUX)
    cluster.run(tmp_path / "sweep", *WORDS, "train.max_steps=5", *words)
    runs = [RunReader(tmp_path / "sweep" / number).summary() for number in "01"]
    assert [each["status"] for each in runs if each] == ["done"] * 2
    assert sessions() == []


def test_machines_that_join_by_hand_have_sessions_too(cluster: Cluster, tmp_path: Path) -> None:
    words = (*WORDS, "train.epochs=2", "comms.chaos_delay_s=0.004", "hydra.launcher.session=manual", TMUX)
    joined = []
    with cluster.command(tmp_path / "run", *words) as run:
        try:
            for host in cluster.hosts:
                line = run.wait_for(f"{host.name}: type there: python -m smolcluster join=")
                joined.append(host.popen([sys.executable, "-m", "smolcluster", line.rpartition(" ")[2]]))
            run.wait_until(lambda: run.steps() > 5, "step 5")
            assert [len(sessions(host.tmux)) for host in cluster.hosts] == [1, 1, 1]
            assert run.finish() == 0, "\n".join(run.lines) + run.stderr
            for process in joined:
                process.communicate(timeout=20)
        finally:
            for process in joined:
                process.kill()
                process.wait()
    assert not cluster.left()
    assert sessions() == []

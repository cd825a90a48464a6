"""Runs that are left going: on hosts that are reached by SSH, and on this machine. What they come to is what they would
have come to with somebody there, and whatever dies, nothing is left running."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.integration.command import ENDLESS, Back, Command, alive, command, gone
from tests.integration.hosts import Host, ip, why_not
from tests.integration.on_hosts import Cluster

pytestmark = pytest.mark.xdist_group("detach")
isolated = pytest.mark.skipif(bool(why_not()), reason=f"needs hosts with networks of their own: {why_not()}")
WORDS = ("train.export=false", "train.eval_samples=64", "train.eval_steps=null", "train.checkpoint_steps=50")
LONG = (*WORDS, *ENDLESS, "train.checkpoint_steps=20")
DETACH = "hydra.launcher.detach=true"


def everything(host: Host) -> dict[int, str]:
    """Our processes on a host, by pid."""
    found = {}
    for pid in host.pids():
        try:
            words = Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")
        except (FileNotFoundError, ProcessLookupError):
            continue
        if alive(pid) and any(mark in word for word in words for mark in ("smolcluster", "class Follower")):
            found[pid] = " ".join(words)[:120]
    return found


def mine(cluster: Cluster) -> dict[int, str]:
    """Our processes on the person's own machine, by pid."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            home, words = (folder / "environ").read_bytes(), (folder / "cmdline").read_bytes()
            if f"HOME={cluster.me}\0".encode() in home and b"smolcluster" in words and alive(int(folder.name)):
                found[int(folder.name)] = words.replace(b"\0", b" ").decode()[:120]
    return found


def those(host: Host, words: str) -> list[int]:
    """Processes on a host with these words on their command line."""
    return [pid for pid, line in everything(host).items() if words in f"{line} "]


def conductor(host: Host) -> int:
    (pid,) = those(host, "_conductor")
    return pid


def left(cluster: Cluster) -> list[str]:
    """What runs on any machine and is not just coming to see how the run is."""
    there = [f"{host.name}: {pid} {words}" for host in cluster.hosts for pid, words in everything(host).items()]
    return there + [f"here: {pid} {words}" for pid, words in mine(cluster).items() if "attach=" not in words]


def nothing_left(cluster: Cluster, within: float) -> float:
    """Seconds until nothing of ours runs on any host."""
    began = time.monotonic()
    while found := left(cluster):
        if time.monotonic() - began > within:
            raise AssertionError(f"still there after {within:g} s: {found}")
        time.sleep(0.05)
    return time.monotonic() - began


@contextmanager
def detached(cluster: Cluster, folder: Path, *words: str) -> Iterator[Path]:
    """The directory of a run that has been left going there; afterwards nothing of it is left."""
    with cluster.command(folder, DETACH, *words) as run:
        assert run.finish() == 0, "\n".join(run.lines) + run.stderr
    assert run.lines[-1] == str(run.run)
    try:
        yield run.run
    finally:
        for pid in [*mine(cluster), *(pid for host in cluster.hosts for pid in everything(host))]:
            with contextlib.suppress(ProcessLookupError):  # only after a test that has failed is there any
                os.kill(pid, signal.SIGKILL)


def back(cluster: Cluster, run: Path, word: str = "attach", code: int = 0) -> Back:
    """Come back to a run and stay to its end."""
    with Back.to(run, word, cluster.me) as visit:
        assert visit.finish() == code, "\n".join(visit.lines) + visit.stderr
    assert "Traceback" not in visit.stderr
    return visit


def whole(run: Path) -> dict[str, object]:
    """The summary of a run whose directory is as if it had run here."""
    summary: dict[str, object] = json.loads((run / "summary.json").read_text())
    for name in ("run_spec.json", "metrics.jsonl", "events.jsonl", "loss.png", "conductor.log", ".hydra/config.yaml"):
        assert (run / name).is_file(), name
    assert len(list((run / "logs").glob("*.jsonl"))) == 3
    assert not list(run.glob(".incoming*"))
    latest = (run / "checkpoints" / "latest").resolve()
    assert json.loads((latest / "state.json").read_text())["step"] == summary["steps"]
    assert summary["checkpoint"] == f"checkpoints/{latest.name}"
    return summary


def test_a_run_without_its_command_comes_to_the_same(cluster: Cluster, tmp_path: Path) -> None:
    words = (*WORDS, "train.epochs=8", "train.export=true")
    here = cluster.here(*words)
    with cluster.command(tmp_path / "run", DETACH, *words) as start:
        start.wait_for("to come back: .*attach=")
        start.process.kill()
        start.finish()
    run = start.run
    assert not (run / "summary.json").exists()
    visit = back(cluster, run)
    summary = whole(run)
    assert summary["digest"] == here.summary["digest"]
    assert summary["final"] == here.summary["final"]
    assert (run / "export" / "model.pt2").read_bytes()[:2] == b"PK"
    assert visit.lines[-1] == str(run)
    assert any("mini3 joined" in line for line in visit.lines), "what was before is told"
    assert visit.wait_for(r"step [\d,]+/[\d,]+ \(100 %\)")
    assert nothing_left(cluster, 10) < 10
    again = back(cluster, run)
    assert again.lines[0] == "the run is over, and all of it is here"
    local = ("cluster=local", "cluster.threads_per_node=1")
    evaluated = command(tmp_path / "evaluated", "pipeline=evaluate", f"resume={run}", *local)
    assert evaluated.summary["final"]["loss"] == pytest.approx(here.summary["final"]["loss"])
    repeated = command(tmp_path / "repeated", f"rerun={run}", *local)
    assert repeated.summary["rerun"] == {"of": str(run), "identical": True}
    further = command(tmp_path / "further", f"resume={run}", "train.epochs=9", "train.export=false", *local)
    assert further.metrics[0]["step"] == int(str(summary["steps"])) + 1


@isolated
def test_nothing_is_left_when_the_conductor_is_killed(cluster: Cluster, tmp_path: Path) -> None:
    with detached(cluster, tmp_path / "run", *LONG) as run:
        with Back.to(run, home=cluster.me) as watching:
            watching.wait_for(r"checkpoint at step")
            os.kill(conductor(cluster.hosts["mini1"]), signal.SIGKILL)
            assert nothing_left(cluster, 15) < 15
            assert watching.finish() == 1
        for visit in (watching, back(cluster, run, code=1), back(cluster, run, "stop", code=1)):
            (line,) = visit.stderr.splitlines()
            assert line.startswith("smolcluster: mini1: the process that conducted the run has died (see /")
            assert f"is saved: go on with resume={run}" in line
    step = int((run / "checkpoints" / "latest").resolve().name.removeprefix("step-"))
    again = command(tmp_path / "again", f"resume={run}", f"train.max_steps={step + 5}", "cluster=local", *WORDS)
    assert [line["step"] for line in again.metrics] == list(range(step + 1, step + 6))


@isolated
def test_the_run_does_not_need_the_persons_machine(cluster: Cluster, tmp_path: Path) -> None:
    """Its link is cut, and then one between the others, for three seconds each."""
    words = (*WORDS, "train.epochs=20", "comms.chaos_delay_s=0.01")
    here = cluster.here(*words)
    with detached(cluster, tmp_path / "run", *words) as run, Back.to(run, home=cluster.me) as watching:
        watching.wait_for("step 2")
        with cut_off(cluster):
            pause(3)
        with unplugged(cluster.hosts["mini3"]):
            pause(3)
        assert watching.process.poll() is None, "the run was over before the cut"
        assert watching.finish() == 0, "\n".join(watching.lines) + watching.stderr
        summary = whole(run)
    assert summary["digest"] == here.summary["digest"]
    assert not watching.journal("lost")
    assert nothing_left(cluster, 10) < 10


@isolated
def test_what_dies_is_named_comes_back_or_is_done_without(cluster: Cluster, tmp_path: Path) -> None:
    one, two, three = (cluster.hosts[name] for name in ("mini1", "mini2", "mini3"))
    with detached(cluster, tmp_path / "run", *LONG) as run:
        with Back.to(run, home=cluster.me) as watching:
            watching.wait_for("step 2")
            (watcher,) = set(everything(one)) - {conductor(one), *those(one, "smolcluster.node")}
            os.kill(watcher, signal.SIGKILL)
            assert watching.finish() == 1
        assert watching.stderr.startswith(
            "smolcluster: mini1: watching has ended there (killed by a signal); as far as"
        )
        with Back.to(run, home=cluster.me) as watching:
            watching.wait_for("step 2")
            os.kill(those(two, "smolcluster.node ")[0], signal.SIGKILL)
            watching.wait_for("mini2 lost: killed", within=10)
            watching.wait_for("mini2 joined at step [1-9]")
            three.kill()
            try:
                began = time.monotonic()
                watching.wait_for("mini3 lost", within=15)
                assert time.monotonic() - began < 10
                so_far = len(watching.lines)
                watching.wait_until(lambda: any("step " in line for line in watching.lines[so_far:]), "a step")
                os.kill(those(two, "smolcluster.node.keeper ")[0], signal.SIGKILL)
                watching.wait_for("mini2 lost: the connection to mini2 is lost", within=10)
                back(cluster, run, "stop", code=130)
                assert watching.finish() == 130
            finally:
                three.link(up=True)
                three.start()
        assert whole(run)["status"] == "interrupted"
        assert nothing_left(cluster, 15) < 15


def test_two_watch_one_stands_still_one_leaves_one_ends_it(cluster: Cluster, tmp_path: Path) -> None:
    with detached(cluster, tmp_path / "run", *LONG) as run:
        with Back.to(run, home=cluster.me) as still, Back.to(run, home=cluster.me) as leaving:
            for watching in (still, leaving):
                watching.wait_for("step 2")
            os.kill(still.process.pid, signal.SIGSTOP)
            os.kill(leaving.process.pid, signal.SIGINT)
            assert leaving.finish() == 130
            assert "the run goes on: mini1:/" in "\n".join(leaving.lines)
            assert leaving.lines[-3:] == [
                f"to come back:  python -m smolcluster attach={run}",
                f"to end it:     python -m smolcluster stop={run}",
                str(run),
            ]
            assert leaving.stderr == ""
            assert not (run / "summary.json").exists()
            so_far = leaving.steps()
            assert so_far > 0, "what there is so far was fetched"
            ended = back(cluster, run, "stop", code=130)
            summary = whole(run)
            os.kill(still.process.pid, signal.SIGCONT)
            assert still.finish() == 130
        assert summary["status"] == "interrupted"
        assert int(str(summary["steps"])) > so_far
        assert str(summary["reason"]).startswith("stopped by the user; step-")
        assert str(summary["reason"]).endswith(f"go on with resume={run}")
        assert ended.stderr == f"smolcluster: {summary['reason']}\n"
        assert nothing_left(cluster, 10) < 10


def test_a_launcher_killed_too_early_leaves_nothing(cluster: Cluster, tmp_path: Path) -> None:
    with cluster.command(tmp_path / "run", DETACH, *LONG) as run:
        run.wait_for("mini[23] is started")
        run.process.kill()
        run.finish()
    assert nothing_left(cluster, 15) < 15


def test_what_goes_wrong_before_it_is_left_is_told_at_once(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster.write("wrong", {}, {"mini2": {"python": "/no/python"}})
    with cluster.command(tmp_path / "machine", DETACH, *LONG, cluster="wrong") as run:
        assert run.finish() == 1
    assert run.stderr == "smolcluster: mini2: there is no Python: tried /no/python; set cluster.nodes.mini2.python\n"
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    (tmp_path / "broken.py").write_text("def load():\n    raise OSError('the disk is made of cheese')\n")
    with cluster.command(
        tmp_path / "data", DETACH, *LONG, "data=custom", "data.target=broken:load", "data.epochs=1"
    ) as run:
        assert run.finish() == 1
    assert "cheese" in run.stderr
    assert run.summary["status"] == "failed"
    assert run.lines[-1] == str(run.run)
    assert nothing_left(cluster, 10) < 10


def test_a_machine_may_join_a_run_that_was_left_by_hand(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It joins where the run is conducted, and so stays when the command has ended; as does a node of the person's.

    Both have what the person's command needs: a module of the person's own, and the checkpoint to go on from.
    """
    host, own = cluster.hosts["mini3"], cluster.hosts["mini1"].address.rpartition(".")[0] + ".1"
    own = own if cluster.hosts.isolated else "127.0.0.1"
    cluster.write("by_hand", {}, {"mini2": {"ssh": None, "host": own}, "mini3": {"manual": True, "ssh": None}})
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    (tmp_path / "blobs.py").write_text(
        "import numpy as np\n\n\ndef load():\n    y = np.arange(400) % 2\n"
        "    x = y[:, None] + np.zeros((400, 3), dtype=np.float32)\n    return (x, y), (x, y)\n"
    )
    data = ("data=custom", "data.target=blobs:load", "cluster.threads_per_node=1")
    first = command(tmp_path / "first", *WORDS, *data, "train.max_steps=5")
    words = (*WORDS, f"resume={first.run}", "train.max_steps=50")
    here = command(tmp_path / "here", *words)
    with cluster.command(tmp_path / "run", DETACH, *words, cluster="by_hand") as start:
        word = start.wait_for("mini3: type there: python -m smolcluster join=").rpartition(" ")[2]
        joined = host.popen([sys.executable, "-m", "smolcluster", word])
        try:
            assert start.finish() == 0, "\n".join(start.lines) + start.stderr
            back(cluster, start.run)
            assert joined.communicate(timeout=20)[0].splitlines()[-1] == "the run is over"
        finally:
            joined.kill()
            joined.wait()
    assert whole(start.run)["digest"] == here.summary["digest"]
    assert nothing_left(cluster, 10) < 10


def test_the_persons_machine_may_be_the_server(cluster: Cluster, tmp_path: Path) -> None:
    own = cluster.hosts["mini1"].address.rpartition(".")[0] + ".1" if cluster.hosts.isolated else "127.0.0.1"
    cluster.write("here", {}, {"mini1": {"ssh": None, "host": own}})
    words = (*WORDS, "train.epochs=8")
    here = cluster.here(*words)
    with cluster.command(tmp_path / "run", DETACH, *words, cluster="here") as start:
        assert start.finish() == 0, "\n".join(start.lines) + start.stderr
        back(cluster, start.run)
    assert whole(start.run)["digest"] == here.summary["digest"]
    assert nothing_left(cluster, 10) < 10


def test_ctrl_c_before_it_is_left_ends_it(cluster: Cluster, tmp_path: Path) -> None:
    with cluster.command(tmp_path / "run", DETACH, *LONG) as run:
        run.wait_for("mini[23] is started")
        os.killpg(run.process.pid, signal.SIGINT)
        assert run.finish() == 130
    assert not left(cluster)
    assert not (run.run / "detached.json").exists()


class Leaving(Command):
    """A command whose nodes go on."""

    def end_nodes(self) -> None:
        return


@contextmanager
def left_here(folder: Path, *words: str) -> Iterator[tuple[Path, list[int]]]:
    """The directory of a run that has been left going on this machine, and its processes: the conductor first."""
    with Leaving(folder, (DETACH, *words)) as start:
        assert start.finish() == 0, "\n".join(start.lines) + start.stderr
    pids = [int((start.run / ".conducted").read_text()), *start.pids().values()]
    try:
        yield start.run, pids
    finally:
        for pid in filter(alive, pids):  # only after a test that has failed is there any
            os.kill(pid, signal.SIGKILL)


def test_on_this_machine(tmp_path: Path) -> None:
    words = (*WORDS, "train.epochs=8", "comms.chaos_delay_s=0.01")
    here = command(tmp_path / "here", *words)
    with left_here(tmp_path / "run", *words) as (run, pids):
        with Back.to(run) as visit:
            assert visit.finish() == 0, "\n".join(visit.lines) + visit.stderr
        gone(pids, 10)
    assert whole(run)["digest"] == here.summary["digest"]
    assert not [path.name for path in run.iterdir() if path.name.startswith(".") and path.name != ".hydra"]


def test_on_this_machine_too_nothing_is_left_when_the_conductor_is_killed(tmp_path: Path) -> None:
    with left_here(tmp_path / "run", *LONG) as (run, pids):
        os.kill(pids[0], signal.SIGKILL)
        gone(pids, 15)
        with Back.to(run) as visit:
            assert visit.finish() == 1
    assert "smolcluster: server: the process that conducted the run has died" in visit.stderr


def pause(seconds: float) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        time.sleep(0.05)


@contextmanager
def unplugged(host: Host) -> Iterator[None]:
    host.link(up=False)
    try:
        yield
    finally:
        host.link(up=True)


@contextmanager
def cut_off(cluster: Cluster) -> Iterator[None]:
    """The person's machine has no address on the hosts' network; they see each other all the same."""
    address = cluster.hosts["mini1"].address.rpartition(".")[0] + ".1/24"
    ip("addr", "del", address, "dev", cluster.hosts.bridge)
    try:
        yield
    finally:
        ip("addr", "add", address, "dev", cluster.hosts.bridge)

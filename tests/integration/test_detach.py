"""Runs that are left going: on hosts that are reached by SSH, and on this machine. What they come to is what they would
have come to with somebody there, and whatever dies, nothing is left running."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.integration.command import Command, alive, command, gone
from tests.integration.hosts import Host, ip, why_not
from tests.integration.on_hosts import Cluster

pytestmark = pytest.mark.xdist_group("hosts")
isolated = pytest.mark.skipif(bool(why_not()), reason=f"needs hosts with networks of their own: {why_not()}")
WORDS = ("train.export=false", "train.eval_samples=64", "train.eval_steps=null", "train.checkpoint_steps=50")
LONG = (*WORDS, "train.epochs=10000")
DETACH = "hydra.launcher.detach=true"


class Back(Command):
    """A command that comes back to the run in ``folder``."""

    @property
    def arguments(self) -> Sequence[str]:
        return self.words

    @property
    def run(self) -> Path:
        return self.folder

    @classmethod
    def to(cls, run: Path, word: str = "attach", home: Path | None = None) -> Back:
        return cls(run, (f"{word}={run}",), home)


def everything(host: Host) -> dict[int, str]:
    """Our processes on a host, by pid."""
    found = {}
    for pid in host.pids():
        try:
            words = Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")
        except (FileNotFoundError, ProcessLookupError):
            continue
        if alive(pid) and any("smolcluster" in word for word in words):
            found[pid] = " ".join(words)[:120]
    return found


def conductor(host: Host) -> int:
    (pid,) = [pid for pid, words in everything(host).items() if "_conductor" in words]
    return pid


def left(cluster: Cluster) -> list[str]:
    return [f"{host.name}: {pid} {words}" for host in cluster.hosts for pid, words in everything(host).items()]


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
        for host in cluster.hosts:  # only after a test that has failed
            for pid in everything(host):
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
    here = command(tmp_path / "here", *words, "cluster.threads_per_node=1")
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
    evaluated = cluster.run(tmp_path / "evaluated", "pipeline=evaluate", f"resume={run}")
    assert evaluated.summary["final"]["loss"] == pytest.approx(here.summary["final"]["loss"])
    repeated = cluster.run(tmp_path / "repeated", f"rerun={run}")
    assert repeated.summary["rerun"] == {"of": str(run), "identical": True}

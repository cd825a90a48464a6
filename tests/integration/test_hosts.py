"""Hosts with something special: a full disk, a way through another one, a run that is done again."""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import shutil
import signal
import sys
import time
from pathlib import Path

import pytest
import yaml

from smolcluster.spec.build import conf_dir
from tests.integration.command import ENDLESS, alive, gone
from tests.integration.hosts import SIDE, Host, Hosts, why_not
from tests.integration.on_hosts import Cluster
from tests.integration.test_cluster import GPT, WORDS

pytestmark = pytest.mark.xdist_group("hosts")
isolated = pytest.mark.skipif(bool(why_not()), reason=f"needs hosts with networks of their own: {why_not()}")


def work(host: Host) -> Path:
    return host.home / "work"


@isolated
def test_a_full_disk_of_the_server_ends_the_run_and_keeps_the_last_checkpoint(cluster: Cluster, tmp_path: Path) -> None:
    host = cluster.hosts["mini1"]
    words = ("train.checkpoint_steps=5", "train.keep_checkpoints=1000", "train.epochs=40")
    with host.disk(work(host), "size=1g"), cluster.command(tmp_path / "run", *WORDS, *words) as run:
        run.wait_until(lambda: (run.run / "checkpoints" / "latest").exists(), "a checkpoint")
        host.fill(work(host))
        assert run.finish() == 1
    (line,) = run.stderr.splitlines()
    assert line.startswith(f"smolcluster: mini1 (server): the checkpoint {work(host)}/runs/")
    assert "cannot be written: No space left on device; step-" in line
    latest = (run.run / "checkpoints" / "latest").resolve().name
    assert f"; {latest} is saved: go on with resume={run.run}" in line
    assert not cluster.left()
    step = int(latest.removeprefix("step-"))
    more = ("train.epochs=null", f"train.max_steps={step + 3}")
    again = cluster.run(tmp_path / "again", f"resume={run.run}", *more)
    assert [line["step"] for line in again.metrics] == [step + 1, step + 2, step + 3]


@isolated
def test_a_disk_that_takes_no_code_is_told_before_any_node_starts(cluster: Cluster, tmp_path: Path) -> None:
    host = cluster.hosts["mini2"]
    with host.disk(work(host), "size=1g,nr_inodes=20"):
        with cluster.command(tmp_path / "run", *WORDS) as run:
            assert run.finish() == 1
        left = host.inside("ls", f"{work(host)}/code").split()
    (line,) = run.stderr.splitlines()
    assert line.startswith(f"smolcluster: mini2: {work(host)}/code/")
    assert "could not be written: No space left on device" in line
    assert not left, "half of it is not left"
    assert not run.journal("started")


@isolated
def test_a_disk_that_takes_no_prepared_data_is_told_with_its_node(cluster: Cluster, tmp_path: Path) -> None:
    host = cluster.hosts["mini3"]
    with host.disk(work(host), "size=1g"):
        cluster.run(tmp_path / "before", *WORDS, *GPT, "data.max_bytes=50000", "train.max_steps=2")
        used = host.inside("df", "--output=iused", str(work(host))).split()[-1]
        places = 5  # for the run's folder, a pid file, two locks, and a folder that no file fits into
        host.inside("mount", "-o", f"remount,nr_inodes={int(used) + places}", str(work(host)))
        with cluster.command(tmp_path / "run", *WORDS, *GPT, "train.max_steps=5") as run:
            assert run.finish() == 1
    (line,) = run.stderr.splitlines()
    assert line.startswith(f"smolcluster: mini3 (worker): cannot write to the data cache {work(host)}/cache (")
    assert "No space left on device" in line
    assert not cluster.left()


@isolated
@pytest.mark.parametrize("said", ["in the cluster's file", "in ~/.ssh/config"])
def test_a_host_behind_a_jump_host(tmp_path: Path, said: str) -> None:
    with Hosts(tmp_path / "hosts", ["mini1", "pi5"], behind={"pi5": "mini1"}) as hosts:
        cluster = Cluster.of(hosts)
        jump = f"root@{hosts['mini1'].address}:22"
        config = cluster.me / ".ssh" / "config"
        own: dict[str, object] = {"host": None, "user": "root", "port": None, "identity": None, "jump": None}
        if said == "in ~/.ssh/config":
            config.write_text(f"Host pi5\n  HostName {hosts['pi5'].address}\n  ProxyJump {jump}\n{config.read_text()}")
        else:
            own["jump"] = jump
        links = {"bridge": f"{hosts['mini1'].address}/24", "cable": f"{SIDE}.1/24"}
        nodes: dict[str, dict[str, object]] = {
            "mini1": {"addresses": links},
            "pi5": {"addresses": {"cable": f"{hosts['pi5'].address}/24"}, "ssh": own},
        }
        cluster.write("jump", {}, nodes)
        run = cluster.run(tmp_path / "run", *WORDS, "train.max_steps=3", cluster="jump")
        assert [node["name"] for node in run.summary["nodes"]] == ["mini1", "pi5"]
        assert hosts["pi5"].logins == 1
        known = cluster.me / ".ssh" / "known_hosts"
        known.write_text(hosts["pi5"].known)  # the jump host is a stranger now
        with cluster.command(tmp_path / "stranger", *WORDS, "algo=single", cluster="jump") as refused:
            assert refused.finish() == 1
        address = hosts["mini1"].address
        assert f"pi5: its jump host: the host key of {address}:22 is not known" in refused.stderr
        assert f"ssh-keyscan {address} >>" in refused.stderr


def test_ddp_on_hosts_gives_the_weights_of_here(cluster: Cluster, tmp_path: Path) -> None:
    """Torch's own sockets find their way, too: each node listens at the address that the others have for it."""
    words = (*WORDS, "algo=ddp", "train.max_steps=12")
    there = cluster.run(tmp_path / "there", *words)
    here = cluster.here(*words)
    assert there.summary["digest"] == here.summary["digest"]
    assert [node["name"] for node in there.summary["nodes"]] == ["mini2", "mini3"]


def test_a_rerun_is_the_same_whatever_conf_says_by_then(cluster: Cluster, tmp_path: Path) -> None:
    own = cluster.config_dir / "optim" / "mine.yaml"
    own.parent.mkdir(exist_ok=True)
    settings = yaml.safe_load((conf_dir() / "optim" / "sgd.yaml").read_text())
    words = (*WORDS, "optim=mine", "train.max_steps=6")
    own.write_text(yaml.safe_dump({**settings, "lr": 0.1}))
    first = cluster.run(tmp_path / "first", *words)
    own.write_text(yaml.safe_dump({**settings, "lr": 0.01}))
    rerun = ("rerun=" + os.fspath(first.run), "hydra.launcher.max_concurrent=1")
    again = cluster.run(tmp_path / "again", *rerun)
    assert again.summary["digest"] == first.summary["digest"]
    assert again.summary["rerun"] == {"of": str(first.run), "identical": True}
    other = cluster.run(tmp_path / "other", *words)
    assert other.summary["digest"] != first.summary["digest"]


ODD = """
import importlib.metadata, time
now, version = time.time, importlib.metadata.version
time.time = lambda: now() + 7200
importlib.metadata.version = lambda name: "0.1" if name == "transformers" else version(name)
"""


def test_a_machine_that_differs_is_shown_and_takes_part(cluster: Cluster, tmp_path: Path) -> None:
    """Its clock is two hours ahead, and it has another version of a package that this run does not need."""
    odd = tmp_path / "odd"
    odd.mkdir()
    (odd / "sitecustomize.py").write_text(ODD)
    python = odd / "python"
    python.write_text(f'#!/bin/sh\nPYTHONPATH="{odd}:$PYTHONPATH" exec {sys.executable} "$@"\n')
    python.chmod(0o755)
    cluster.write("odd", {}, {"mini3": {"python": str(python)}})
    run = cluster.run(tmp_path / "run", *WORDS, "train.max_steps=3", cluster="odd")
    told = [event["reason"] for event in run.journal("prepared") if event["peer"] == "not the same everywhere"]
    here = importlib.metadata.version("transformers")
    assert f"transformers: {here} (here, mini1, mini2), 0.1 (mini3)" in told
    assert any(re.fullmatch(r"clock of mini3: \+7(19\d|20\d) s", line) for line in told), told
    plain = cluster.run(tmp_path / "plain", *WORDS, "train.max_steps=3")
    assert run.summary["digest"] == plain.summary["digest"]


OLD = """#!{python}
import sys
sys.version_info = (3, 9, 18, "final", 0)
script, sys.argv = sys.stdin.read(), sys.argv[1:]
exec(compile(script, "probe", "exec"), {{"__name__": "__main__"}})
"""
"""An interpreter that runs the probe, and says that it is an old one."""


def test_a_machine_with_an_old_python_is_told(cluster: Cluster, tmp_path: Path) -> None:
    python = tmp_path / "python3.9"
    python.write_text(OLD.format(python=sys.executable))
    python.chmod(0o755)
    cluster.write("old", {}, {"mini2": {"python": str(python)}})
    with cluster.command(tmp_path / "run", *WORDS, cluster="old") as run:
        assert run.finish() == 1
    (line,) = run.stderr.splitlines()
    assert re.match(r"smolcluster: mini2: \S+ is Python 3\.9\.18, 3.11 is needed; set cluster.nodes.mini2.python", line)
    assert not run.journal("started")


def runs(host: Host) -> list[str]:
    """The run folders that are on a host."""
    folder = work(host) / "runs"
    return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []


def test_nothing_of_a_run_is_left_on_the_hosts_but_what_was_not_fetched(cluster: Cluster, tmp_path: Path) -> None:
    before = [runs(host) for host in cluster.hosts]
    cluster.run(tmp_path / "run", *WORDS, "train.max_steps=3")
    beside = ("hydra.launcher.share_nodes=true", "hydra.launcher.max_concurrent=2", "seed=1,2")
    cluster.run(tmp_path / "beside", *WORDS, "train.max_steps=3", *beside)
    assert [runs(host) for host in cluster.hosts] == before
    (tmp_path / "stuck" / "0").mkdir(parents=True)
    (tmp_path / "stuck" / "0" / "checkpoints").write_text("no folder can be made here")
    stuck = cluster.run(tmp_path / "stuck", *WORDS, "train.max_steps=3")
    assert stuck.journal("not fetched")
    (left,) = set(runs(cluster.hosts["mini1"])) - set(before[0])
    (told,) = [event for event in stuck.journal("prepared") if "is left there" in event["reason"]]
    assert told["peer"] == "mini1"
    assert told["reason"] == (
        f"{work(cluster.hosts['mini1'])}/runs/{left} is left there: its checkpoints could not be fetched"
    )
    (stuck.run / "checkpoints").unlink()
    shutil.copytree(work(cluster.hosts["mini1"]) / "runs" / left / "checkpoints", stuck.run / "checkpoints")
    again = cluster.run(tmp_path / "resumed", f"resume={stuck.run}", "train.max_steps=5", *WORDS)
    assert [line["step"] for line in again.metrics] == [4, 5]


@isolated
def test_a_stopped_node_of_a_dead_run_is_ended_by_the_next_one(cluster: Cluster, tmp_path: Path) -> None:
    """A process that is stopped cannot end itself, whatever has become of its controller."""
    host = cluster.hosts["mini2"]
    with cluster.command(tmp_path / "dead", *WORDS, *ENDLESS) as run:
        run.wait_until(lambda: run.steps() > 5, "step 5")
        pid = run.pids()["mini2"]
        os.kill(pid, signal.SIGSTOP)
        run.process.kill()
        run.finish()
        gone([other for name, other in run.pids().items() if name != "mini2"], within=15)
        (file,) = work(host).glob(f"runs/*/mini2-{pid}.pid")
        assert json.loads(file.read_text())["pid"] == pid
        first = cluster.run_and_keep(tmp_path / "first", *WORDS, "train.max_steps=3")
        assert alive(pid), "it has not been silent for long enough"
        assert not [event for event in first.journal("prepared") if "has ended" in event["reason"]]
        os.utime(file, (time.time() - 200,) * 2)
        second = cluster.run(tmp_path / "second", *WORDS, "train.max_steps=3")
    (told,) = [event for event in second.journal("prepared") if "has ended" in event["reason"]]
    assert told["peer"] == "mini2"
    assert f"(pid {pid}, node mini2): it had heard nothing for 20" in told["reason"]
    assert not alive(pid)

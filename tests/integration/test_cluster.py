"""Training on three hosts that are reached by SSH: the same as here, and what happens when something breaks."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path

import pytest

from smolcluster.tracking.rundir import RunReader
from tests.integration.command import ENDLESS, PROMPT_S, Command, command
from tests.integration.hosts import SIDE, Hosts, why_not
from tests.integration.on_hosts import Cluster, node_pids

pytestmark = pytest.mark.xdist_group("cluster")
isolated = pytest.mark.skipif(bool(why_not()), reason=f"needs hosts with networks of their own: {why_not()}")
WORDS = ("train.export=false", "train.eval_samples=64", "train.eval_steps=null")
GPT = (
    "model=gpt", "model.model_dim=32", "model.num_layers=2", "model.num_heads=2", "model.ff_dim=64", "model.dropout=0",
    "model.max_seq_len=16", "data.tokenizer=bytes", "data.max_bytes=60000", "train.batch_size=16",
)  # fmt: skip


def test_syncps_gives_the_same_weights_as_here(cluster: Cluster, tmp_path: Path) -> None:
    there = cluster.run(tmp_path / "there", *WORDS, "train.epochs=2", "train.export=true")
    here = cluster.here(*WORDS, "train.epochs=2")
    assert there.summary["digest"] == here.summary["digest"]
    assert there.summary["final"] == here.summary["final"]
    assert [node["name"] for node in there.summary["nodes"]] == ["mini1", "mini2", "mini3"]
    saved = there.run / "checkpoints" / "latest"
    assert json.loads((saved / "state.json").read_text())["step"] == there.summary["steps"]
    assert (there.run / "export" / "model.pt2").stat().st_size > 10_000
    assert there.summary["checkpoint"] == f"checkpoints/{saved.resolve().name}"
    assert len(RunReader(there.run).logs()) == 3
    words = (f"resume={there.run}", "train.epochs=3", "train.export=false")  # as a message says it: no --config-dir
    with Command(tmp_path / "again", words, home=cluster.me) as again:
        assert again.finish() == 0, again.stderr
    assert again.metrics[0]["step"] == there.summary["steps"] + 1
    prepared = [event["reason"] for event in again.journal("prepared")]
    assert len(prepared) == 3
    assert all("sent 1 bundle(s)" in words for words in prepared), "the checkpoint; the code is there already"


def test_a_second_run_sends_nothing(cluster: Cluster, tmp_path: Path) -> None:
    words = (*WORDS, "train.max_steps=3")
    cluster.run(tmp_path / "first", *words)
    second = cluster.run(tmp_path / "second", *words)
    assert [event["reason"].rpartition(", ")[2] for event in second.journal("prepared")] == ["nothing to send"] * 3


@pytest.mark.parametrize("beside", [1, 2])
def test_a_sweep_connects_once_to_each_machine(cluster: Cluster, tmp_path: Path, beside: int) -> None:
    before = [host.logins for host in cluster.hosts]
    words = ("hydra.launcher.share_nodes=true", f"hydra.launcher.max_concurrent={beside}", "seed=1,2")
    run = cluster.run(tmp_path / "sweep", *WORDS, "train.max_steps=5", *words)
    assert [host.logins for host in cluster.hosts] == [count + 1 for count in before]
    runs = [RunReader(tmp_path / "sweep" / number).summary() for number in "01"]
    assert [each["status"] for each in runs if each] == ["done"] * 2
    table = "\n".join(run.lines)
    assert all(f"seed={seed}" in table for seed in (1, 2))
    assert run.lines[-1].endswith("sweep")


def test_jobs_side_by_side_give_the_numbers_of_jobs_alone(cluster: Cluster, tmp_path: Path) -> None:
    words = (*WORDS, "train.max_steps=8", "seed=1,2", "cluster.threads_per_node=1")
    alone = command(tmp_path / "alone", *words)
    beside = command(tmp_path / "beside", *words, "hydra.launcher.max_concurrent=2")
    sharing = ("hydra.launcher.max_concurrent=2", "hydra.launcher.share_nodes=true")
    there = cluster.run(tmp_path / "there", *words, *sharing)
    found = [
        [RunReader(run.folder / number).summary()["digest"] for number in "01"]  # type: ignore[index]
        for run in (alone, beside, there)
    ]
    assert found[0] == found[1] == found[2]
    assert len(set(found[0])) == 2


def test_edp_trains_a_gpt_as_well_as_here(cluster: Cluster, tmp_path: Path) -> None:
    words = (*WORDS, *GPT, "algo=edp", "train.max_steps=150")
    there = cluster.run(tmp_path / "there", *words)
    here = cluster.here(*words)
    assert there.summary["final"]["loss"] == pytest.approx(here.summary["final"]["loss"], rel=0.05)
    texts = [path.read_bytes() for host in cluster.hosts for path in host.home.glob("work/files/*/pydocs.txt")]
    assert len(texts) == 3, "all read the text of the person's Python"
    assert len(set(texts)) == 1


def test_a_module_of_ones_own_is_sent(cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "blobs.py").write_text(
        "import numpy as np\n\n\ndef load():\n    y = np.arange(40) % 2\n"
        "    x = y[:, None] + np.zeros((40, 3), dtype=np.float32)\n    return (x, y), (x, y)\n"
    )
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    cluster.run(tmp_path / "run", *WORDS, "data=custom", "data.target=blobs:load", "train.max_steps=3")


@isolated
def test_a_cut_of_three_seconds_changes_nothing(cluster: Cluster, tmp_path: Path) -> None:
    words = (*WORDS, "train.epochs=8")
    here = cluster.here(*words)
    with cluster.command(tmp_path / "cut", *words) as run:
        run.wait_until(lambda: run.steps() > 20, "step 20")
        cluster.hosts["mini3"].link(up=False)
        began = time.monotonic()
        try:
            while time.monotonic() - began < 3:
                time.sleep(0.05)
        finally:
            cluster.hosts["mini3"].link(up=True)
        assert run.finish() == 0, "\n".join(run.lines) + run.stderr
    assert run.summary["digest"] == here.summary["digest"]
    assert not cluster.left()


def test_a_node_that_is_killed_is_named_and_comes_back(cluster: Cluster, tmp_path: Path) -> None:
    with cluster.command(tmp_path / "run", *WORDS, "train.epochs=20") as run:
        run.wait_until(lambda: run.steps() > 20, "step 20")
        os.kill(run.pids()["mini2"], signal.SIGKILL)
        run.wait_for("mini2 lost: killed", within=10)
        assert run.finish() == 0, "\n".join(run.lines) + run.stderr
    assert not cluster.left()


def test_a_killed_controller_leaves_nothing_on_any_host(cluster: Cluster, tmp_path: Path) -> None:
    with cluster.command(tmp_path / "run", *WORDS, *ENDLESS) as run:
        run.wait_until(lambda: run.steps() > 10, "step 10")
        pids = run.all_pids()
        run.process.kill()
        run.finish()
        began = time.monotonic()
        while any(Path(f"/proc/{pid}").exists() for pid in pids):
            assert time.monotonic() - began < 15, cluster.left()
            time.sleep(0.05)


def test_ctrl_c_ends_all_and_keeps_the_last_step(cluster: Cluster, tmp_path: Path) -> None:
    with cluster.command(tmp_path / "run", *WORDS, *ENDLESS) as run:
        run.wait_until(lambda: run.steps() > 30, "step 30")
        began = time.monotonic()
        os.killpg(run.process.pid, signal.SIGINT)
        assert run.finish() == 130
        assert time.monotonic() - began < PROMPT_S
    assert not cluster.left()
    latest = (run.run / "checkpoints" / "latest").resolve().name
    assert latest == f"step-{run.metrics[-1]['step']}"


def test_sshd_may_stop_in_mid_run(cluster: Cluster, tmp_path: Path) -> None:
    host = cluster.hosts["mini2"]
    with cluster.command(tmp_path / "run", *WORDS, "train.epochs=8") as run:
        run.wait_until(lambda: run.steps() > 20, "step 20")
        host.stop_sshd()
        try:
            assert run.finish() == 0, "\n".join(run.lines) + run.stderr
        finally:
            host.start()
    assert not run.journal("lost")


@isolated
def test_a_host_that_dies_is_named_and_the_rest_goes_on(cluster: Cluster, tmp_path: Path) -> None:
    host = cluster.hosts["mini3"]
    with cluster.command(tmp_path / "run", *WORDS, "train.epochs=40", "cluster.max_restarts=0") as run:
        run.wait_until(lambda: run.steps() > 20, "step 20")
        host.kill()
        try:
            began = time.monotonic()
            run.wait_for("mini3 lost", within=15)
            assert time.monotonic() - began < 10
            assert run.finish() == 0, "\n".join(run.lines) + run.stderr
        finally:
            host.link(up=True)
            host.start()
    assert not node_pids(host)


def test_what_is_wrong_with_machines_is_told_before_any_node_starts(cluster: Cluster, tmp_path: Path) -> None:
    hosts = cluster.hosts
    ssh = {"host": None, "user": "root", "port": hosts["mini1"].port, "identity": None, "jump": None}
    cluster.write(
        "wrong",
        {},
        {
            "mini1": {"python": "/no/python"},
            "mini2": {"ssh": {**ssh, "port": hosts["mini2"].port, "user": "nobody"}},
            "mini3": {"ssh": {**ssh, "port": 1}},
        },
    )
    with cluster.command(tmp_path / "run", *WORDS, cluster="wrong") as run:
        assert run.finish() == 1
    one, two, three = run.stderr.splitlines()
    assert one == "smolcluster: mini1: there is no Python: tried /no/python; set cluster.nodes.mini1.python"
    assert two.startswith("mini2: nobody@")
    assert "accepts none of your keys" in two
    assert three.startswith("mini3: ")
    assert "refuses connections" in three
    assert not run.journal("started")


def test_another_host_key_is_refused_before_any_node_starts(cluster: Cluster, tmp_path: Path) -> None:
    known = cluster.me / ".ssh" / "known_hosts"
    right = known.read_text()
    lines = right.splitlines()
    swapped = lines[0].split()[:2] + lines[1].split()[2:]
    known.write_text("\n".join([" ".join(swapped), lines[1]]) + "\n")
    try:
        with cluster.command(tmp_path / "run", *WORDS) as run:
            assert run.finish() == 1
    finally:
        known.write_text(right)
    assert "mini1: " in run.stderr
    assert "shows another host key than the known one" in run.stderr
    assert "mini3: the host key of " in run.stderr
    assert "ssh-keyscan" in run.stderr
    assert not run.journal("started")


def test_machines_without_sshd_join_by_hand(cluster: Cluster, tmp_path: Path) -> None:
    words = (*WORDS, "train.epochs=2")
    here = cluster.here(*words)
    joined = {}
    with cluster.command(tmp_path / "run", *words, "hydra.launcher.session=manual") as run:
        try:
            for host in cluster.hosts:
                line = run.wait_for(f"{host.name}: type there: python -m smolcluster join=")
                word = line.rpartition(" ")[2]
                joined[host.name] = host.popen([sys.executable, "-m", "smolcluster", word])
            assert run.finish() == 0, "\n".join(run.lines) + run.stderr
            said = {name: process.communicate(timeout=20)[0] for name, process in joined.items()}
        finally:
            for process in joined.values():
                process.kill()
                process.wait()
    assert run.summary["digest"] == here.summary["digest"]
    assert all(text.splitlines()[-1] == "the run is over" for text in said.values())
    assert (run.run / "checkpoints" / "latest" / "state.json").is_file(), "fetched through the gate"
    assert not cluster.left()
    late = cluster.hosts["mini2"].popen([sys.executable, "-m", "smolcluster", word])
    assert "cannot be joined" in late.communicate(timeout=30)[0]
    assert late.returncode == 1


@pytest.mark.parametrize("algo", ["edp", "syncps"])
def test_a_machine_joins_a_run_that_is_under_way_and_leaves(cluster: Cluster, tmp_path: Path, algo: str) -> None:
    words = (*WORDS, f"algo={algo}", "cluster.workers=[mini2]", *ENDLESS, "hydra.launcher.guests=1")
    words = (*words, "train.log_steps=5")
    host = cluster.hosts["mini3"]
    with cluster.command(tmp_path / "run", *words) as run:
        word = run.wait_for("guest1: to join the run: python -m smolcluster join=").rpartition(" ")[2]
        run.wait_until(lambda: run.steps() > 2, "step 10")
        guest = host.popen([sys.executable, "-m", "smolcluster", word])
        try:
            run.wait_for("guest1 has joined")
            joined = run.steps()
            run.wait_until(lambda: run.steps() > joined + 20, "100 more steps")
            assert node_pids(host)
            killed = time.time()
            guest.kill()
            run.wait_for("guest1 lost", within=20)
            then = run.steps()
            run.wait_until(lambda: run.steps() > then + 5, "25 more steps")
            os.killpg(run.process.pid, signal.SIGINT)
            assert run.finish() == 130
        finally:
            guest.kill()
            guest.communicate()
    assert [node["name"] for node in run.summary["nodes"]] == ["mini1", "mini2", "guest1"]
    assert run.summary["nodes"][2]["samples"] > 100
    assert not [event for event in run.journal("refused") if event["t"] < killed], "and then it is no member"
    assert not cluster.left()


def test_algorithms_that_know_their_workers_take_no_guests(cluster: Cluster, tmp_path: Path) -> None:
    with cluster.command(tmp_path / "run", "algo=ddp", "hydra.launcher.guests=1") as run:
        assert run.finish() == 2
    assert "hydra.launcher.guests=1: must be 0 with algo=ddp" in run.stderr
    assert "algo=edp or syncps" in run.stderr


@isolated
def test_two_networks_with_one_node_on_both(tmp_path: Path) -> None:
    """The Pi has one cable, to mini1. It is reached through mini1 by SSH, and its gradients go the same way."""
    with Hosts(tmp_path / "hosts", ["mini1", "mini2", "pi5"], behind={"pi5": "mini1"}) as hosts:
        cluster = Cluster.of(hosts)
        jump = f"root@{hosts['mini1'].address}"
        ssh = {"host": None, "user": "root", "port": 22, "identity": None, "jump": jump}
        links = {name: {"bridge": f"{hosts[name].address}/24"} for name in ("mini1", "mini2")}
        nodes = {name: {"addresses": addresses} for name, addresses in links.items()}
        nodes["mini1"]["addresses"]["cable"] = f"{SIDE}.1/24"
        nodes["pi5"] = {"addresses": {"cable": f"{hosts['pi5'].address}/24"}, "ssh": ssh}
        words = (*WORDS, "train.epochs=2")
        here = cluster.here(*words)
        cluster.write("direct", {"server": "mini1", "workers": ["mini2", "pi5"]}, nodes)
        direct = cluster.run(tmp_path / "direct", *words, cluster="direct")
        assert direct.summary["digest"] == here.summary["digest"]
        cluster.write("through", {"server": "mini2", "workers": ["mini1", "pi5"]}, nodes)
        through = cluster.run(tmp_path / "through", *words, cluster="through")
        assert through.summary["digest"] == here.summary["digest"]
        del nodes["mini1"]["addresses"]["cable"]
        cluster.write("cut", {"server": "mini2", "workers": ["mini1", "pi5"]}, nodes)
        with cluster.command(tmp_path / "cut", *words, cluster="cut") as run:
            assert run.finish() == 2
        assert "mini2 and pi5 are on no common network, and no node is on one with each of them" in run.stderr

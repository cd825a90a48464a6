"""``pipeline=doctor``: on this machine, and on hosts with links that are shaped, cut, or lead to nobody."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.integration.command import Command, command
from tests.integration.hosts import ip, why_not
from tests.integration.on_hosts import Cluster

pytestmark = pytest.mark.xdist_group("doctor")
isolated = pytest.mark.skipif(bool(why_not()), reason=f"needs hosts with networks of their own: {why_not()}")
QUICK = ("pipeline=doctor", "pipeline.seconds=0.3", "comms.connect_timeout_s=4")


def record(run: Command) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run.run / "doctor.json").read_text())
    return found


def test_here_it_finds_nothing_wrong_and_forecasts_every_algorithm(tmp_path: Path) -> None:
    run = command(tmp_path / "run", *QUICK)
    found = record(run)
    assert list(found["machines"]) == ["server", "worker0", "worker1"]
    assert {check["verdict"] for checks in found["machines"].values() for check in checks} == {"ok"}
    figures = found["figures"]
    assert len(figures["links"]) == 6
    assert all(link["channel"]["bytes_per_s"] > 1e6 for link in figures["links"].values())
    assert all(0 < link["round_trip_s"] < 1 for link in figures["links"].values())
    assert set(figures["nodes"]) == {"server", "worker0", "worker1"}
    assert all(0 < node["gradient_s"] < 1 for node in figures["nodes"].values())
    assert figures["tensor_bytes"]["parameters"] == 4 * figures["num_params"]
    rows = found["forecast"]
    assert [row["algo"] for row in rows] == ["single", "single", "single", "syncps", "edp", "edp", "ddp"]
    assert all(row["step_time_s"] > 0 and row["samples_per_s"] > 0 for row in rows)
    assert max(row["ratio_to_single"] for row in rows[:3]) == 1.0
    text = "\n".join(run.lines)
    for words in ("Machines", "Nodes: simplenn on digits, 32 samples", "Links", "Forecast: simplenn"):
        assert words in text
    assert run.lines[-1].endswith("run/0")


def test_settings_that_make_no_sense_are_refused(tmp_path: Path) -> None:
    with Command(tmp_path / "run", ("pipeline=doctor", "comms=memory", "pipeline.cases=[edpp]")) as run:
        assert run.finish() == 2
    assert "pipeline.cases.0=edpp: must be one of ddp, edp, single, syncps; nearest valid: edp" in run.stderr
    assert "pipeline=doctor needs nodes in processes of their own; nearest valid: comms=tcp" in run.stderr


@isolated
def test_links_are_measured_as_they_are_shaped(cluster: Cluster, tmp_path: Path) -> None:
    for host, speed in zip(cluster.hosts, (None, 100, 40), strict=True):
        host.shape(speed)
    try:
        run = cluster.run(tmp_path / "run", "pipeline=doctor", "pipeline.seconds=1.0")
    finally:
        for host in cluster.hosts:
            host.shape(None)
    links = record(run)["figures"]["links"]
    speeds = {pair: link["channel"]["bytes_per_s"] * 8e-6 for pair, link in links.items()}
    for pair, speed in speeds.items():
        shaped = 40 if "mini3" in pair else 100
        assert 0.85 * shaped < speed < 1.05 * shaped, speeds
    measured = yaml.safe_load((run.run / "cluster" / "three.measured.yaml").read_text())
    assert measured["nodes"]["mini3"]["bandwidth_mbps"] == pytest.approx(40, rel=0.15)
    assert measured["nodes"]["mini2"]["flops_per_second"] > 1e6
    again = ("--config-dir", str(run.run), "cluster=three.measured", "train.max_steps=2", "train.export=false")
    with Command(tmp_path / "again", again, home=cluster.me) as trained:
        assert trained.finish() == 0, trained.stderr


@isolated
def test_what_is_wrong_is_red_and_the_rest_is_measured(cluster: Cluster, tmp_path: Path) -> None:
    """A machine whose Python is not there, and a link between two others that leads to nobody."""
    one, two = cluster.hosts["mini1"], cluster.hosts["mini2"]
    cluster.write("sick", {}, {"mini3": {"python": "/no/python"}})
    with cluster.command(tmp_path / "run", *QUICK, cluster="sick") as run:
        assert run.finish() == 1
    found = record(run)
    assert found["machines"]["mini3"][0]["verdict"] == "bad"
    assert set(found["figures"]["links"]) == {"mini1 -> mini2", "mini2 -> mini1"}
    assert "mini3: there is no Python: tried /no/python; set cluster.nodes.mini3.python" in "\n".join(run.lines)
    assert "mini3 cannot take part" in run.stderr
    ip("-n", str(two.namespace), "route", "add", "blackhole", cluster.hosts["mini3"].address)
    try:
        with cluster.command(tmp_path / "cut", *QUICK) as run:
            assert run.finish() == 1
    finally:
        ip("-n", str(two.namespace), "route", "del", "blackhole", cluster.hosts["mini3"].address)
    found = record(run)
    assert set(found["figures"]["links"]) == {
        "mini1 -> mini2", "mini1 -> mini3", "mini2 -> mini1", "mini3 -> mini1",
    }  # fmt: skip
    assert "mini2 -> mini3: " in run.stderr
    assert "mini3 -> mini2: " in run.stderr
    assert any(row["algo"] == "syncps" and row["step_time_s"] for row in found["forecast"])
    assert one.pids()
    assert not cluster.left()

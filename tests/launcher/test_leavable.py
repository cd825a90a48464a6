"""Runs that cannot be left going, each with what to do instead."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra_plugins.smolcluster_launcher._leavable import unfit, wrong
from hydra_plugins.smolcluster_launcher._session import Options
from hydra_plugins.smolcluster_launcher.config import SmolclusterLauncherConf

from smolcluster.cli.main import main
from smolcluster.cluster.controller import roster
from smolcluster.spec.compose import validate_jobs

BASIC = "hydra._internal.core_plugins.basic_sweeper.BasicSweeper"


def problems(folder: Path, words: tuple[str, ...] = (), options: Options = Options(), **nodes: Any) -> list[str]:  # noqa: B008
    """What is wrong with leaving a run going on machines a (the server), b and c."""
    machines = {name: {"host": f"10.0.0.{index}", "ssh": {}} for index, name in enumerate("abc", 1)}
    for name, changes in nodes.items():
        machines[name] |= changes
    content = {"_target_": "smolcluster.cluster.inventory.Cluster", "nodes": machines, "server": "a"}
    (folder / "cluster").mkdir(exist_ok=True)
    (folder / "cluster" / "three.yaml").write_text(yaml.safe_dump(content))
    (spec,) = validate_jobs(["cluster=three", *words], str(folder))
    return [str(problem) for problem in unfit(spec, [member.name for member in roster(spec)], options)]


def test_machines_that_can_do_without_this_one(tmp_path: Path) -> None:
    assert problems(tmp_path) == []
    assert problems(tmp_path, c={"manual": True, "ssh": None}) == []
    assert problems(tmp_path, c={"ssh": None}) == []
    assert problems(tmp_path, ("cluster=local", "comms=memory")) == []


def test_machines_that_cannot(tmp_path: Path) -> None:
    manual = {"manual": True, "ssh": None}
    assert problems(tmp_path, a=manual) == [
        (
            "cluster.nodes.a.manual=True: must be reached by SSH to leave the run there (hydra.launcher.detach); "
            "nearest valid: cluster.server=<a node with SSH>"
        )
    ]
    assert problems(tmp_path, options=Options(session="manual"))[0].startswith("cluster.nodes.a.manual=True: must be")
    assert problems(tmp_path, options=Options(env="venv"), b=manual, c=manual) == [
        (
            "hydra.launcher.env=venv: cannot be made on b, c, which joins by hand, with hydra.launcher.detach=true; "
            "nearest valid: hydra.launcher.env=null"
        )
    ]
    assert problems(tmp_path, a={"dials_only": True}) == [
        "cluster.nodes.a.dials_only=True: must be false for the server of a detached run: the others join it there"
    ]


def test_a_machine_that_reaches_the_server_through_another(tmp_path: Path) -> None:
    """Training goes that way; joining does not."""
    links = {
        "a": {"addresses": {"x": "10.1.0.1/24"}},
        "b": {"addresses": {"x": "10.1.0.2/24", "y": "10.2.0.2/24"}},
        "c": {"addresses": {"y": "10.2.0.3/24"}},
    }
    assert problems(tmp_path, **links) == [
        "cluster.nodes.c.addresses=c: is on no network of a's, where it has to join the run (hydra.launcher.detach)"
    ]


def test_windows_has_no_place_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (spec,) = validate_jobs([], None)
    monkeypatch.setattr(os, "name", "nt")
    found = [str(problem) for problem in unfit(spec, ["server", "worker0"], Options())]
    assert found[0].startswith("hydra.launcher.detach=True: leaves runs on machines with Linux or macOS; the server is")


@pytest.mark.parametrize(
    ("pipeline", "total", "sweeper", "host", "said"),
    [
        ("train", 2, BASIC, None, "leaves one run going; these words make 2"),
        ("bench", 1, BASIC, None, "leaves one run going; pipeline=bench is none; nearest valid: pipeline=train or"),
        ("train", 1, "x.OptunaSweeper", None, "leaves one run going; x.OptunaSweeper waits for what its runs come to"),
        ("train", 1, BASIC, "mini1", "leaves the run on the machine of its server: hydra.launcher.host cannot be"),
    ],
)
def test_jobs_that_are_no_single_run(pipeline: str, total: int, sweeper: str, host: str | None, said: str) -> None:
    (problem,) = wrong(SmolclusterLauncherConf(host=host), pipeline, total, sweeper)
    assert str(problem).startswith(f"hydra.launcher.detach=True: {said}")
    assert not list(wrong(SmolclusterLauncherConf(), "evaluate", 1, BASIC))


@pytest.mark.parametrize("module", ["hydra_plugins.smolcluster_launcher._conductor", "smolcluster.node.keeper"])
def test_what_runs_elsewhere_needs_what_nodes_need(module: str) -> None:
    """Hydra, Fabric and what draws are on the person's machine only."""
    other = ("hydra", "fabric2", "paramiko", "rich", "matplotlib", "filelock", "torch")
    code = f"import sys, {module}; print([name for name in {other!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_sweep_is_refused_before_its_first_run(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["seed=1,2", "hydra.launcher.detach=true", f"hydra.sweep.dir={tmp_path}/run"]) == 2
    assert "hydra.launcher.detach=True: leaves one run going; these words make 2" in capsys.readouterr().err
    assert not list(tmp_path.glob("run/*/*"))

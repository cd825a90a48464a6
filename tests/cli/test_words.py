"""What a run that goes on from another takes over of how that one was typed."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from smolcluster.cli.words import config_dir_of, rewrite


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run of a cluster of the user's own."""
    hydra = tmp_path / "run" / ".hydra"
    hydra.mkdir(parents=True)
    (tmp_path / "my").mkdir()
    (hydra / "overrides.yaml").write_text(yaml.safe_dump(["cluster=home", "pipeline=train", "optim.lr=0.1"]))
    sources = [{"provider": "main", "path": "/conf"}, {"provider": "command-line", "path": str(tmp_path / "my")}]
    own = ["hydra.sweep.dir=/elsewhere", "hydra.launcher.env=venv", "+hydra.launcher.gate_port=7"]
    own += ["hydra.launcher.detach=true", "hydra.launcher.guests=2", "hydra.launcher.max_concurrent=2"]
    about = {"hydra": {"overrides": {"hydra": own}, "runtime": {"config_sources": sources}}}
    (hydra / "hydra.yaml").write_text(yaml.safe_dump(about))
    return hydra.parent


def test_a_run_goes_on_with_the_machines_that_it_had(run: Path) -> None:
    kept = ["cluster=home", "optim.lr=0.1", "hydra.launcher.env=venv", "+hydra.launcher.gate_port=7"]
    assert rewrite([f"resume={run}"]) == [*kept, f"resume={run}"]
    assert rewrite([f"resume={run}", "hydra.launcher.env=uv"])[2:] == [
        "+hydra.launcher.gate_port=7", f"resume={run}", "hydra.launcher.env=uv"
    ]  # fmt: skip
    assert config_dir_of([f"resume={run}"]) == str(run.parent / "my")
    assert config_dir_of([f"resume={run}/checkpoints/step-3"]) == str(run.parent / "my")


def test_what_is_gone_or_was_not_there_is_not_taken_over(run: Path) -> None:
    (run.parent / "my").rmdir()
    assert config_dir_of([f"resume={run}"]) is None
    assert config_dir_of(["train.epochs=1"]) is None
    for damaged in ("[", "hydra:", "hydra: {overrides: null, runtime: {config_sources: [7]}}"):
        (run / ".hydra" / "hydra.yaml").write_text(damaged)
        assert config_dir_of([f"resume={run}"]) is None
        assert rewrite([f"resume={run}"]) == ["cluster=home", "optim.lr=0.1", f"resume={run}"]

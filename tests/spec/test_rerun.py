"""A rerun takes the spec as it stands, whatever the configuration says by now."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from smolcluster.errors import ConfigError
from smolcluster.spec.compose import validate_jobs
from smolcluster.spec.rerun import digest_of


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run that was made with other defaults than those of today."""
    (spec,) = validate_jobs(["algo=edp", "optim.lr=0.007", "cluster.num_workers=3"], None)
    folder = tmp_path / "a run, of old"
    folder.mkdir()
    (folder / "run_spec.json").write_text(json.dumps({"spec": spec.plain()}))
    return folder


def words(run: Path, *more: str) -> list[str]:
    return [f"rerun='{run}'", *more]


def test_it_is_the_spec_of_that_run(run: Path) -> None:
    (again,) = validate_jobs(words(run), None)
    recorded = json.loads((run / "run_spec.json").read_text())["spec"]
    assert again.plain() == {**recorded, "rerun": str(run)}
    assert (again.optim.lr, again.choices["algo"], again.cluster.size) == (0.007, "edp", 3)


def test_it_may_happen_elsewhere(run: Path) -> None:
    (again,) = validate_jobs(words(run, "cluster=minis", "tracking=tensorboard"), None)
    assert again.cluster.server_name == "mini1"
    assert (again.choices["cluster"], again.choices["tracking"], again.choices["algo"]) == (
        "minis",
        "tensorboard",
        "edp",
    )
    assert again.optim.lr == 0.007


def test_what_decides_numbers_cannot_be_changed(run: Path) -> None:
    with pytest.raises(ConfigError) as error:
        validate_jobs(words(run, "algo=syncps", "optim.lr=1", "hydra.sweep.dir=/x"), None)
    assert [problem.key for problem in error.value.problems] == ["algo", "optim.lr"]


def test_there_must_be_a_run(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="must be the directory of a run"):
        validate_jobs(words(tmp_path), None)


def test_only_finished_runs_have_a_digest_to_compare(tmp_path: Path) -> None:
    assert digest_of(str(tmp_path)) is None
    (tmp_path / "summary.json").write_text(json.dumps({"status": "failed", "digest": "ab"}))
    assert digest_of(str(tmp_path)) is None
    (tmp_path / "summary.json").write_text(json.dumps({"status": "done", "digest": "ab"}))
    assert digest_of(str(tmp_path)) == "ab"

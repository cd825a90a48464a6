"""Sweepers that choose the values themselves, on the real command."""

from __future__ import annotations

import contextlib
import os
import sqlite3
from pathlib import Path

import pytest
import yaml

from smolcluster.cli.main import main
from smolcluster.errors import ConfigError
from smolcluster.spec.compose import validate_jobs
from smolcluster.tracking.rundir import RunReader
from tests.integration.command import Command

DATA = """
import numpy as np

def load(width):
    if width == 3:
        raise ValueError("three is no good")
    y = np.arange(64) % 2
    x = np.tile(y[:, None], (1, width)).astype(np.float32)
    return (x, y), (x, y)
"""
WORDS = (
    "algo=single", "data=custom", "data.target=striped:load", "schedule=constant", "optim=sgd", "optim.lr=0.5",
    "train.max_steps=5", "train.export=false", "train.eval_samples=64", "cluster.threads_per_node=1",
)  # fmt: skip
OPTUNA = "hydra/sweeper=optuna"


@pytest.fixture(autouse=True)
def optuna(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Data that are the easier to learn the wider they are, and that cannot be had with a width of three."""
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper", reason="needs pip install 'smolcluster[optuna]'")
    (tmp_path / "striped.py").write_text(DATA)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")


@pytest.mark.parametrize("beside", [1, 2])
def test_optuna_gets_the_metric_and_a_failed_run_ends_nothing(tmp_path: Path, beside: int) -> None:
    words = (OPTUNA, "hydra.sweeper.n_trials=3", "hydra/sweeper/sampler=random", "hydra.sweeper.sampler.seed=1")
    at_a_time = f"hydra.launcher.max_concurrent={beside}"
    with Command(tmp_path / "sweep", (*WORDS, *words, at_a_time, "+data.kwargs.width=choice(1,3,20)")) as command:
        assert command.finish() == 1, "one of the runs has failed"
    summaries = {}
    for number in "012":
        run = RunReader(tmp_path / "sweep" / number)
        spec, summary = run.spec(), run.summary()
        assert spec is not None
        assert summary is not None
        summaries[spec["spec"]["data"]["kwargs"]["width"]] = {**summary, "number": number}
    assert list(summaries) == [3, 1, 20], "what that seed draws"
    assert summaries[3]["status"] == "failed"
    assert "three is no good" in summaries[3]["reason"]
    assert summaries[20]["final"]["loss"] < summaries[1]["final"]["loss"]
    found = yaml.safe_load((tmp_path / "sweep" / "optimization_results.yaml").read_text())
    best_value = summaries[20]["final"]["loss"]
    assert found == {"name": "optuna", "best_params": {"+data.kwargs.width": 20}, "best_value": best_value}
    best = f"run {summaries[20]['number']}, %s, final loss "
    assert f"best: {best % '+data.kwargs.width=20'}" in "\n".join(command.lines)
    assert f"Best: {best % '`+data.kwargs.width=20`'}" in (tmp_path / "sweep" / "sweep.md").read_text()
    assert command.lines[-1].endswith("sweep")


def test_a_search_goes_on_from_its_storage(tmp_path: Path) -> None:
    """Two searches of one name are one study. Where every run fails there is no metric, and no traceback."""
    study = (OPTUNA, f"hydra.sweeper.storage='sqlite:///{tmp_path}/study.db'", "hydra.sweeper.study_name=s")
    words = (*WORDS, *study, "hydra.sweeper.n_trials=1", "hydra.sweeper.sampler.seed=1")
    with Command(tmp_path / "bad", (*words, "+data.kwargs.width=int(interval(3,3))")) as bad:
        assert bad.finish() == 1
    assert "three is no good" in bad.stderr
    assert "Traceback" not in bad.stderr
    with Command(tmp_path / "good", (*words, "+data.kwargs.width=int(interval(4,8))")) as good:
        assert good.finish() == 0, good.stderr
    with contextlib.closing(sqlite3.connect(tmp_path / "study.db")) as database:
        states = [state for (state,) in database.execute("select state from trials order by trial_id")]
    assert states == ["FAIL", "COMPLETE"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["hydra/sweeper=optun"], "hydra/sweeper=optun: must be one of basic, optuna; nearest valid: optuna"),
        ([OPTUNA, "hydra.sweeper.n_trials=0"], "hydra.sweeper.n_trials=0: must be >= 1 and <= 100000"),
        ([OPTUNA, "hydra.sweeper.direction=up"], "must be one of minimize, maximize"),
        ([OPTUNA, "hydra.sweeper.n_trials=x"], "cannot be composed: Error merging override"),
        ([OPTUNA, "optim.lr=tag(log,interval(1e-4,200))"], "optim.lr=200.0: must be > 0 and <= 100"),
        ([OPTUNA, "algo=choice(syncps,edpp)"], "algo=edpp: must be one of "),
        ([OPTUNA, "train.epochs=range(0,4)"], "train.epochs=0: must be >= 1"),
        ([OPTUNA, "algo=glob(s*)"], "nearest valid: choice(single,syncps)"),
        (["optim.lr=interval(1e-4,1e-1)"], "is a space to search, which hydra/sweeper=optuna does"),
        (["algo=glob(x*)"], "algo=glob(x*): stands for no value at all"),
    ],
)
def test_what_cannot_be_searched_is_told_at_once(
    capsys: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    assert main(words) == 2
    assert said in capsys.readouterr().err


def test_a_sweeper_that_is_missing_is_told_with_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"is not installed: pip install 'smolcluster\[optuna\]'"):
        validate_jobs([OPTUNA], None)


def test_the_ends_of_a_space_are_looked_at_and_not_every_combination() -> None:
    words = ["optim.lr=interval(0.1,0.2)", "train.epochs=range(1,100)", "seed=choice(1,2,3)"]
    specs = validate_jobs([OPTUNA, *words], None)
    assert [(spec.optim.lr, spec.train.epochs, spec.seed) for spec in specs] == [
        (0.1, 1, 1), (0.2, 1, 1), (0.1, 99, 1), (0.1, 1, 2), (0.1, 1, 3),
    ]  # fmt: skip
    assert [spec.algo.links for spec in validate_jobs(["algo=glob(s*)"], None)] == ["none", "star"]

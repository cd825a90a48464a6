"""The words of the earlier ``train.py``: told in one line what to type instead, and nothing is started."""

from __future__ import annotations

import doctest
from pathlib import Path

import pytest

from smolcluster.cli import earlier
from smolcluster.cli.main import main
from smolcluster.spec.compose import validate_jobs


def test_examples_in_the_documentation() -> None:
    found = doctest.testmod(earlier)
    assert (found.attempted, found.failed) == (1, 0)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (
            ["--override", "training.batch_size=16", "training.epochs=5"],
            "--override=...: is not needed: group=option and key=value are typed alone (docs/from_the_seeds.md",
        ),
        (
            ["--override", "training.batch_size=16", "--override", "training.learning_rate=3e-4"],
            "nearest valid: train.batch_size=16 optim.lr=3e-4",
        ),
        (["--override=training.epochs=5"], "nearest valid: train.epochs=5"),
        (
            ["--config", "path/to/old.yaml"],
            "--config=path/to/old.yaml: is not read: type what differs as group=option and key=value",
        ),
        (["--config=old.yml", "--override", "lr_schedule.min_lr=6e-5"], "nearest valid: schedule.min_lr=6e-5"),
    ],
)
def test_old_words(words: list[str], expected: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 2
    heading, line = capsys.readouterr().err.splitlines()
    assert heading == "smolcluster: 1 problem in the configuration"
    assert expected in line


def test_every_new_key_is_one() -> None:
    values = {"optim.weight_decay": "0.1", "optim.lr": "0.1", "schedule.min_lr": "0.01", "train.grad_clip_norm": "2"}
    words = [f"{key}={values.get(key, 7)}" for key in set(earlier.NOW.values())]
    assert validate_jobs(["model=gpt", *words], None)[0].train.batch_size == 7


def test_where_the_keys_went_is_documented() -> None:
    page = (Path(__file__).parents[2] / "docs" / "from_the_seeds.md").read_text(encoding="utf-8")
    assert not [key for key in earlier.NOW.values() if key not in page]

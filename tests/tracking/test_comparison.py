"""The files that compare the runs of a sweep."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest
from matplotlib.image import imread

from smolcluster.tracking.comparison import write


def row(number: int, loss: float | None, *overrides: str, status: str = "done") -> dict[str, Any]:
    result = None if loss is None else {"loss": loss, "accuracy": 1 - loss, "step": 20}
    wire = {"sent": 2_500_000, "received": 1, "uncompressed": 1}
    return {
        "run": number, "overrides": ["train.epochs=1", *overrides], "status": status, "final": result, "best": result,
        "seconds": 12.5, "samples_per_s": 100.0, "wire_bytes": wire, "wait_share": 0.25, "steps": 20,
    }  # fmt: skip


def test_a_sweep_leaves_a_table_for_people_one_for_programs_and_a_picture(tmp_path: Path) -> None:
    rows = [row(0, 0.5, "optim.lr=0.1"), row(1, 0.25, "optim.lr=0.2"), row(2, None, "a=x|y", status="failed")]
    markdown, table, picture = write(tmp_path, rows)
    lines = markdown.read_text().splitlines()
    assert lines[2].startswith("| run | overrides | status | final loss | final accuracy | best loss |")
    assert "| 1 | `optim.lr=0.2` | done | **0.25** | **75.00 %** |" in lines[5]
    assert "`a=x\\|y` | failed |" in lines[6]
    assert "2.5 MB" in lines[4]
    assert lines[8] == "Best: run 1, `optim.lr=0.2`, final loss 0.25."
    found = list(csv.DictReader(table.read_text().splitlines()))
    assert [each["final loss"] for each in found] == ["0.5", "0.25", ""]
    assert found[0]["bytes sent"] == "2500000.0"
    height, width, _ = imread(picture).shape
    assert width > height > 200


@pytest.mark.parametrize("rows", [[row(0, None, status="failed"), {"run": 1}], []])
def test_there_may_be_nothing_to_compare(tmp_path: Path, rows: list[dict[str, Any]]) -> None:
    assert all(path.stat().st_size for path in write(tmp_path, rows))
    assert "Best:" not in (tmp_path / "sweep.md").read_text()


def test_many_runs_with_long_words_are_drawn(tmp_path: Path) -> None:
    write(tmp_path, [row(number, 0.1 + number, f"data.path=/{'x' * 300}$_{number}") for number in range(60)])
    assert imread(tmp_path / "sweep.png").shape[0] > 1500

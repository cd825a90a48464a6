"""What training must reach on real digits: algorithms and precisions that are not bit-equal end within a point."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.in_memory import Ran, run

pytestmark = [
    pytest.mark.usefixtures("torch_settings", "no_thread_left"),
    pytest.mark.xdist_group("quality"),  # one process makes the reference, once
]
SEEDS = (1, 2, 3)


def accuracy(ran: Ran) -> float:
    assert ran.code == 0
    return float(ran.of("evaluation")[-1]["accuracy"])


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> float:
    """Mean accuracy of one process over the seeds."""
    found = [accuracy(run(tmp_path_factory.mktemp("r"), "algo=single", f"seed={seed}")) for seed in SEEDS]
    return sum(found) / len(found)


def mean_of(folder: Path, *words: str) -> float:
    return sum(accuracy(run(folder / str(seed), *words, f"seed={seed}")) for seed in SEEDS) / len(SEEDS)


@pytest.mark.parametrize(
    "words",
    [("algo=edp",), ("algo=edp", "algo.use_quantization=true"), ("algo=edp", "algo.worker_update_interval=10")],
    ids=str,
)
def test_edp_is_within_a_point_of_one_process(tmp_path: Path, reference: float, words: tuple[str, ...]) -> None:
    assert mean_of(tmp_path, *words) >= reference - 0.01


def test_bf16_is_within_a_point_of_fp32(tmp_path: Path, reference: float) -> None:
    assert mean_of(tmp_path, "algo=syncps", "train.precision=bf16-mixed") >= reference - 0.01


def test_the_default_run_is_good(reference: float) -> None:
    assert reference >= 0.95

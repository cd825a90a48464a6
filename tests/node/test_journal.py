"""What a node does with its role's steps: stopping in the middle of things, going on, and the end of a run."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from smolcluster.errors import ConfigError
from smolcluster.pipeline.job import preflight
from smolcluster.spec.compose import validate_jobs
from smolcluster.spec.resume import checkpoint_of
from smolcluster.train import checkpoint as checkpoints
from smolcluster.train.checkpoint import load
from tests.in_memory import run

pytestmark = [pytest.mark.usefixtures("torch_settings", "no_thread_left")]
STOP = {"op": "stop", "reason": "stopped by the user"}
Take = Callable[[Mapping[str, Any]], None]


def test_a_stop_in_the_middle_of_saving_leaves_that_checkpoint_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk is slow: the stop's grace is over while optimizer.safetensors is being written."""
    write, halfway, cancelled = checkpoints._write, threading.Event(), threading.Event()
    seat: dict[str, Any] = {}

    def slow(path: Path, data: bytes) -> None:
        if path.parent.name.startswith(".writing-3") and path.name.startswith("optimizer"):
            seat["loop"].call_soon_threadsafe(seat["take"], STOP)
            assert cancelled.wait(20)
            halfway.set()
        write(path, data)

    def later(take: Take) -> None:
        seat.update(take=take, loop=asyncio.get_running_loop())
        seat["loop"].call_later(0, watch)

    def watch() -> None:
        """Lets the disk go on a moment after the role has been cancelled: a second save would do its harm then."""
        alive = any(task.get_name().startswith("life of") for task in asyncio.all_tasks())
        if seat.get("alive") and not alive:
            seat["loop"].call_later(0.2, cancelled.set)
            return
        seat["alive"] = alive
        seat["loop"].call_later(0.01, watch)

    monkeypatch.setattr(checkpoints, "_write", slow)
    ran = run(
        tmp_path, "algo=single", "train.max_steps=200", "train.epochs=1000", "train.checkpoint_steps=1",
        "train.eval_steps=null", "cluster.stop_timeout_s=2", later=later,
    )  # fmt: skip
    assert halfway.is_set()
    assert ran.code == 130
    assert [event["step"] for event in ran.of("checkpoint")] == [1, 2, 3]
    assert load(tmp_path / "checkpoints" / "latest").step == 3


def test_a_stop_in_the_middle_of_an_evaluation_breaks_it_off(tmp_path: Path) -> None:
    seat: dict[str, Any] = {}

    class Stopping:
        """Its first evaluation is where the user stops the run."""

        def __init__(self, learner: Any) -> None:
            self.__dict__["learner"] = learner

        def __getattr__(self, name: str) -> Any:
            return getattr(self.learner, name)

        def __setattr__(self, name: str, value: Any) -> None:
            setattr(self.learner, name, value)

        async def evaluate(self) -> dict[str, float]:
            seat["take"](STOP)
            await asyncio.sleep(60)
            raise AssertionError("was not broken off")

    ran = run(
        tmp_path, "algo=single", "train.max_steps=20", "train.eval_steps=5", "train.checkpoint_steps=null",
        "cluster.stop_timeout_s=1", wrap=Stopping, later=lambda take: seat.update(take=take),
    )  # fmt: skip
    assert ran.code == 130
    assert load(tmp_path / "checkpoints" / "latest").step == 5


def test_the_last_step_is_evaluated_and_saved_once_and_always_logged(tmp_path: Path) -> None:
    ran = run(tmp_path, "train.max_steps=20", "train.eval_steps=10", "train.checkpoint_steps=5", "train.log_steps=7")
    assert [event["step"] for event in ran.of("evaluation")] == [10, 20]
    assert [event["step"] for event in ran.of("checkpoint")] == [5, 10, 15, 20]
    assert [event["step"] for event in ran.of("metrics")] == [7, 14, 20]


def test_a_resumed_run_has_a_best_checkpoint_of_its_own(tmp_path: Path) -> None:
    words = ("train.eval_steps=5", "train.epochs=9")
    first = run(tmp_path / "a", *words, "train.max_steps=10")
    again = run(tmp_path / "b", *words, "train.max_steps=12", "optim.lr=50", f"resume={tmp_path / 'a'}")
    assert (first.code, again.code) == (0, 0)
    assert again.of("evaluation")[-1]["loss"] > first.of("evaluation")[-1]["loss"]
    assert load(tmp_path / "b" / "checkpoints" / "best").step == 12


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that has done ten steps."""
    folder = tmp_path_factory.mktemp("ended")
    assert run(folder, "train.max_steps=10").code == 0
    return folder


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("seed=7", "train.max_steps=20"), "seed=7: must be 42, as before"),
        (("train.max_steps=10",), r"is at its end \(step 10\): raise train.epochs or train.max_steps"),
        (("train.epochs=0",), "train.epochs=0: must be >= 1"),
        (("model=gpt", "train.epochs=2"), "model=gpt: must be simplenn, as before"),
    ],
    ids=str,
)
def test_what_cannot_be_gone_on_from_is_refused_before_a_node_starts(
    ended: Path, words: tuple[str, ...], told: str
) -> None:
    with pytest.raises(ConfigError, match=told):
        preflight(*validate_jobs([f"resume={ended}", *words], None))


def test_a_checkpoint_that_is_not_there_is_not_replaced_by_another(ended: Path) -> None:
    for name in ("step-7", "nope", "latest/step-10"):
        with pytest.raises(ConfigError, match="must be the directory of a run that has saved a checkpoint"):
            checkpoint_of(ended / "checkpoints" / name)
    assert checkpoint_of(ended / "checkpoints" / "best").name == "step-10"


def test_other_data_are_refused_by_the_node_that_reads_them(ended: Path, tmp_path: Path) -> None:
    ran = run(tmp_path, f"resume={ended}", "data.num_samples=900", "train.max_steps=20")
    (failed,) = ran.of("failed")
    assert "was trained on other data (1438 training samples then, 900 now)" in failed["reason"]
    assert failed["final"]
    assert ran.code == 1
    assert checkpoint_of(ended).name == "step-10"

"""SyncPS against its definition: equality with one process, Polyak blending, stragglers, deaths, lies."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smolcluster.aggregator.mean import Mean
from smolcluster.algo.syncps import SyncPS, barrier
from tests.in_memory import largest_difference, run

pytestmark = [pytest.mark.usefixtures("torch_settings", "no_thread_left")]
FIFTY = ("train.max_steps=50", "train.epochs=1000", "schedule.warmup_steps=10", "train.eval_steps=null")
CLIPPED = "train.grad_clip_norm=0.1"
"""Far below the norms of these gradients: clipping really happens, in every step."""
EXACT = ("train.precision=64",)
UNEVEN = ("data.num_samples=31", "train.batch_size=11", "cluster.num_workers=3")
SMALL_GPT = (
    "model=gpt", "model.model_dim=32", "model.num_layers=2", "model.num_heads=2", "model.ff_dim=64",
    "model.dropout=0", "model.max_seq_len=16", "data.tokenizer=bytes", "data.max_bytes=20000",
    "train.batch_size=4", "train.eval_samples=8",
)  # fmt: skip


@pytest.mark.parametrize("optim", ["sgd", "adamw"])
@pytest.mark.parametrize("clip", ["global", "off"])
@pytest.mark.parametrize("shape", [("cluster.num_workers=1",), ("cluster.num_workers=2",), UNEVEN], ids=str)
def test_equals_one_process(tmp_path: Path, optim: str, clip: str, shape: tuple[str, ...]) -> None:
    words = (*FIFTY, *EXACT, CLIPPED, f"optim={optim}", f"train.clip={clip}", *shape)
    alone = run(tmp_path / "single", *words, "algo=single")
    together = run(tmp_path / "syncps", *words, "algo=syncps", "comms.chaos_delay_s=0.002")
    assert (alone.code, together.code) == (0, 0)
    assert min(event["grad_norm"] for event in together.of("metrics")) > 0.1
    assert largest_difference(alone.weights, together.weights) <= 1e-12


@pytest.mark.parametrize("optim", ["sgd", "adamw"])
def test_equals_one_process_on_a_gpt(tmp_path: Path, optim: str) -> None:
    words = ("train.max_steps=12", "schedule.warmup_steps=4", *EXACT, f"optim={optim}", *SMALL_GPT)
    alone = run(tmp_path / "single", *words, "algo=single", "cluster.num_workers=3")
    together = run(tmp_path / "syncps", *words, "algo=syncps", "cluster.num_workers=3")
    assert largest_difference(alone.weights, together.weights) <= 1e-12


def test_an_unweighted_mean_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = (*FIFTY, *EXACT, "optim=sgd", *UNEVEN)
    alone = run(tmp_path / "single", *words, "algo=single")
    weighted = Mean.__call__
    monkeypatch.setattr(Mean, "__call__", lambda self, updates, weights: weighted(self, updates, [1.0] * len(updates)))
    together = run(tmp_path / "syncps", *words, "algo=syncps")
    assert largest_difference(alone.weights, together.weights) > 1e-3


def test_clipping_changes_the_result(tmp_path: Path) -> None:
    words = (*FIFTY, *EXACT, CLIPPED, "optim=sgd", "train.max_steps=5")
    digests = {run(tmp_path / clip, *words, f"train.clip={clip}").digest for clip in ("global", "worker", "off")}
    assert len(digests) == 3


def test_one_seed_one_digest(tmp_path: Path) -> None:
    words = ("train.epochs=2", "cluster.num_workers=3", "comms.chaos_delay_s=0.002")
    first, second = (run(tmp_path / name, *words) for name in "ab")
    assert first.digest == second.digest
    assert run(tmp_path / "c", *words, "seed=1").digest != first.digest


def test_server_that_trains_equals_one_process(tmp_path: Path) -> None:
    words = (*FIFTY, *EXACT, "train.batch_size=8")
    alone = run(tmp_path / "single", *words, "algo=single", "cluster.num_workers=3")
    together = run(tmp_path / "syncps", *words, "algo=syncps", "cluster.num_workers=2", "algo.server_trains=true")
    assert largest_difference(alone.weights, together.weights) <= 1e-12


def test_window_of_local_steps_equals_a_larger_batch(tmp_path: Path) -> None:
    words = (*FIFTY, *EXACT)
    window = run(tmp_path / "window", *words, "algo.sync_window=3", "train.batch_size=8")
    large = run(tmp_path / "large", *words, "train.batch_size=24")
    assert largest_difference(window.weights, large.weights) <= 1e-12


def test_blending_follows_its_recurrence(tmp_path: Path) -> None:
    """With K=3 and alpha=.5 gradients are taken at w, which moves to the mean of theta and w every third step."""
    words = ("train.max_steps=9", "train.epochs=1000", *EXACT, "optim=sgd", "train.clip=off", "cluster.num_workers=1")
    words += ("train.batch_size=2000", "schedule=constant", "train.eval_steps=null")
    ran = run(tmp_path / "a", *words, "algo.worker_update_interval=3", "algo.polyak_alpha=0.5")
    expected = _blended(tmp_path / "b", words, steps=9, interval=3, alpha=0.5)
    assert largest_difference(expected, ran.weights) <= 1e-12
    assert [event["weight_version"] for event in ran.of("metrics")] == [0, 0, 0, 3, 3, 3, 6, 6, 6]


def _blended(folder: Path, words: tuple[str, ...], steps: int, interval: int, alpha: float) -> dict:
    """The recurrence written out with plain torch on the same model and the whole data set as one batch."""
    import torch
    from torch.nn import functional as F

    from smolcluster.data.dataset import Context
    from smolcluster.spec.compose import validate_jobs
    from smolcluster.spec.seeds import derive

    (spec,) = validate_jobs([*words, "comms=memory"], None)
    data = spec.data.load(Context(seq_length=None, seed=spec.seed, cache=folder, say=lambda text: None))
    torch.manual_seed(derive(spec.seed, "initial weights"))
    module = spec.model.build(data.info).double()
    inputs, targets = data.train.batch(list(range(len(data.train))))
    x, y = torch.from_numpy(inputs).double(), torch.from_numpy(targets)
    theta = {name: p.detach().clone() for name, p in module.named_parameters()}
    local = {name: p.clone() for name, p in theta.items()}
    for step in range(steps):
        if step % interval == 0:
            local = {name: alpha * theta[name] + (1 - alpha) * local[name] for name in theta}
        variables = {name: p.clone().requires_grad_(True) for name, p in local.items()}
        F.cross_entropy(torch.func.functional_call(module, variables, x), y).backward()
        theta = {name: theta[name] - spec.optim.lr * variables[name].grad for name in theta}
    return theta


@given(
    missing=st.integers(0, 5), arrived=st.integers(0, 5), first=st.none() | st.floats(0, 100), now=st.floats(0, 1000),
    timeout=st.none() | st.floats(0.1, 50), quorum=st.integers(1, 5),
)  # fmt: skip
@settings(max_examples=300, deadline=None)
def test_barrier(
    missing: int, arrived: int, first: float | None, now: float, timeout: float | None, quorum: int
) -> None:
    algo = SyncPS(timeout=timeout, quorum=quorum, sync_max_wait_s=200.0)
    verdict = barrier(missing=missing, arrived=arrived, began=0.0, first=first, now=now, algo=algo)
    late = timeout is not None and (now >= 200 or (first is not None and now >= first + timeout))
    if missing == 0 or (late and arrived >= quorum):
        assert verdict.action == "proceed"
    else:
        assert verdict.action == ("abort" if now >= 200 else "wait")
    if verdict.action == "wait":
        assert now < verdict.until <= 200, "a wait has an end, and it lies ahead"


class Slow:
    """A learner whose rank 1 answers only when the server is five steps further."""

    def __init__(self, learner: Any, learners: list[Any]) -> None:
        learners.append(learner)
        self.__dict__.update(learner=learner, learners=learners)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.learner, name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self.learner, name, value)

    async def gradient(self, spans: Any, *, step: int, rank: int) -> Any:
        server = self.learners[0]
        while rank == 1 and server.version < min(step + 5, server.num_steps):
            await asyncio.sleep(0)
        return await self.learner.gradient(spans, step=step, rank=rank)


def test_straggler_is_dropped_and_counted(tmp_path: Path) -> None:
    """A slow worker's share is consumed; steps go on without it; it comes back with the others' weights."""
    learners: list[Any] = []
    ran = run(
        tmp_path, "train.epochs=3", "train.batch_size=64", "algo.timeout=0.05", "cluster.num_workers=2",
        wrap=lambda learner: Slow(learner, learners),
    )  # fmt: skip
    assert ran.code == 0
    dropped = ran.journal("dropped")
    assert {event["peer"] for event in dropped} == {"worker1"}
    done = sum(stop - start for _, start, stop in ran.spans)
    assert done + sum(event["samples"] for event in dropped) == 3 * 1438, "each sample is consumed exactly once"
    last = ran.of("metrics")[-1]
    assert last["late"]["worker1"] >= 1
    assert len(dropped) >= 2, "it was given work again after its late answer"
    assert last["step"] == 36, "steps go on without it"


@pytest.mark.parametrize(
    "how", [("algo.worker_update_interval=4",), ("algo.worker_update_interval=4", "algo.polyak_alpha=0.5")], ids=str
)
def test_running_statistics_resume_bit_for_bit(tmp_path: Path, how: tuple[str, ...]) -> None:
    words = (
        *how, "model=custom", "model.target=tests.train.batchnorm:make", "train.epochs=2",
        "train.checkpoint_steps=10", "train.keep_checkpoints=99", "train.eval_steps=7",
    )  # fmt: skip
    whole = run(tmp_path / "whole", *words)
    again = run(tmp_path / "again", *words, f"resume={tmp_path / 'whole' / 'checkpoints' / 'step-10'}")
    assert (whole.code, again.code) == (0, 0)
    assert again.digest == whole.digest

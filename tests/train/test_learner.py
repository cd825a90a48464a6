"""The learner: clipping, randomness by counters, loss scaling, evaluation by items, and being stopped."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from smolcluster.data.dataset import Context
from smolcluster.errors import Interrupted
from smolcluster.ports import Gradient, Span
from smolcluster.spec.compose import validate_jobs
from smolcluster.train import device
from smolcluster.train.device import fabric_for
from smolcluster.train.learner import FabricLearner, clip_
from smolcluster.train.loss_scale import GROWTH_INTERVAL, LossScale

pytestmark = pytest.mark.usefixtures("torch_settings")
SMALL_GPT = (
    "model=gpt", "model.model_dim=16", "model.num_layers=1", "model.num_heads=2", "model.ff_dim=32",
    "model.max_seq_len=8", "data.tokenizer=bytes", "data.max_bytes=20000", "train.batch_size=4",
)  # fmt: skip


def learner(folder: Path, *words: str) -> FabricLearner:
    (spec,) = validate_jobs(["algo=single", *words], None)
    data = spec.data.load(Context(seq_length=spec.seq_length, seed=spec.seed, cache=folder, say=lambda text: None))
    return FabricLearner(spec, data, fabric_for("cpu", spec.train.precision), ThreadPoolExecutor(1))


def gradient(of: FabricLearner, *spans: Span, step: int = 0, rank: int = 0) -> Gradient:
    return asyncio.run(of.gradient(spans or [Span(0, 0, 32)], step=step, rank=rank))


def flat(of: FabricLearner, *spans: Span, step: int = 0, rank: int = 0) -> Tensor:
    return gradient(of, *spans, step=step, rank=rank).flat.clone()


@pytest.mark.parametrize(("norm", "limit", "factor"), [(5.0, 1.0, 0.2), (5.0, 10.0, 1.0), (0.5, 1.0, 1.0)])
def test_clipping_is_torchs_formula(norm: float, limit: float, factor: float) -> None:
    vector = torch.tensor([0.6, 0.8], dtype=torch.float64) * norm
    theirs = torch.nn.Parameter(torch.zeros(2, dtype=torch.float64))
    theirs.grad = vector.clone()
    torch.nn.utils.clip_grad_norm_([theirs], limit)
    assert clip_(vector, limit) == pytest.approx(factor, rel=1e-5)
    assert torch.allclose(vector, theirs.grad, rtol=1e-12)


@pytest.mark.parametrize(
    ("clip", "sent", "stepped"), [("global", False, True), ("worker", True, False), ("off", False, False)]
)
def test_what_is_clipped(tmp_path: Path, clip: str, sent: bool, stepped: bool) -> None:
    one = learner(tmp_path, "optim=sgd", "optim.lr=1", "schedule=constant", "schedule.warmup_steps=0",
                  f"train.clip={clip}", "train.grad_clip_norm=0.1")  # fmt: skip
    made = gradient(one)
    assert (float(made.flat.norm()) == pytest.approx(0.1, rel=1e-4)) is sent
    before = one.flat.parameters.clone()
    asyncio.run(one.apply(torch.full_like(before, 0.05)))
    expected = 0.1 if stepped else 0.05 * before.numel() ** 0.5
    assert float((one.flat.parameters - before).norm()) == pytest.approx(expected, rel=1e-4)


def test_dropout_is_a_function_of_step_rank_and_position(tmp_path: Path) -> None:
    one, span = learner(tmp_path, *SMALL_GPT, "model.dropout=0.5"), Span(0, 0, 4)
    first = flat(one, span)
    assert torch.equal(flat(one, span), first)
    assert not torch.equal(flat(one, span, step=1), first)
    assert not torch.equal(flat(one, span, rank=1), first)
    assert torch.equal(flat(learner(tmp_path, *SMALL_GPT, "model.dropout=0.5"), span), first)
    none = learner(tmp_path, *SMALL_GPT, "model.dropout=0")
    assert torch.equal(flat(none, span), flat(none, span, step=1, rank=1))


def test_a_large_span_is_computed_in_micro_batches(tmp_path: Path) -> None:
    words = ("optim=sgd", "train.precision=64")
    whole, parts = (learner(tmp_path, *words, f"train.batch_size={size}") for size in (96, 32))
    assert torch.allclose(flat(whole, Span(0, 0, 96)), flat(parts, Span(0, 0, 96)), rtol=1e-10, atol=1e-14)


def test_scaling_the_loss_changes_nothing_but_the_range(tmp_path: Path) -> None:
    one = learner(tmp_path)
    plain = flat(one)
    one._loss_scale = LossScale(factor=2.0**16, dynamic=True)
    assert torch.equal(flat(one), plain), "a power of two, taken off again"
    assert one._loss_scale.finite_in_a_row == 1


def test_an_overflow_is_computed_again_at_half_the_factor(tmp_path: Path) -> None:
    one = learner(tmp_path)
    plain = flat(one)
    one._loss_scale = LossScale(factor=2.0**140, dynamic=True)  # float32 ends at 2^128
    assert torch.equal(flat(one), plain)
    assert 2.0**100 < one._loss_scale.factor < 2.0**130
    assert one._loss_scale.finite_in_a_row == 1


def test_what_is_not_finite_by_itself_is_given_out_as_it_is() -> None:
    scale, vector = LossScale(factor=1.0, dynamic=True), torch.tensor([float("nan")])
    assert scale.unscale(vector)
    assert scale.factor == 1.0
    scale = LossScale(factor=4.0, dynamic=True, finite_in_a_row=GROWTH_INTERVAL - 1)
    assert scale.unscale(torch.ones(1))
    assert scale.factor == 8.0


def test_fp16_is_scaled_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fabric has a scaler of its own; it must be off, or gradients would come out 65,536 times too long."""
    asked: list[dict[str, Any]] = []

    def fabric(**words: Any) -> Any:
        asked.append(words)
        return SimpleNamespace(device=torch.device("cuda"))

    monkeypatch.setattr(device, "Fabric", fabric)
    fabric_for("cuda:1", "16-mixed")
    (plugin,) = asked[-1]["plugins"]
    assert asked[-1]["devices"] == [1]
    assert (plugin.precision, plugin.device) == ("16-mixed", "cuda")
    assert float(plugin.scaler.scale(torch.tensor(3.0))) == 3.0


def test_a_gradient_that_is_not_finite_changes_nothing(tmp_path: Path) -> None:
    one = learner(tmp_path)
    before = one.flat.parameters.clone()
    applied = asyncio.run(one.apply(torch.full_like(before, float("nan"))))
    assert applied.skipped
    assert torch.equal(one.flat.parameters, before)
    assert (one.version, one.optimizer_steps) == (1, 0)


def test_evaluation_counts_items_and_ends_when_asked_to(tmp_path: Path) -> None:
    one = learner(tmp_path, *SMALL_GPT, "model.dropout=0", "train.eval_samples=10")
    result = asyncio.run(one.evaluate())
    assert result["num_items"] == 80
    assert result["perplexity"] == pytest.approx(torch.tensor(result["loss"]).exp().item(), rel=1e-5)
    asyncio.run(one.halt())
    with pytest.raises(Interrupted):
        asyncio.run(one.evaluate())


def test_halt_waits_for_what_is_being_computed(tmp_path: Path) -> None:
    one, go, order = learner(tmp_path), threading.Event(), list[str]()

    def slow() -> None:
        go.wait(10)
        order.append("computed")

    async def main() -> None:
        computing = asyncio.create_task(one.compute(slow))
        halting = asyncio.create_task(one.halt())
        halting.add_done_callback(lambda _: order.append("halted"))
        await asyncio.sleep(0)
        go.set()
        await asyncio.gather(computing, halting)

    asyncio.run(main())
    assert order == ["computed", "halted"]

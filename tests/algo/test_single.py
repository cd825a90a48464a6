"""The reference itself: a plain training loop in torch gives the same weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from smolcluster.data.dataset import Context
from smolcluster.data.order import Span, course_for, sample_ids
from smolcluster.spec.compose import validate_jobs
from smolcluster.spec.seeds import derive
from tests.in_memory import largest_difference, run

pytestmark = [pytest.mark.usefixtures("torch_settings", "no_thread_left")]


@pytest.mark.parametrize("optim", ["adamw", "sgd"])
def test_equals_a_plain_loop(tmp_path: Path, optim: str) -> None:
    words = ("algo=single", "train.max_steps=40", f"optim={optim}", "schedule.warmup_steps=7", "train.precision=64")
    ran = run(tmp_path, *words)
    (spec,) = validate_jobs([*words], None)
    data = spec.data.load(Context(seq_length=None, seed=spec.seed, cache=tmp_path, say=lambda text: None))
    torch.manual_seed(derive(spec.seed, "initial weights"))
    module = spec.model.build(data.info).double()
    kinds = {"adamw": lambda p: torch.optim.AdamW(p, weight_decay=0.01), "sgd": lambda p: torch.optim.SGD(p, lr=0.1)}
    optimizer = kinds[optim](module.parameters())
    course = course_for(spec, len(data.train))
    span, step = Span(0, 0, 64), 0
    while step < 40:
        ids = sample_ids([span], spec.seed, len(data.train))
        inputs, targets = data.train.batch(ids)
        optimizer.zero_grad()
        F.cross_entropy(module(torch.from_numpy(inputs).double()), torch.from_numpy(targets)).backward()
        torch.nn.utils.clip_grad_norm_(module.parameters(), spec.train.grad_clip_norm)
        for group in optimizer.param_groups:
            group["lr"] = spec.schedule.lr(spec.optim.lr, step, 40)
        optimizer.step()
        step += 1
        following = course.take(course.after(span), step)
        span = following if following else span
    assert largest_difference({n: p.detach() for n, p in module.named_parameters()}, ran.weights) < 1e-9
    assert ran.of("result")[0]["digest"] == ran.digest


def test_metrics_tell_what_happened(tmp_path: Path) -> None:
    words = ("train.epochs=2", "train.track_gradients=true", "train.eval_steps=10", "schedule.warmup_steps=5")
    ran = run(tmp_path, "algo=single", *words)
    lines = ran.of("metrics")
    assert [line["step"] for line in lines] == list(range(1, 47))
    assert lines[-1]["samples"] == 2 * 1438
    assert lines[-1]["loss"] < lines[0]["loss"]
    assert set(lines[0]["grad_norms"]) == {"hidden.weight", "hidden.bias", "output.weight", "output.bias"}
    total = sum(norm**2 for norm in lines[0]["grad_norms"].values()) ** 0.5
    assert total == pytest.approx(lines[0]["grad_norm"], rel=1e-5)
    assert [event["step"] for event in ran.of("evaluation")] == [10, 20, 30, 40, 46]
    assert ran.of("evaluation")[-1]["accuracy"] > 0.5

"""EDP against its definition: one worker is one process bit for bit; staleness, refusals, conservation, leases."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from smolcluster.comms.staleness import admit
from tests.in_memory import Ran, run

pytestmark = [pytest.mark.usefixtures("torch_settings", "no_thread_left")]


def samples(ran: Ran) -> Counter[tuple[int, int]]:
    """How often each (epoch, position) went into an optimizer step."""
    return Counter((epoch, position) for epoch, start, stop in ran.spans for position in range(start, stop))


SMALL_GPT = (
    "model=gpt", "model.model_dim=16", "model.num_layers=1", "model.num_heads=2", "model.ff_dim=32",
    "model.max_seq_len=8", "data.tokenizer=bytes", "data.max_bytes=20000", "train.batch_size=4",
    "train.eval_samples=8",
)  # fmt: skip


@pytest.mark.parametrize(
    "how", [("optim=sgd",), ("optim=adamw",), (*SMALL_GPT, "model.dropout=0.1")], ids=["sgd", "adamw", "dropout"]
)
def test_one_worker_is_one_process_bit_for_bit(tmp_path: Path, how: tuple[str, ...]) -> None:
    words = ("train.epochs=2", "train.max_steps=90", *how, "cluster.num_workers=1", "schedule.warmup_steps=10")
    alone = run(tmp_path / "single", *words, "algo=single")
    pushed = run(tmp_path / "edp", *words, "algo=edp")
    assert pushed.digest == alone.digest


def test_every_sample_once_and_every_push_counted(tmp_path: Path) -> None:
    ran = run(
        tmp_path, "algo=edp", "train.epochs=2", "cluster.num_workers=3", "algo.worker_update_interval=4",
        "algo.gradient_accumulation_size=2", "algo.max_staleness=1", "comms.chaos_delay_s=0.001",
    )  # fmt: skip
    assert ran.code == 0
    pushes = ran.of("metrics")[-1]["pushes"]
    verdicts = {key: n for key, n in pushes.items() if key != "pushes"}
    refused = sum(event["samples"] for event in ran.journal("rejected"))
    assert pushes["rejected_stale"] > 0, "the bound is tight enough to refuse some"
    assert sum(samples(ran).values()) + refused == 2 * 1438, "what is refused is consumed, all else is used once"
    assert max(samples(ran).values()) == 1
    assert pushes["pushes"] == pytest.approx(sum(verdicts.values()), abs=0)


def test_staleness_identity(tmp_path: Path) -> None:
    """Mean staleness of applied gradients is (N - 1) / b whatever the speeds (interval 1, nothing refused)."""
    for size in (1, 2):
        ran = run(
            tmp_path / str(size), "algo=edp", "train.epochs=6", "cluster.num_workers=4", "algo.max_staleness=null",
            f"algo.gradient_accumulation_size={size}", "comms.chaos_delay_s=0.001",
        )  # fmt: skip
        histogram = {int(s): n for s, n in ran.of("metrics")[-1]["staleness"]["histogram"].items()}
        mean = sum(s * n for s, n in histogram.items()) / sum(histogram.values())
        assert mean == pytest.approx(3 / size, rel=0.1)


def test_quantised_pushes_are_a_quarter(tmp_path: Path) -> None:
    words = ("algo=edp", "train.epochs=1", "cluster.num_workers=2")
    plain, packed = (run(tmp_path / str(flag), *words, f"algo.use_quantization={flag}") for flag in (False, True))
    received = [ran.of("metrics")[-1]["wire"]["received"] for ran in (plain, packed)]
    assert received[0] / received[1] >= 3.7, "what the server receives is pushes, headers included"


def test_a_lost_workers_leases_are_done_by_others(tmp_path: Path) -> None:
    """Worker 1 leaves the view in mid-run: every sample of the epoch is still done, exactly once."""

    def later(take: Callable[[Mapping[str, Any]], None]) -> None:
        import asyncio

        members = [
            {"name": "server", "role": "server", "rank": 0, "joined": 1},
            {"name": "worker0", "role": "worker", "rank": 0, "joined": 1},
        ]
        addresses = {"server": ["memory", 0], "worker0": ["memory", 0]}
        view = {"op": "view", "generation": 2, "members": members, "addresses": addresses, "reason": "worker1 is gone"}
        asyncio.get_running_loop().call_later(0.6, take, view)

    ran = run(
        tmp_path, "algo=edp", "train.epochs=8", "cluster.num_workers=2", "comms.chaos_delay_s=0.002",
        "algo.flush_s=1", later=later, until="server",
    )  # fmt: skip
    lost = ran.journal("lost")
    assert [event["peer"] for event in lost][:1] == ["worker1"]
    counts = samples(ran)
    assert set(counts.values()) == {1}
    assert len(counts) == 8 * 1438


@pytest.mark.parametrize("how", ["model.dropout=0.1", "algo.use_quantization=true"])
def test_one_worker_resumes_bit_for_bit(tmp_path: Path, how: str) -> None:
    words = ("algo=edp", *SMALL_GPT, "model.dropout=0", how, "train.max_steps=40", "cluster.num_workers=1",
             "train.checkpoint_steps=25", "train.eval_steps=null")  # fmt: skip
    whole = run(tmp_path / "whole", *words)
    again = run(tmp_path / "again", *words, f"resume={tmp_path / 'whole' / 'checkpoints' / 'step-25'}")
    assert (whole.code, again.code) == (0, 0)
    assert [event["step"] for event in again.of("metrics")] == list(range(26, 41))
    assert again.digest == whole.digest


def test_resume_with_another_number_of_workers(tmp_path: Path) -> None:
    words = ("algo=edp", "train.epochs=2", "cluster.num_workers=2", "train.checkpoint_steps=20")
    first = run(tmp_path / "a", *words, "train.max_steps=40", "algo.gradient_accumulation_size=2")
    again = run(
        tmp_path / "b", *words, "cluster.num_workers=3", f"resume={tmp_path / 'a'}", "algo.gradient_accumulation_size=2"
    )
    assert (first.code, again.code) == (0, 0)
    both = samples(first) + samples(again)
    assert set(both.values()) == {1}
    assert len(both) == 2 * 1438


def test_admission() -> None:
    assert admit(10, 10, 0)[0] == "accept"
    assert admit(10, 9, 0)[:2] == ("stale", 1)
    assert admit(10, 11, 5)[0] == "future", "a worker cannot be ahead of the server, unless the server was restarted"
    assert admit(10**6, 0, None)[0] == "accept"

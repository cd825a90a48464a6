"""A run that was killed goes on bit for bit, and on another number of workers with every sample exactly once."""

from __future__ import annotations

import os
import signal
from collections import Counter
from pathlib import Path

from tests.integration.command import Command, command, gone

WORDS = (
    "model=gpt", "model.model_dim=32", "model.num_layers=2", "model.num_heads=2", "model.ff_dim=64",
    "model.dropout=0.1", "model.max_seq_len=16", "data.tokenizer=bytes", "data.max_bytes=60000",
    "train.batch_size=16", "train.eval_samples=32", "train.eval_steps=40", "train.checkpoint_steps=25",
    "train.export=false", "train.epochs=2", "optim=adamw", "schedule.warmup_steps=60",
)  # fmt: skip


def killed_in_mid_epoch(folder: Path, *words: str) -> Command:
    """Run, and kill -9 every process when step 60 is on record: after the checkpoint of step 50."""
    with Command(folder, words) as run:
        run.wait_until(lambda: run.steps() >= 60, "step 60")
        pids = run.all_pids()
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        run.finish()
        gone(pids, 5)
    return run


def test_bit_for_bit(tmp_path: Path) -> None:
    whole = command(tmp_path / "whole", *WORDS)
    killed = killed_in_mid_epoch(tmp_path / "killed", *WORDS)
    resumed = command(tmp_path / "resumed", f"resume={killed.run}")
    assert resumed.summary["digest"] == whole.summary["digest"]
    start = resumed.metrics[0]["step"] - 1
    assert start % 25 == 0
    assert killed.samples(upto=start) + resumed.samples() == whole.samples()
    assert [line["loss"] for line in resumed.metrics] == [line["loss"] for line in whole.metrics][start:]


def test_on_three_workers(tmp_path: Path) -> None:
    killed = killed_in_mid_epoch(tmp_path / "killed", *WORDS)
    resumed = command(tmp_path / "resumed", f"resume={killed.run}", "cluster.num_workers=3")
    start = resumed.metrics[0]["step"] - 1
    counts: Counter[tuple[int, int]] = killed.samples(upto=start) + resumed.samples()
    assert set(counts.values()) == {1}
    epochs = Counter(epoch for epoch, _ in counts)
    assert len(set(epochs.values())) == 1, "both epochs are complete"
    assert len([node for node in resumed.summary["nodes"] if node["role"] == "worker"]) == 3

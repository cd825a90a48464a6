"""The yardstick trains the same thing: torch's DDP on the same global batches ends where one process ends."""

from __future__ import annotations

from pathlib import Path

import pytest
from safetensors.torch import load_file

from smolcluster.tracking.rundir import RunReader
from tests.in_memory import largest_difference
from tests.integration.command import command


def test_equals_one_process(tmp_path: Path) -> None:
    """34 samples in batches of 33 over 3 ranks: shares of 11, and steps where two of the ranks have no share."""
    command(tmp_path, "algo=single,ddp", "train.max_steps=50", "train.epochs=1000", "train.export=false",
            "data.num_samples=34", "train.batch_size=11", "cluster.num_workers=3", "train.eval_steps=null")  # fmt: skip
    weights = [load_file(tmp_path / job / "checkpoints" / "latest" / "model.safetensors") for job in "01"]
    assert largest_difference(*weights) <= 1e-5
    alone, averaged = (RunReader(tmp_path / job) for job in "01")
    losses = [[line["loss"] for line in run.metrics()] for run in (alone, averaged)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    assert {line["samples"] for line in averaged.metrics()[:2]} == {33, 34}
    summary = averaged.summary()
    assert summary is not None
    assert summary["steps"] == 50
    # torch's sockets are not ours to count
    assert summary["wire_bytes"] == {"sent": None, "received": None, "uncompressed": None}
    assert averaged.metrics()[-1]["wire"] == summary["wire_bytes"]
    assert summary["wait_share"] is None

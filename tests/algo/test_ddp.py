"""The yardstick trains the same thing: torch's DDP on the same global batches ends where one process ends."""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import load_file

from tests.in_memory import largest_difference
from tests.integration.command import command


def test_equals_one_process(tmp_path: Path) -> None:
    words = ("train.max_steps=50", "train.epochs=1000", "train.export=false", "data.num_samples=31",
             "train.batch_size=11", "cluster.num_workers=3", "train.eval_steps=null")  # fmt: skip
    weights = []
    for algo in ("single", "ddp"):
        ran = command(tmp_path / algo, f"algo={algo}", *words)
        weights.append(load_file(ran.run / "checkpoints" / "latest" / "model.safetensors"))
        assert ran.summary["steps"] == 50
        if algo == "ddp":  # torch's sockets are not ours to count
            assert ran.summary["wire_bytes"] == {"sent": None, "received": None, "uncompressed": None}
            assert ran.metrics[-1]["wire"] == ran.summary["wire_bytes"]
            assert ran.summary["wait_share"] is None
            assert not [line for line in ran.lines if " sent" in line.partition("  node")[0] and "step " in line]
    assert largest_difference(*weights) <= 1e-5

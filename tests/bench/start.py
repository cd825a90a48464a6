"""From Enter to the first training step, against importing torch: ``python -m tests.bench.start [repeats]``.

A run of three processes on this machine; the first step is on record in its metrics.jsonl with the time it ended at.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.integration.command import command

WORDS = ("train.max_steps=3", "train.eval_steps=null", "train.eval_samples=1", "train.export=false")


def to_first_step() -> float:
    """Seconds until the first optimizer step is done."""
    with tempfile.TemporaryDirectory() as folder:
        pressed = time.time()
        run = command(Path(folder), *WORDS)
        return float(run.metrics[0]["t"]) - pressed


def to_import() -> float:
    began = time.perf_counter()
    subprocess.run([sys.executable, "-c", "import torch, lightning_fabric"], check=True)
    return time.perf_counter() - began


def main() -> None:
    repeats = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    pairs = [(to_first_step(), to_import()) for _ in range(repeats)]
    first, imported = (statistics.median(column) for column in zip(*pairs, strict=True))
    ratio = statistics.median(a / b for a, b in pairs)
    sys.stdout.write(
        f"first training step after {first:.2f} s, importing torch and lightning_fabric {imported:.2f} s\n"
    )
    sys.stdout.write(f"ratio {ratio:.2f} (medians of {repeats} pairs)\n")


if __name__ == "__main__":
    main()

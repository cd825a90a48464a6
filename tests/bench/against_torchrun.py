"""``algo=ddp`` and ``algo=syncps`` against a bare torchrun script: ``python -m tests.bench.against_torchrun 5``.

The three run in turn, so that a machine whose speed drifts treats all alike; printed are the median step times and the
medians of the ratios repeat by repeat. ``algo=ddp`` is a fair yardstick where it agrees with the bare script.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from smolcluster.tracking.rundir import RunReader
from tests.integration.command import command

STEPS, WARMUP = 12, 3
WORDS = (
    "model=gpt", f"train.max_steps={STEPS + WARMUP}", "train.eval_steps=null", "train.eval_samples=1",
    "train.checkpoint_steps=null", "train.export=false", "train.epochs=1000",
)  # fmt: skip
SCRIPT = Path(__file__).with_name("bare_ddp.py")


def bare(threads: int) -> float:
    """Seconds per step of the script."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]
    asked = ["--steps", str(STEPS), "--warmup-steps", str(WARMUP), "--threads", str(threads)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    done = subprocess.run(
        [*torchrun, str(SCRIPT), *asked], capture_output=True, text=True, env=environment, timeout=600
    )
    if done.returncode:
        raise SystemExit(done.stderr)
    line = next(line for line in done.stdout.splitlines() if line.startswith("{"))
    return float(json.loads(line)["step_time_s"])


def ours(algo: str) -> tuple[float, int]:
    """Seconds per step, and threads of each process."""
    with tempfile.TemporaryDirectory() as folder:
        run = RunReader(command(Path(folder), *WORDS, f"algo={algo}").run)
        spec = run.spec()
        assert spec is not None
        return statistics.median(line["step_s"] for line in run.metrics()[WARMUP:]), spec["threads_per_node"]


def main() -> None:
    repeats = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    times: dict[str, list[float]] = {"torchrun": [], "algo=ddp": [], "algo=syncps": []}
    threads = 1
    for repeat in range(repeats):
        for algo in ("ddp", "syncps"):
            seconds, threads = ours(algo)
            times[f"algo={algo}"].append(seconds)
        times["torchrun"].append(bare(threads))
        sys.stdout.write(f"{repeat + 1}/{repeats} " + ", ".join(f"{k} {v[-1]:.3f} s" for k, v in times.items()) + "\n")
        sys.stdout.flush()
    sys.stdout.write(f"model=gpt, 2 processes of {threads} thread(s), 32 samples each; medians of {repeats} repeats\n")
    for name, each in times.items():
        ratio = statistics.median(mine / bare for mine, bare in zip(each, times["torchrun"], strict=True))
        sys.stdout.write(f"{name:12} {statistics.median(each) * 1e3:8.1f} ms a step  {ratio:.3f}x torchrun\n")


if __name__ == "__main__":
    main()

"""A sweep of six runs, one at a time against two at a time: ``python -m tests.bench.beside [pairs] [where]``.

Its nodes sleep rather than compute, so that what is measured is the launcher and not the cores. ``where`` is
``local``, ``shared`` (three hosts, ``hydra.launcher.share_nodes=true``) or ``disjoint`` (six hosts, three for each
run); hosts need root. The two ways take turns, so that a machine whose speed drifts treats both alike. The final
weights of each run must be the same both ways.
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from smolcluster.tracking.rundir import RunReader
from tests.integration.command import Command
from tests.integration.hosts import Hosts
from tests.integration.on_hosts import Cluster, names

RUNS, STEPS, NAP_S, PAIRS = 6, 40, 0.4, 3
WORDS = (
    "data=custom", "data.target=tests.bench.naps:load", "model=custom", "model.target=tests.bench.naps:net",
    f"+model.kwargs.nap_s={NAP_S}", f"train.max_steps={STEPS}", "train.batch_size=8", "train.epochs=100",
    "train.eval_steps=null", "train.checkpoint_steps=null", "train.export=false", "cluster.threads_per_node=1",
    f"seed={','.join(map(str, range(1, RUNS + 1)))}",
)  # fmt: skip
Make = Callable[[Path, Sequence[str]], Command]


def timed(make: Make, at_a_time: int) -> tuple[float, list[str]]:
    """Seconds that the sweep takes, and the digest of each run's weights."""
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        with make(Path(folder) / "sweep", (*WORDS, f"hydra.launcher.max_concurrent={at_a_time}")) as command:
            code = command.finish(600)
        seconds = time.perf_counter() - began
        if code:
            raise SystemExit("\n".join(command.lines) + command.stderr)
        found = [RunReader(Path(folder) / "sweep" / str(number)).summary() for number in range(RUNS)]
        return seconds, [str(summary["digest"]) for summary in found if summary]


def measure(make: Make, pairs: int, where: str) -> None:
    """Print a line for each pair, and the medians."""
    rows = []
    for number in range(pairs):
        (alone, before), (beside, after) = timed(make, 1), timed(make, 2)
        if before != after or len(set(before)) != RUNS:
            raise SystemExit(f"the weights are not the same: {before} and {after}")
        rows.append((alone, beside, beside / alone))
        sys.stdout.write(f"{number + 1:4}  {alone:7.1f} s  {beside:7.1f} s  {beside / alone:6.2f}\n")
        sys.stdout.flush()
    alone, beside, ratio = (statistics.median(column) for column in zip(*rows, strict=True))
    sys.stdout.write(f"all   {alone:7.1f} s  {beside:7.1f} s  {ratio:6.2f}  (medians; {where}, weights equal)\n")


def main() -> None:
    pairs = int(sys.argv[1]) if len(sys.argv) > 1 else PAIRS
    where = sys.argv[2] if len(sys.argv) > 2 else "local"
    os.environ["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")])
    sys.stdout.write(f"{RUNS} runs of {STEPS} steps that sleep {NAP_S:g} s each\npair  one at a time  two   ratio\n")
    if where == "local":
        measure(Command, pairs, where)
        return
    with tempfile.TemporaryDirectory() as folder, Hosts(Path(folder), names(6 if where == "disjoint" else 3)) as hosts:
        cluster = Cluster.of(hosts)
        words = ["cluster.num_workers=2", f"hydra.launcher.share_nodes={str(where == 'shared').lower()}"]
        measure(lambda folder, more: cluster.command(folder, *words, *more), pairs, where)


if __name__ == "__main__":
    main()

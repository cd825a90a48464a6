"""``python -m tests.integration.forecast``: the doctor's forecasts against runs, on links of several shapes.

Three hosts in network namespaces. For each shape of their links and each model the doctor measures and writes its
forecast; only then the algorithms run, and their steps are timed. Needs root on Linux. Arguments: models, all if none.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from smolcluster.tracking.rundir import RunReader
from tests.integration.hosts import Hosts, why_not
from tests.integration.on_hosts import Cluster, names

SHAPES: Mapping[str, Sequence[float | None]] = {
    "100 Mbit/s": (100, 100, 100),
    "1 Gbit/s": (1000, 1000, 1000),
    "one worker at 100 Mbit/s, 1 Gbit/s": (1000, 1000, 100),
}
"""What the links of server, first and second worker carry."""
MODELS: Mapping[str, Sequence[str]] = {
    "simplenn": ("model=simplenn", "model.hidden=4096", "train.batch_size=256"),
    "gpt": (
        "model=gpt", "model.model_dim=128", "model.num_layers=4", "model.num_heads=4", "model.ff_dim=512",
        "model.max_seq_len=64", "data.tokenizer=bytes", "data.max_bytes=200000", "train.batch_size=16",
    ),
}  # fmt: skip
QUIET = (
    "train.eval_steps=null", "train.eval_samples=16", "train.checkpoint_steps=null", "train.export=false",
    "train.epochs=100000",
)  # fmt: skip
STEPS = {"syncps": 100, "edp": 400}
WARMUP = 40


class Case(NamedTuple):
    """One algorithm on one shape: seconds per step as forecast, and as measured."""

    shape: str
    model: str
    algo: str
    forecast_s: float
    measured_s: float

    @property
    def error(self) -> float:
        return self.forecast_s / self.measured_s - 1


def doctor(cluster: Cluster, folder: Path, words: Sequence[str]) -> dict[str, Any]:
    """Its ``doctor.json``."""
    cluster.run(folder, "pipeline=doctor", *words)
    found: dict[str, Any] = json.loads((folder / "0" / "doctor.json").read_text())
    return found


def bandwidths(found: Mapping[str, Any]) -> dict[str, float]:
    """Mbit/s of each link."""
    links = found["figures"]["links"]
    return {pair: link["channel"]["bytes_per_s"] * 8e-6 for pair, link in links.items()}


def step_time(folder: Path) -> float:
    """Mean seconds per optimizer step of a run, after the first ones."""
    return statistics.fmean(line["step_s"] for line in RunReader(folder).metrics()[WARMUP:])


def compare(cluster: Cluster, folder: Path, shape: str, asked: Sequence[str]) -> Iterator[Case]:
    for host, speed in zip(cluster.hosts, SHAPES[shape], strict=True):
        host.shape(speed)
    for model, words in MODELS.items():
        if asked and model not in asked:
            continue
        place = folder / f"{shape} {model}".replace("/", "-").replace(" ", "-").replace(",", "")
        found = doctor(cluster, place / "doctor", words)
        show(f"{shape}, {model}: " + ", ".join(f"{pair} {speed:.0f}" for pair, speed in bandwidths(found).items()))
        for algo, steps in STEPS.items():
            row = next(row for row in found["forecast"] if row["algo"] == algo and not row["settings"])
            run = cluster.run(place / algo, f"algo={algo}", *words, *QUIET, f"train.max_steps={steps}")
            yield Case(shape, model, algo, row["step_time_s"], step_time(run.run))


def show(words: str) -> None:
    sys.stdout.write(words + "\n")
    sys.stdout.flush()


def main() -> int:
    if reason := why_not():
        show(reason)
        return 1
    cases = []
    with tempfile.TemporaryDirectory() as folder, Hosts(Path(folder) / "hosts", names(3)) as hosts:
        cluster = Cluster.of(hosts)
        for shape in SHAPES:
            for case in compare(cluster, Path(folder), shape, sys.argv[1:]):
                cases.append(case)
                show(
                    f"{case.shape}, {case.model}, {case.algo}: forecast {case.forecast_s * 1e3:.1f} ms, "
                    f"measured {case.measured_s * 1e3:.1f} ms, {case.error:+.0%}"
                )
    show(f"largest error: {max(abs(case.error) for case in cases):.0%} of {len(cases)} cases")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

"""``pipeline=bench``: what each algorithm costs on this cluster, side by side in one run.

Every repeat runs every case once, in turn, so that a machine whose speed drifts treats all alike; medians over the
repeats are compared, never single times. All cases train the same model on the same global batches; for EDP a step is
the time that so many samples take. The yardstick is ``algo=ddp``, torch's DistributedDataParallel on Gloo.
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from smolcluster.errors import Problem, RunFailed
from smolcluster.spec.build import option
from smolcluster.spec.schema import Range

if TYPE_CHECKING:
    from smolcluster.pipeline.job import Place, Result
    from smolcluster.spec.run import RunSpec

YARDSTICK = "ddp"


@dataclass(frozen=True, kw_only=True)
class Bench:
    """Times the algorithms, and the transfer of one large tensor against bare sockets."""

    cases: tuple[str, ...] = ("single", "syncps", "edp", "ddp")
    """Algorithms to compare: options of conf/algo/."""
    repeats: Annotated[int, Range(ge=1, le=100, unit="repeats")] = 5
    """How often each case is run; medians are shown."""
    steps: Annotated[int, Range(ge=2, le=100000, unit="steps")] = 12
    """Timed steps of a run."""
    warmup_steps: Annotated[int, Range(ge=1, le=10000, unit="steps")] = 3
    """Steps before the clock starts."""
    transfer_mb: Annotated[int | None, Range(ge=1, le=4000, unit="MB")] = 40
    """Size of the tensor that is pushed and pulled against bare sockets; null: leave that out."""

    def problems(self, spec: RunSpec) -> Iterable[Problem]:
        if not self.cases:
            yield Problem(key="pipeline.cases", value="[]", rule="must name at least one algorithm")

    def run(self, spec: RunSpec, place: Place) -> Result:
        from smolcluster.cluster.controller import Outcome
        from smolcluster.pipeline.job import Result
        from smolcluster.pipeline.transfer import transfers
        from smolcluster.tracking.tables import show

        place.folder.mkdir(parents=True, exist_ok=True)
        measured: dict[str, list[Timing]] = {case: [] for case in self.cases}
        for repeat in range(self.repeats):
            for case in self.cases:
                timing = self.measure(spec, case, replace(place, folder=place.folder / "runs" / f"{case}-{repeat}"))
                measured[case].append(timing)
                _say(f"{repeat + 1}/{self.repeats} {case}: {timing.step_time_s * 1e3:.1f} ms a step")
        rows = [row(spec, case, timings, measured.get(YARDSTICK)) for case, timings in measured.items()]
        estimate_wait(rows, measured.get("syncps", []))
        if self.transfer_mb is not None:
            rows += transfers(self.transfer_mb, self.repeats, _say)
        (place.folder / "bench.json").write_text(json.dumps(rows, indent=1))
        show(sys.stdout, table(rows, title(spec, self)))
        return Result(outcome=Outcome(status="done", reason=""), folder=place.folder, overrides=place.overrides)

    def measure(self, spec: RunSpec, case: str, place: Place) -> Timing:
        """Run one case once, without evaluation, checkpoints and export on the way."""
        from smolcluster.pipeline.job import conduct

        algo = spec.algo if spec.choices.get("algo") == case else option("algo", case)
        leases = case == "edp"
        per_step = spec.cluster.size if leases else 1
        steps = (self.steps + self.warmup_steps) * per_step
        train = replace(
            spec.train, max_steps=steps, epochs=10**6, eval_steps=None, eval_samples=1, checkpoint_steps=None,
            log_steps=1, export=False,
        )  # fmt: skip
        varied = replace(spec, algo=algo, train=train, choices={**spec.choices, "algo": case, "pipeline": "train"})
        result = conduct(varied, place, console=Silent())
        if result.outcome.status == "interrupted":
            raise KeyboardInterrupt
        if result.outcome.status != "done":
            raise RunFailed(f"bench: {case}: {result.outcome.reason}")
        warmup, batch = self.warmup_steps * per_step, spec.batch_size * spec.cluster.size
        return timing_of(place.folder, warmup, batch, result.summary)


@dataclass(frozen=True, kw_only=True)
class Timing:
    """One run of one case. A step is the time that one global batch takes."""

    step_time_s: float
    samples_per_s: float
    wire_bytes_per_step: float | None
    wait_share: float | None
    compute_s: float | None
    peak_rss_bytes: int | None
    threads: int


class Silent:
    """A console that shows nothing: the bench says what matters."""

    def start(self, run: object, *, began: float | None = None) -> None:
        return

    def on_event(self, event: Mapping[str, Any]) -> None:
        return

    def note(self, words: str) -> None:
        return

    def stop(self, summary: Mapping[str, Any] | None = None) -> None:
        return


def timing_of(folder: Path, warmup: int, global_batch: int, summary: Mapping[str, Any]) -> Timing:
    """What a run's records say; the first ``warmup`` steps are left out."""
    from smolcluster.tracking.rundir import RunReader

    lines = RunReader(folder).metrics()
    timed, before = lines[warmup:], lines[warmup - 1]
    samples = [line["samples"] - earlier["samples"] for earlier, line in zip(lines[warmup - 1 :], timed, strict=False)]
    times = [line["step_s"] * global_batch / count for line, count in zip(timed, samples, strict=True)]
    sizes = [_total(line) for line in (before, timed[-1])]
    spec = RunReader(folder).spec() or {}
    seconds = sum(line["step_s"] for line in timed)
    computing = [line["compute_s"] for line in timed if line.get("compute_s")]
    return Timing(
        step_time_s=statistics.median(times) if len(set(samples)) == 1 else seconds * global_batch / sum(samples),
        samples_per_s=sum(samples) / seconds,
        wire_bytes_per_step=(sizes[1] - sizes[0]) * global_batch / sum(samples) if sizes[1] else None,
        wait_share=timed[-1].get("wait_share"),
        compute_s=statistics.median(computing) if computing else None,
        peak_rss_bytes=max((node.get("peak_rss_bytes") or 0 for node in summary.get("nodes", [])), default=0) or None,
        threads=int(spec.get("threads_per_node", 0)),
    )


def _total(line: Mapping[str, Any]) -> int:
    """All bytes of a star pass through its centre, which is where they are counted; torch's, at the interface.

    0 where they are not counted.
    """
    if "loopback_bytes" in line:
        return line["loopback_bytes"] or 0
    return (line["wire"]["sent"] or 0) + (line["wire"]["received"] or 0)


def row(spec: RunSpec, case: str, timings: Sequence[Timing], yardstick: Sequence[Timing] | None) -> dict[str, Any]:
    """A line of bench.json: medians over the repeats, and the median of the ratios repeat by repeat."""
    ratios = [mine.step_time_s / theirs.step_time_s for mine, theirs in zip(timings, yardstick or (), strict=False)]
    wires = [timing.wire_bytes_per_step for timing in timings if timing.wire_bytes_per_step is not None]
    waits = [timing.wait_share for timing in timings if timing.wait_share is not None]
    return {
        "case": f"{spec.choices.get('model')} on {spec.choices.get('data')}",
        "algo": case,
        "comms": {YARDSTICK: "gloo", "single": "none"}.get(case, spec.choices.get("comms")),
        "encryption": None if case in (YARDSTICK, "single") else getattr(spec.comms, "encryption", None),
        "compressor": "none",
        "workers": 1 if case == "single" else spec.cluster.size,
        "threads_per_process": timings[0].threads,
        "link": "loopback",
        "step_time_s": statistics.median(timing.step_time_s for timing in timings),
        "step_times_s": [timing.step_time_s for timing in timings],
        "samples_per_s": statistics.median(timing.samples_per_s for timing in timings),
        "wire_bytes_per_step": statistics.median(wires) if wires else None,
        "wait_share": statistics.median(waits) if waits else None,
        "peak_rss_bytes": max((timing.peak_rss_bytes or 0 for timing in timings), default=0) or None,
        "ratio_to_ddp": statistics.median(ratios) if ratios else None,
    }


def estimate_wait(rows: Sequence[dict[str, Any]], computing: Sequence[Timing]) -> None:
    """DDP does not say how long it waits: what its step takes beyond a worker's computing, measured in SyncPS."""
    times = [timing.compute_s for timing in computing if timing.compute_s is not None]
    for line in rows:
        if line["algo"] == YARDSTICK and times:
            line["wait_share"] = max(0.0, 1 - statistics.median(times) / line["step_time_s"])
            line["wait_share_estimated"] = True


def title(spec: RunSpec, bench: Bench) -> str:
    workers, what = spec.cluster.size, f"{spec.choices.get('model')} on {spec.choices.get('data')}"
    batch = f"{workers} x {spec.batch_size} samples a step"
    return f"{what}, {batch}; medians of {bench.repeats} interleaved repeats of {bench.steps} steps"


def table(rows: Sequence[Mapping[str, Any]], heading: str) -> Any:
    """The rows as a Rich table."""
    from rich.table import Table

    from smolcluster.tracking.wording import byte_count

    caption = (
        "time: the median of the ratios within each repeat, against the line that has 1.00x; ~: estimated\n"
        "lines with MB: so much pushed and pulled once, through Peers and through a bare pair of sockets"
    )
    shown = Table(title=heading, title_justify="left", caption=caption, caption_justify="left")
    for name in ("case", "comms", "workers", "threads", "step", "samples/s", "wire/step", "waiting", "time"):
        shown.add_column(name, justify="left" if name in ("case", "comms") else "right")
    for line in rows:
        lock = {"on": " TLS", "off": " plain"}.get(line.get("encryption") or "", "")
        wait, rate = line.get("wait_share"), line.get("samples_per_s")
        against = YARDSTICK if "ratio_to_ddp" in line else "bare"
        ratio = line.get("ratio_to_ddp", line.get("ratio_to_bare"))
        shown.add_row(
            line["algo"] if "ratio_to_ddp" in line else f"{line['algo']}, {line['case']}",
            f"{line['comms']}{lock}",
            str(line["workers"]),
            str(line.get("threads_per_process") or ""),
            f"{line['step_time_s'] * 1e3:.1f} ms",
            "" if rate is None else f"{rate:,.0f}",
            byte_count(round(line["wire_bytes_per_step"])) if line.get("wire_bytes_per_step") else "",
            "" if wait is None else f"{'~' if line.get('wait_share_estimated') else ''}{wait * 100:.0f} %",
            "" if ratio is None else f"{ratio:.2f}x {against}",
        )
    return shown


def _say(words: str) -> None:
    sys.stdout.write(words + "\n")
    sys.stdout.flush()

"""``pipeline=doctor``: is this cluster fit to train, and what would it cost?

Looks at every machine, then lets the nodes measure themselves and their links (node/survey.py), then runs every
algorithm in virtual time with what was found (sim/): seconds per step and samples per second, against the best single
node. Exit code 0: nothing is in the way; 1: something is, and the table says what to do.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import yaml

from smolcluster.errors import Problem
from smolcluster.spec.build import option, options
from smolcluster.spec.schema import Range, closest

if TYPE_CHECKING:
    from smolcluster.cluster.session import Check
    from smolcluster.pipeline.diagnosis import Findings
    from smolcluster.pipeline.job import Place, Result
    from smolcluster.spec.run import RunSpec


@dataclass(frozen=True, kw_only=True)
class Doctor:
    """Examines machines and links, and forecasts what training would take."""

    seconds: Annotated[float, Range(ge=0.2, le=60, unit="seconds")] = 1.5
    """Each link is filled for so long, in each direction."""
    cases: tuple[str, ...] = ("single", "syncps", "edp", "ddp")
    """Algorithms to forecast: options of conf/algo/."""

    def problems(self, spec: RunSpec) -> Iterable[Problem]:
        known = sorted(options("algo"))
        for index, case in enumerate(self.cases):
            if case not in known:
                rule = f"must be one of {', '.join(known)}"
                yield Problem(key=f"pipeline.cases.{index}", value=case, rule=rule, nearest=closest(case, known))
        if not spec.comms.separate_processes:
            rule = "has no links to measure: pipeline=doctor needs nodes in processes of their own"
            yield Problem(key="comms", value=spec.choices.get("comms"), rule=rule, nearest="comms=tcp")

    def run(self, spec: RunSpec, place: Place) -> Result:
        from smolcluster.cluster.controller import Outcome
        from smolcluster.pipeline import doctor_tables as tables
        from smolcluster.pipeline.diagnosis import advice, calibrated, forecasts
        from smolcluster.pipeline.job import Result

        place.folder.mkdir(parents=True, exist_ok=True)
        measured = surveyed(spec)
        checks = examine(measured)
        tables.show_machines(sys.stdout, checks)
        fit = [name for name, found in checks.items() if all(check.verdict != "bad" for check in found)]
        sick = [name for name in checks if name not in fit]
        findings, failure = self.survey(measured, fit, place)
        reasons = [*(f"{name} cannot take part" for name in sick), *([failure] if failure else [])]
        record: dict[str, Any] = {
            "cluster": spec.choices.get("cluster"),
            "machines": {name: [check._asdict() for check in found] for name, found in checks.items()},
            "figures": None,
            "forecast": [],
            "warnings": [],
        }
        if findings is not None:
            tables.show_survey(sys.stdout, spec, findings)
            figures = calibrated(spec, findings)
            rows = forecasts(spec, self.cases, figures)
            warnings = advice(spec, rows, figures)
            tables.show_forecast(sys.stdout, spec, rows, warnings)
            reasons += [f"{link.source} -> {link.target}: {link.reason}" for link in findings.links if link.reason]
            reasons += findings.failures
            record |= {"figures": figures.plain(), "forecast": [row.plain for row in rows], "warnings": warnings}
            write_cluster(place.folder, spec, findings)
        (place.folder / "doctor.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        outcome = Outcome(status="failed" if reasons else "done", reason="; ".join(reasons))
        return Result(outcome=outcome, folder=place.folder, overrides=place.overrides, number=place.number)

    def survey(self, spec: RunSpec, fit: Sequence[str], place: Place) -> tuple[Findings | None, str]:
        """Let the machines that are fit measure themselves; what was found, and what was in the way."""
        from smolcluster.pipeline.diagnosis import Findings
        from smolcluster.pipeline.doctor_tables import Progress
        from smolcluster.pipeline.job import conduct
        from smolcluster.tracking.rundir import RunReader

        cluster = spec.cluster
        if cluster.nodes is not None:
            workers = tuple(name for name in cluster.worker_names if name in fit)
            if cluster.server_name not in fit or not workers:
                return None, "links are not measured: that takes the server and at least one worker"
            spec = replace(spec, cluster=replace(cluster, workers=workers, num_workers=None))
        result = conduct(
            spec, replace(place, folder=place.folder / "survey"), purpose="survey", console=Progress(sys.stdout)
        )
        if result.outcome.status == "interrupted":
            raise KeyboardInterrupt
        findings = Findings.of(RunReader(result.folder).events())
        failure = "" if result.outcome.status == "done" else f"the survey has failed: {result.outcome.reason}"
        return findings if findings.samples else None, failure


def surveyed(spec: RunSpec) -> RunSpec:
    """``spec`` with the cast of a survey: a server and its workers, and nobody is started twice."""
    train = replace(spec.train, checkpoint_steps=None, eval_steps=None, export=False)
    cluster = replace(spec.cluster, max_restarts=0)
    quiet = {"algo": "syncps", "tracking": "files"}  # a survey is nothing that a tracker should hear of
    parts = {group: option(group, name) for group, name in quiet.items()}
    return replace(spec, **parts, train=train, cluster=cluster, choices={**spec.choices, **quiet})


def examine(spec: RunSpec) -> Mapping[str, Sequence[Check]]:
    """Look at every machine, without starting anything there."""
    from smolcluster.cluster.controller import roster
    from smolcluster.cluster.local import sessions_for

    async def look() -> Mapping[str, Sequence[Check]]:
        sessions = sessions_for(spec, 1)
        try:
            return await sessions.examine([member.name for member in roster(spec)])
        finally:
            await sessions.close()

    return asyncio.run(look())


def write_cluster(folder: Path, spec: RunSpec, findings: Findings) -> None:
    """The cluster's file with what was measured, where there is one."""
    from smolcluster.pipeline.diagnosis import measured_cluster

    if spec.cluster.nodes is None:
        return
    file = folder / "cluster" / f"{spec.choices.get('cluster')}.measured.yaml"
    file.parent.mkdir(exist_ok=True)
    heading = f"# Measured by pipeline=doctor. To use it: --config-dir {folder} cluster={file.stem}\n"
    text = yaml.safe_dump(measured_cluster(spec, findings), sort_keys=False, allow_unicode=True)
    file.write_text(heading + text, encoding="utf-8")

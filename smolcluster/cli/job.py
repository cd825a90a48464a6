"""One job, as Hydra's launcher calls it: from its configuration to its metric.

A module of its own, so that a process of its own can run it.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from smolcluster.cli.streams import tell
from smolcluster.errors import ConfigError, Problem, RunFailed, SmolclusterError
from smolcluster.pipeline import jobs

if TYPE_CHECKING:
    from omegaconf import DictConfig


COMMAND = "python -m smolcluster"


class JobFailed(RunFailed):
    """A run has failed, and that has been told; for those who count."""


def smolcluster(config: DictConfig) -> float | None:
    """Run the job; what a sweeper minimises. Named as Hydra shall call the job.

    JobFailed when the run fails, ConfigError when it must not begin, KeyboardInterrupt when it is interrupted.
    """
    try:
        return _run(config)
    except SmolclusterError:
        raise
    except OSError as error:
        raise RunFailed(f"the controller: {error}") from error


def left_going(folder: Path, reason: str) -> str:
    """What is to be known of a run that goes on without the command."""
    shown = brief(folder)
    return f"{reason}\nto come back:  {COMMAND} attach={shown}\nto end it:     {COMMAND} stop={shown}"


def brief(folder: Path) -> str:
    """A directory as one types it from here."""
    shown = os.path.relpath(folder)
    return str(folder) if shown.startswith("..") else shown


def _run(config: DictConfig) -> float | None:
    from hydra.core.hydra_config import HydraConfig

    from smolcluster.pipeline.job import Place
    from smolcluster.spec.compose import spec_of

    hydra = HydraConfig.get()
    overrides = list(hydra.overrides.task)
    spec = spec_of(config, {str(k): str(v) for k, v in hydra.runtime.choices.items()}, overrides)
    folder = Path(hydra.runtime.output_dir).absolute()
    if any((folder / name).exists() for name in ("run_spec.json", jobs.DETACHED)):
        rule = "holds a run already: two runs must not share a directory"
        raise ConfigError([Problem(key="hydra.sweep.dir", value=folder, rule=rule)])
    place = Place(folder=folder, overrides=overrides, number=int(hydra.job.num))
    gathering = jobs.current.get()
    if gathering is not None and gathering.total != 1:
        count = "" if gathering.total is None else f", {place.number + 1} of {gathering.total}"
        tell(f"\nrun {place.number}{count}: {' '.join(place.overrides)}", sys.stdout)
    result = spec.pipeline.run(spec, place)
    jobs.note(
        jobs.Finished(
            number=place.number,
            folder=folder,
            overrides=place.overrides,
            summary=result.summary or {"status": result.outcome.status, "reason": result.outcome.reason},
        )
    )
    if result.summary.get("status") == "detached":
        tell(left_going(folder, result.summary["reason"]), sys.stdout)
    if result.outcome.status == "interrupted":
        raise KeyboardInterrupt
    if result.outcome.status == "failed":
        if not (sys.stdout.isatty() and sys.stderr.isatty()):
            tell(f"smolcluster: {result.outcome.reason}", sys.stderr)
        raise JobFailed(result.outcome.reason)
    metric: float | None = result.metric
    return metric

"""``pipeline=evaluate``: the validation metrics of a run's checkpoint, on one node."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from smolcluster.errors import Problem

if TYPE_CHECKING:
    from smolcluster.pipeline.job import Place, Result
    from smolcluster.spec.run import RunSpec


@dataclass(frozen=True, kw_only=True)
class Evaluate:
    """Loads the checkpoint that ``resume=`` names and evaluates it on the validation set."""

    def problems(self, spec: RunSpec) -> Iterable[Problem]:
        if spec.resume is None:
            rule = "must name the run, or the checkpoint, that pipeline=evaluate shall evaluate"
            yield Problem(key="resume", value=None, rule=rule, nearest="resume=outputs/<date>/<time>/<n>")

    def run(self, spec: RunSpec, place: Place) -> Result:
        from smolcluster.pipeline.job import conduct

        return conduct(spec, place, purpose="evaluate")

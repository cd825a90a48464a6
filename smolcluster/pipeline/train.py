"""``pipeline=train``: prepare the data, train, evaluate, export."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from smolcluster.errors import Problem

if TYPE_CHECKING:
    from smolcluster.pipeline.job import Place, Result
    from smolcluster.spec.run import RunSpec


@dataclass(frozen=True, kw_only=True)
class Train:
    """Each node prepares its data and model, the algorithm trains, the owner of the weights evaluates and exports."""

    def problems(self, spec: RunSpec) -> Iterable[Problem]:
        return ()

    def run(self, spec: RunSpec, place: Place) -> Result:
        from smolcluster.pipeline.job import conduct

        return conduct(spec, place)

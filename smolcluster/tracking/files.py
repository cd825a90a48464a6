"""No tracker beyond the run's directory, which is written in any case."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from smolcluster.errors import Problem
from smolcluster.tracking.tracker import NoTracker, RunInfo, Tracker

if TYPE_CHECKING:
    from smolcluster.spec.run import RunSpec


@dataclass(frozen=True, kw_only=True)
class Files:
    """The run's directory alone."""

    project: str | None = None
    """What ``summary.json`` files the run under; null: ``smolcluster``, or ``smolcluster-gpt-<data>`` for texts."""

    def problems(self, spec: RunSpec) -> Iterable[Problem]:
        return ()

    def tracker(self, run: RunInfo) -> Tracker:
        return NoTracker()

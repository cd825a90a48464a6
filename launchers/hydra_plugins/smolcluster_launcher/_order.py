"""What the launcher says to the process that shall conduct a detached run: plain data, one line of JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hydra_plugins.smolcluster_launcher._preflight import Report
from hydra_plugins.smolcluster_launcher._session import Remote

from smolcluster.cluster.controller import Job
from smolcluster.pipeline.job import Place
from smolcluster.spec.needs import Needs

LOG = "conductor.log"
"""In the run's directory: what that process has to say of itself."""
SILENT_S = 60.0
"""Who says something every few seconds, and has said nothing for so long, is gone."""


@dataclass(frozen=True, kw_only=True)
class Ready:
    """A machine that the launcher has looked at and given what it needs."""

    report: Mapping[str, Any]
    python: str
    environment: Mapping[str, str]
    paths: Mapping[str, str]
    uses: Sequence[str]
    told: str

    @classmethod
    def of(cls, remote: Remote) -> Ready:
        report = {**asdict(remote.report), "there": ()}
        return cls(
            report=report,
            python=remote.python,
            environment=remote.environment,
            paths=remote.paths,
            uses=remote.uses,
            told=remote.told,
        )

    def joined(self, machine: Any) -> Remote:
        """The same machine over the connection that it has made itself."""
        report: dict[str, Any] = {**self.report, "there": frozenset(), "python": tuple(self.report["python"])}
        return Remote(
            machine=machine,
            report=Report(**report),
            python=self.python,
            environment=dict(self.environment),
            paths=dict(self.paths),
            uses=list(self.uses),
            told=self.told,
        )


@dataclass(frozen=True, kw_only=True)
class Order:
    """What is to be conducted, as the launcher says it. All of it is plain data."""

    spec: Mapping[str, Any]
    run: str
    folder: str
    cache: str
    threads: int
    purpose: str
    resume: str | None
    """Checkpoint to start from, as the person knows it; where it is on this machine, ``paths`` says."""
    overrides: Sequence[str]
    number: int
    home: str | None
    """What the person knows ``folder`` as, where that is on another machine."""
    origin: Mapping[str, Any]
    owner: str
    """The node on this machine, which holds the weights."""
    paths: Mapping[str, str]
    """Key of the spec -> where its file lies on this machine."""
    modules: Sequence[str]
    """Modules of the person's own, on this machine."""
    uses: Sequence[str] | None
    """Entries of this machine's working folder that must stay while the run lasts; None: it has no such folder."""
    nodes: Mapping[str, Mapping[str, Any]]
    """Machines that are made ready, by node; one that is not here joins by hand."""
    told: Sequence[Sequence[str]]
    """What there was to tell of the machines: of whom, and the words."""
    options: Mapping[str, Any]
    environment: Mapping[str, str]
    """Variables with what trackers need to log in."""

    def place(self) -> Place:
        home = None if self.home is None else Path(self.home)
        return Place(folder=Path(self.folder), overrides=self.overrides, number=self.number, home=home)

    def job(self) -> Job:
        return Job(
            run=self.run,
            folder=Path(self.folder),
            cache=Path(self.cache),
            threads=self.threads,
            resume=self.resume,
            purpose=self.purpose,
            needs=Needs(
                paths={key: Path(path) for key, path in self.paths.items()},
                modules=tuple(Path(path) for path in self.modules),
            ),
        )

"""What a tracker is, and what it may know of the run that it follows.

A tracker takes the events of a run and shows them somewhere else: in Weights & Biases, in TensorBoard. It must
be quick (an event a millisecond is normal) and may break: whoever feeds it drops it then, and the run goes on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from smolcluster.errors import SmolclusterError

if TYPE_CHECKING:
    from smolcluster.spec.run import RunSpec

Event: TypeAlias = Mapping[str, Any]
"""One thing that a node said, stamped by the controller: ``event``, ``node``, ``role``, ``rank``, ``t`` and more."""


class TrackerFailed(SmolclusterError):
    """A tracker cannot go on; the text says why. The run goes on without it."""


@dataclass(frozen=True, kw_only=True)
class NodeInfo:
    """A node as people know it. ``host`` is the machine's short name (``mini2``), ``device`` what it computes on."""

    name: str
    role: str
    rank: int
    host: str
    device: str = ""

    @property
    def label(self) -> str:
        """What the node's log file and its ``host`` label in logs are called.

        >>> NodeInfo(name="w0", role="worker", rank=0, host="mini2").label
        'worker-rank0-mini2'
        """
        return f"{self.role}-rank{self.rank}-{self.host}"


@dataclass(frozen=True, kw_only=True)
class RunInfo:
    """What trackers, logs and the console know of a run before its first event.

    ``path`` is the run's directory and ``algo`` the algorithm's name as its paper writes it (``SyncPS``);
    ``batch_size`` is per worker and step, and ``nodes`` starts with the one that owns the weights.
    ``purpose`` is ``train`` or ``evaluate``.
    """

    path: Path
    run_id: str
    project: str
    algo: str
    model: str
    data: str
    lr: float
    batch_size: int
    nodes: tuple[NodeInfo, ...]
    purpose: str = "train"

    @classmethod
    def of(
        cls, spec: RunSpec, *, path: Path, run_id: str, nodes: Sequence[NodeInfo], purpose: str = "train"
    ) -> RunInfo:
        """What ``spec`` says of the run."""
        choices = {group: spec.choices.get(group, type(getattr(spec, group)).__name__) for group in ("model", "data")}
        return cls(
            path=path,
            run_id=run_id,
            project=spec.tracking.project or default_project(choices["data"], spec.seq_length is not None),
            algo=type(spec.algo).__name__,
            model=choices["model"],
            data=choices["data"],
            lr=spec.optim.lr,
            batch_size=spec.batch_size,
            nodes=tuple(nodes),
            purpose=purpose,
        )

    def node(self, name: str) -> NodeInfo | None:
        return next((node for node in self.nodes if node.name == name), None)


def default_project(data: str, language_model: bool) -> str:
    """The project that a run belongs to where the user names none.

    >>> default_project("digits", language_model=False), default_project("wikitext2", language_model=True)
    ('smolcluster', 'smolcluster-gpt-wikitext2')
    """
    return f"smolcluster-gpt-{data}" if language_model else "smolcluster"


def run_name(run: RunInfo, node: NodeInfo) -> str:
    """What a tracker calls the run of one node: ``EDP-worker-macbook_rank1_lr0.001_bs32``."""
    return f"{run.algo}-{node.role}-{node.host}_rank{node.rank}_lr{run.lr:g}_bs{run.batch_size}"


class Tracker(Protocol):
    """Follows one run. Called from one thread, in this order: start once, any number of events, finish once.

    ``start`` and ``finish`` return what people should know of this tracker, a line each.
    """

    def start(self, spec: Mapping[str, Any]) -> Sequence[str]:
        """``spec`` is what ``run_spec.json`` holds."""

    def on_event(self, event: Event) -> None: ...

    def finish(self, summary: Mapping[str, Any]) -> Sequence[str]:
        """``summary`` is what ``summary.json`` holds."""


class NoTracker:
    """Follows nothing: the run's directory is enough."""

    def start(self, spec: Mapping[str, Any]) -> Sequence[str]:
        return ()

    def on_event(self, event: Event) -> None:
        return None

    def finish(self, summary: Mapping[str, Any]) -> Sequence[str]:
        return ()


window: ContextVar[Callable[[RunInfo], Tracker] | None] = ContextVar("window", default=None)
"""Set by a launcher that shows every run in a way of its own, besides the run's tracker."""

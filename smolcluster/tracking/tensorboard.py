"""TensorBoard: event files in ``<run>/tensorboard/<run name>/``, written with TensorBoard's own record format.

``torch.utils.tensorboard`` would load torch into the process that starts a run, and TensorBoard's
``EventFileWriter`` loads TensorFlow where it is installed; its records and messages alone need neither.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from smolcluster.errors import Problem
from smolcluster.tracking.fields import finite
from smolcluster.tracking.logs import file_name
from smolcluster.tracking.series import Thinning, scalars, step_of
from smolcluster.tracking.tracker import Event, RunInfo, Tracker, run_name

if TYPE_CHECKING:
    from pathlib import Path

    from smolcluster.spec.run import RunSpec

INSTALL = "pip install tensorboard"


@dataclass(frozen=True, kw_only=True)
class TensorBoard:
    """TensorBoard besides the run's directory."""

    project: str | None = None
    """What ``summary.json`` files the run under; null: ``smolcluster``, or ``smolcluster-gpt-<data>`` for texts."""
    per_node: bool = False
    """One run per node, instead of one for the job."""

    def problems(self, spec: RunSpec) -> Iterable[Problem]:
        if find_spec("tensorboard") is None:
            yield Problem(key="tracking", value="tensorboard", rule=f"needs a package: {INSTALL}", nearest="files")

    def tracker(self, run: RunInfo) -> Tracker:
        return _Writers(run, self.per_node)


class _Writers:
    """One event file for the job, or one per node."""

    def __init__(self, run: RunInfo, per_node: bool) -> None:
        self._folder = run.path / "tensorboard"
        nodes = run.nodes if per_node else run.nodes[:1]
        self._names = {node.name: file_name(run_name(run, node)) for node in nodes}
        self._job = file_name(run_name(run, run.nodes[0]))
        self._files: dict[str, _EventFile] = {}
        self._thinning = Thinning()

    def start(self, spec: Mapping[str, Any]) -> Sequence[str]:
        self._files[self._job] = _EventFile(self._folder / self._job)
        return (f"TensorBoard: tensorboard --logdir {self._folder}",)

    def on_event(self, event: Event) -> None:
        values = scalars(event)
        if not values or not self._thinning.passes(event):
            return
        name = self._names.get(str(event.get("node")), self._job)
        file = self._files.get(name)
        if file is None:
            file = self._files[name] = _EventFile(self._folder / name)
        file.add(values, step_of(event), finite(event.get("t")) or 0.0)

    def finish(self, summary: Mapping[str, Any]) -> Sequence[str]:
        for file in self._files.values():
            file.close()
        return ()


class _EventFile:
    """One file of TensorBoard records, unbuffered: what is written can be seen at once."""

    def __init__(self, folder: Path) -> None:
        from tensorboard.summary.writer.record_writer import RecordWriter

        folder.mkdir(parents=True, exist_ok=True)
        now = time.time()
        path = folder / f"events.out.tfevents.{int(now)}.{os.getpid()}"
        self._records = RecordWriter(path.open("ab", buffering=0))
        self._write(wall_time=now, file_version="brain.Event:2")

    def add(self, values: Mapping[str, float], step: int, at: float) -> None:
        from tensorboard.compat.proto.summary_pb2 import Summary

        points = [Summary.Value(tag=tag, simple_value=value) for tag, value in values.items()]
        self._write(wall_time=at, step=step, summary=Summary(value=points))

    def close(self) -> None:
        self._records.close()

    def _write(self, **fields: Any) -> None:
        from tensorboard.compat.proto.event_pb2 import Event as Record

        self._records.write(Record(**fields).SerializeToString())

"""What is shown of a run that was left going, and what is made of it when it is over."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import filelock
import pytest
from hydra_plugins.smolcluster_launcher._attach import REMOVE, Visit, draw
from hydra_plugins.smolcluster_launcher._here import Here
from hydra_plugins.smolcluster_launcher._left import Left
from hydra_plugins.smolcluster_launcher._mirror import FETCHING
from hydra_plugins.smolcluster_launcher._reached import Done, Target
from hydra_plugins.smolcluster_launcher._ssh import Machines

from smolcluster.spec.compose import validate_jobs
from smolcluster.tracking.tracker import Event, RunInfo


class Kept:
    """A console that keeps what it is told."""

    def __init__(self) -> None:
        self.run: RunInfo | None = None
        self.began: float | None = None
        self.events: list[Event] = []
        self.notes: list[str] = []

    def start(self, run: RunInfo, *, began: float | None = None) -> None:
        self.run, self.began = run, began

    def on_event(self, event: Event) -> None:
        self.events.append(event)

    def note(self, words: str) -> None:
        self.notes.append(words)

    def stop(self, summary: Mapping[str, Any] | None = None) -> None:
        return


@pytest.fixture
def visit(tmp_path: Path) -> Visit:
    left = Left(run="0-abc", node="server", folder=str(tmp_path), python="python3", target=None, connect_timeout_s=1.0)
    left.write(tmp_path)
    assert Left.read(tmp_path, "attach") == left
    return Visit(tmp_path, left, Machines(1.0))


def test_a_run_is_shown_as_its_record_has_it(visit: Visit, tmp_path: Path) -> None:
    visit.console = console = Kept()
    (spec,) = validate_jobs(["seed=7"], None)
    record = {"spec": json.loads(json.dumps(spec.plain())), "purpose": "train", "run_id": "0-abc"}
    visit.take({"event": "hello", "pid": 1, "time": time.time() - 100})
    visit.take({"event": "record", "record": record, "began": 1000.0})
    visit.take({"event": "state", "node": "server", "state": "training", "t": 1001.0})
    visit.take({"event": "hello", "node": "server", "pid": 5, "t": 1002.0})
    visit.take({"event": "note", "node": "controller", "message": "a word", "t": 1003.0})
    assert console.run is not None
    assert (console.run.path, console.run.run_id, console.run.algo) == (tmp_path, "0-abc", "SyncPS")
    assert [node.name for node in console.run.nodes] == ["server", "worker0", "worker1"]
    assert console.notes == ["a word"]
    assert console.began == pytest.approx(1100, abs=5), "its clock is 100 s behind"
    assert [event["t"] for event in console.events] == pytest.approx([1101, 1102], abs=5)
    assert [event["event"] for event in console.events] == ["state", "hello"]


class Watched(Here):
    """Looks whether somebody else could fetch while a folder is taken away."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.was_held = folder, False

    async def run(self, argv: Sequence[str], **options: Any) -> Done:
        if argv[2] == REMOVE:
            with pytest.raises(filelock.Timeout):
                filelock.FileLock(self.folder / FETCHING, thread_local=False).acquire(blocking=False)
            self.was_held = True
        return await super().run(argv, **options)


def test_of_two_who_come_back_one_fetches_and_clears_and_the_other_finds_it_whole(tmp_path: Path) -> None:
    there, here = tmp_path / "there", tmp_path / "here"
    (there / "checkpoints" / "step-7").mkdir(parents=True)
    (there / "checkpoints" / "step-7" / "state.json").write_text('{"step": 7, "sha256": {}}')
    (there / "checkpoints" / "latest").symlink_to("step-7")
    summary = {"purpose": "evaluate", "status": "interrupted"}
    (there / "summary.json").write_text(json.dumps(summary))
    here.mkdir()
    target = Target(name="a", host="a")
    left = Left(run="0", node="a", folder=str(there), python=sys.executable, target=target, connect_timeout_s=1.0)

    async def both() -> list[Mapping[str, Any]]:
        visits = [Visit(here, left, Machines(1.0)) for _ in range(2)]
        for visit in visits:
            visit.console, visit.machine = Kept(), machine
        return await asyncio.gather(*(visit.depart("ended") for visit in visits))

    machine = Watched(here)

    assert asyncio.run(both()) == [summary, summary]
    assert (here / "checkpoints" / "latest" / "state.json").is_file()
    assert machine.was_held
    assert not there.exists()


def test_the_picture_is_drawn_where_there_is_something_to_draw_with(tmp_path: Path) -> None:
    lines = "".join(json.dumps({"step": step, "loss": 1 / step, "t": float(step)}) + "\n" for step in range(1, 30))
    (tmp_path / "metrics.jsonl").write_text(lines)
    summary = {"purpose": "train", "algo": "SyncPS", "model": "simplenn", "data": "digits"}
    draw(tmp_path, {**summary, "purpose": "evaluate"})
    assert not (tmp_path / "loss.png").exists()
    draw(tmp_path, summary)
    assert (tmp_path / "loss.png").read_bytes()[:4] == b"\x89PNG"
    (tmp_path / "loss.png").write_bytes(b"theirs")
    draw(tmp_path, summary)
    assert (tmp_path / "loss.png").read_bytes() == b"theirs"

"""What is told of a run that was left going, from the files that it writes."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hydra_plugins.smolcluster_launcher import _follow
from hydra_plugins.smolcluster_launcher._conductor import Window
from hydra_plugins.smolcluster_launcher._follow import HELD, LIVE, MAX_STEPS, STOP, Follower, Tail

from smolcluster.node.control import Events


class Told(Follower):
    """Keeps what it tells."""

    def __init__(self, folder: Path) -> None:
        super().__init__(str(folder))
        self.events: list[dict[str, Any]] = []

    def say(self, event: dict[str, Any]) -> None:
        self.events.append(event)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    (tmp_path / "run_spec.json").write_text('{"run_id": "0-abc"}')
    steps = [{"step": number, "t": 100.0 + number} for number in range(1, 4)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(step) + "\n" for step in steps))
    (tmp_path / "events.jsonl").write_text(
        '{"event":"state","node":"a","t":100.5}\n{"event":"note","node":"c","t":102.5}\n'
    )
    return tmp_path


def test_everything_is_told_in_order_and_once(run: Path) -> None:
    follower = Told(run)
    follower.tell(first=True)
    record, *events = follower.events
    assert record == {"event": "record", "record": {"run_id": "0-abc"}, "began": 100.5}
    assert [event.get("step", event["event"]) for event in events] == ["state", 1, 2, "note", 3]
    follower.events.clear()
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step":4,"t":104.0}\nno json\n{"step":5,')
    follower.tell(first=False)
    assert follower.events == [{"event": "metrics", "step": 4, "t": 104.0}]
    with (run / "metrics.jsonl").open("a") as file:
        file.write('"t":105.0}\n')
    follower.tell(first=False)
    assert follower.events[1:] == [{"event": "metrics", "step": 5, "t": 105.0}], "the line is whole by now"


def test_nothing_is_told_before_there_is_a_record(tmp_path: Path) -> None:
    follower = Told(tmp_path)
    (tmp_path / "events.jsonl").write_text('{"event":"state","node":"a","t":1.0}\n')
    follower.tell(first=True)
    assert follower.events == []


def test_of_many_steps_a_selection_is_told(run: Path) -> None:
    (run / "metrics.jsonl").write_text("".join(f'{{"step":{n},"t":{100 + n}}}\n' for n in range(1, 10_001)))
    follower = Told(run)
    follower.tell(first=True)
    steps = [event["step"] for event in follower.events if event["event"] == "metrics"]
    assert len(steps) == MAX_STEPS
    assert (steps[0], steps[-1]) == (1, 10_000)
    assert steps == sorted(set(steps))


def test_what_no_record_keeps(run: Path, tmp_path: Path) -> None:
    read, write = os.pipe()
    window = Window(run, Events(write))
    window.heard = False
    window.on_event({"event": "node", "node": "a", "samples_per_s": 3.0, "t": 1.0})
    assert (run / LIVE).exists()
    follower = Told(run)
    follower.tell_live()
    assert follower.events == [{"event": "node", "node": "a", "samples_per_s": 3.0, "t": 1.0}]
    follower.tell_live()
    assert len(follower.events) == 1, "nothing new"
    window.on_event({"event": "log", "level": "ERROR", "node": "a", "message": "oh"})
    window.on_event({"event": "log", "level": "INFO", "node": "a", "message": "ah"})
    window.stop()
    follower.tell_live()
    assert [event.get("message") for event in follower.events] == [None, "oh", None]
    window._report.close()
    os.close(read)


def test_a_launcher_that_listens_hears_everything(run: Path) -> None:
    read, write = os.pipe()
    report = Events(write)
    window = Window(run, report)
    window.on_event({"event": "state", "node": "a", "state": "training"})
    window.note("a word")
    window.heard = False
    window.note("another")
    report.close()
    with os.fdopen(read) as lines:
        assert [json.loads(line) for line in lines] == [
            {"event": "state", "node": "a", "state": "training"},
            {"event": "note", "message": "a word"},
        ]


@pytest.mark.parametrize(("summary", "became"), [(True, "ended"), (False, "died")])
def test_what_became_of_it(run: Path, summary: bool, became: str) -> None:
    (run / HELD).write_text("1\n")
    if summary:
        (run / "summary.json").write_text("{}")
    follower = Told(run)
    assert follower.follow() == became
    assert follower.events[-1]["step"] == 3, "all that was written is told before"
    assert Told(run / "nowhere").follow() == "missing"


def test_a_lock_says_that_it_is_conducted(run: Path) -> None:
    follower = Told(run)
    assert not follower.conducted()
    with (run / HELD).open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert follower.conducted()
        assert follower.conducted(), "looking does not change it"
    assert not follower.conducted()


def test_a_file_that_is_not_there_has_no_lines(tmp_path: Path) -> None:
    assert list(Tail(str(tmp_path / "none")).lines()) == []


@contextmanager
def process(run: Path) -> Iterator[subprocess.Popen[str]]:
    """The follower as it is started on a machine, while somebody conducts the run."""
    script = Path(_follow.__file__).read_text(encoding="utf-8")
    with (run / HELD).open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        started = subprocess.Popen(
            [sys.executable, "-I", "-c", script, str(run)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        try:
            with started:
                yield started
        finally:
            started.kill()


def test_it_ends_with_who_watches_and_passes_on_the_wish_to_stop(run: Path) -> None:
    with process(run) as follower:
        assert follower.stdin is not None
        assert follower.stdout is not None
        first = json.loads(follower.stdout.readline())
        assert first["event"] == "hello"
        assert abs(first["time"] - time.time()) < 60
        assert not (run / STOP).exists()
        follower.stdin.write('{"op":"stop"}\n')
        follower.stdin.flush()
        until = time.monotonic() + 20
        while not (run / STOP).exists():
            assert time.monotonic() < until
            time.sleep(0.01)
        follower.stdin.close()
        assert follower.wait(20) == 0


def test_it_ends_though_nobody_reads_what_it_tells(run: Path) -> None:
    """A watcher that has vanished without a word leaves a full pipe behind."""
    with (run / "events.jsonl").open("a") as file:
        file.write((json.dumps({"event": "state", "node": "a", "t": 1.0, "detail": "x" * 1000}) + "\n") * 1000)
    with process(run) as follower:
        assert follower.stdin is not None
        follower.stdin.close()
        assert follower.wait(20) == 0

import io
import json
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from smolcluster.tracking.console import PlainConsole
from smolcluster.tracking.files import Files
from smolcluster.tracking.hub import Tracking
from smolcluster.tracking.live import LiveConsole
from smolcluster.tracking.logs import FileLogs
from smolcluster.tracking.rundir import RunReader
from smolcluster.tracking.tracker import RunInfo

START = 1_000_000.0


class Recorder:
    """A tracker that keeps what it is told, and raises where it is told to."""

    def __init__(self, fails: str = "") -> None:
        self.fails, self.told = fails, cast(list[Any], [])

    def start(self, spec: Any) -> list[str]:
        return self._take("start", spec) or ["recorder: started"]

    def on_event(self, event: Any) -> None:
        self._take("on_event", event)

    def finish(self, summary: Any) -> list[str]:
        return self._take("finish", summary) or ["recorder: finished"]

    def _take(self, where: str, value: Any) -> None:
        self.told.append((where, value))
        if where == self.fails:
            raise RuntimeError("tracker is broken")


def tracking(run: RunInfo, stream: Any, *, plot: bool = False, **trackers: Recorder) -> Tracking:
    console = PlainConsole(stream, clock=lambda: START)
    logs = FileLogs().sink(run)
    return Tracking(run, console=console, trackers=trackers, logs=logs, plot=plot, clock=lambda: START + 12.5)


def test_a_run_from_start_to_finish(run: RunInfo, story: list[dict[str, Any]]) -> None:
    stream, recorder = io.StringIO(), Recorder()
    hub = tracking(run, stream, plot=True, recorder=recorder)
    hub.start({"seed": 42})
    for event in story:
        hub.on_event(event)
    hub.on_stderr(run.nodes[2], "warning: deprecated\n")
    summary = hub.finish("done", "all steps done", digest="ab12")
    reader = RunReader(run.path)
    assert reader.spec() == {"seed": 42}
    assert reader.summary() == json.loads(json.dumps(summary))
    assert (summary["status"], summary["steps"], summary["digest"]) == ("done", 10, "ab12")
    assert len(reader.metrics()) == 10
    assert [line["message"] for line in reader.logs()["worker-rank1-mini3"]] == ["hello", "warning: deprecated"]
    assert (run.path / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert [where for where, _ in recorder.told] == ["start"] + ["on_event"] * (len(story) + 1) + ["finish"]
    notes = [event["message"] for event in reader.events() if event["event"] == "note"]
    assert notes == ["recorder: started", "recorder: finished"]
    shown = stream.getvalue()
    assert "recorder: started" in shown
    assert shown.index("recorder: finished") < shown.index("status")


@pytest.mark.parametrize("where", ["start", "on_event", "finish"])
def test_a_tracker_that_breaks_is_reported_once_and_dropped(
    run: RunInfo, story: list[dict[str, Any]], where: str
) -> None:
    stream, broken, sound = io.StringIO(), Recorder(fails=where), Recorder()
    hub = tracking(run, stream, broken=broken, sound=sound)
    hub.start({})
    for event in story:
        hub.on_event(event)
    summary = hub.finish("done", "all steps done")
    assert summary["steps"] == 10
    assert [call for call, _ in broken.told].count(where) == 1
    assert broken.told[-1][0] == where
    assert len(sound.told) == len(story) + 2
    words = "broken has failed, the run goes on without it: RuntimeError: tracker is broken"
    assert stream.getvalue().count(words) == 1
    notes = [event["message"] for event in RunReader(run.path).events() if event["event"] == "note"]
    assert notes.count(words) == 1


class Closed(io.StringIO):
    def write(self, text: str) -> int:
        raise BrokenPipeError(32, "Broken pipe")


def test_a_console_whose_reader_is_gone_does_not_stop_a_run(run: RunInfo, story: list[dict[str, Any]]) -> None:
    hub = tracking(run, Closed())
    hub.start({})
    for event in story:
        hub.on_event(event)
    assert hub.finish("done", "all steps done")["steps"] == 10
    assert len(RunReader(run.path).metrics()) == 10


def test_a_full_disk_is_reported_once_and_tried_again(
    run: RunInfo, metrics: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = io.StringIO()
    hub = tracking(run, stream)
    hub.start({})

    def full(self: Any, value: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as disk:
        disk.setattr("smolcluster.tracking.jsonl.JsonLines.write", full)
        hub.on_event(metrics(1, 1.0))
        hub.on_event(metrics(2, 1.0))
    hub.on_event(metrics(3, 1.0))
    assert hub.finish("done", "all steps done")["steps"] == 3
    assert [line["step"] for line in RunReader(run.path).metrics()] == [3]
    assert stream.getvalue().count("directory has failed, the run goes on: OSError: [Errno 28]") == 1


def test_finishing_twice_changes_nothing(run: RunInfo) -> None:
    recorder = Recorder()
    hub = tracking(run, io.StringIO(), recorder=recorder)
    hub.start({})
    first = hub.finish("interrupted", "Ctrl-C")
    assert hub.finish("done", "no") is first
    assert [where for where, _ in recorder.told] == ["start", "finish"]
    assert cast(dict[str, Any], RunReader(run.path).summary())["status"] == "interrupted"


def test_an_interrupt_while_a_tracker_ends_leaves_the_summary_and_the_terminal(run: RunInfo) -> None:
    class Impatient(Recorder):
        def finish(self, summary: Any) -> list[str]:
            raise KeyboardInterrupt

    stream = io.StringIO()
    hub = tracking(run, stream, impatient=Impatient())
    hub.start({})
    with pytest.raises(KeyboardInterrupt):
        hub.finish("done", "all steps done")
    assert cast(dict[str, Any], RunReader(run.path).summary())["status"] == "done"
    assert "all steps done" in stream.getvalue()


def test_an_event_without_a_time_gets_one(run: RunInfo) -> None:
    hub = tracking(run, io.StringIO())
    hub.on_event({"event": "journal", "kind": "joined"})
    assert RunReader(run.path).events() == [{"event": "journal", "kind": "joined", "t": START + 12.5}]
    hub.finish("done", "")


def test_more_may_be_known_of_a_run_later(run: RunInfo) -> None:
    hub = tracking(run, io.StringIO())
    hub.start({"nodes": {}})
    hub.rewrite({"nodes": {"mini1": {"device": "mps"}}})
    assert RunReader(run.path).spec() == {"nodes": {"mini1": {"device": "mps"}}}
    hub.finish("done", "")


def test_the_spec_says_what_follows_a_run(run: RunInfo) -> None:
    class Spec:
        tracking, logging, choices = Files(), FileLogs(), {"tracking": "files"}

    hub = Tracking.of(cast(Any, Spec()), run, PlainConsole(io.StringIO()), plot=False)
    hub.start({})
    assert hub.finish("done", "all steps done")["status"] == "done"


values = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | st.lists(st.integers())
tables = st.dictionaries(st.sampled_from(["sent", "received", "uncompressed", "mean", "max", "x"]), values)
KINDS = ["metrics", "node", "state", "link", "evaluation", "checkpoint", "journal", "log", "ready", "silent", None, []]
NAMES = ["mini1", "mini2", "", None, [], "[bold]\x1b[2J"]
NUMBERS = ["step", "num_steps", "epoch", "loss", "lr", "grad_norm", "samples", "samples_per_s", "tokens_per_s", "rank"]
SHARES = ["hardware", "wait_share", "staleness", "wire", "grad_norms", "sent", "received", "uncompressed", "accuracy"]
LABELS = ["members", "perplexity", "state", "detail", "peer", "up", "reason", "host", "device", "path", "best", "role"]
WORDS = ["kind", "level", "message", "logger"]
FIELDS = [*NUMBERS, *SHARES, *LABELS, *WORDS]
events = st.builds(
    lambda kind, node, at, rest: {"event": kind, "node": node, "t": at, **rest},
    st.sampled_from(KINDS),
    st.sampled_from(NAMES),
    st.floats(0, 4e9) | st.none(),
    st.dictionaries(st.sampled_from(FIELDS), values | tables, max_size=12),
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(events, max_size=12))
def test_whatever_nodes_say_nothing_of_ours_breaks(run: RunInfo, said: list[dict[str, Any]]) -> None:
    stream = io.StringIO()
    hub = tracking(run, stream)
    hub.start({})
    for event in said:
        hub.on_event(event)
    hub.finish("done", "all steps done")
    assert "has failed, the run goes on" not in stream.getvalue()
    assert "\x1b" not in stream.getvalue()
    for path in (run.path / "summary.json", *run.path.rglob("*.jsonl")):
        for line in path.read_text().splitlines() if path.suffix == ".jsonl" else [path.read_text()]:
            json.loads(line, parse_constant=pytest.fail)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(events, max_size=12))
def test_whatever_nodes_say_the_picture_can_be_drawn(run: RunInfo, said: list[dict[str, Any]]) -> None:
    console = LiveConsole(io.StringIO(), clock=lambda: START)
    console.start(run)
    for event in said:
        console.on_event(event)
    console.stop()


def test_the_run_directory_may_be_anywhere(run: RunInfo) -> None:
    hub = tracking(RunInfo(**{**vars(run), "path": Path(run.path, "a b", "ü")}), io.StringIO())
    hub.start({})
    hub.finish("done", "")
    assert (run.path / "a b" / "ü" / "summary.json").exists()

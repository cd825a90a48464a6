import io
from typing import Any

import pytest

from smolcluster.tracking.console import MAX_NEWS_PER_SECOND, Flood, PlainConsole, console_for
from smolcluster.tracking.live import LiveConsole
from smolcluster.tracking.tracker import RunInfo

START = 1_000_000.0


class Terminal(io.StringIO):
    encoding = "utf-8"  # type: ignore[assignment]

    def isatty(self) -> bool:
        return True


def told(run: RunInfo, events: list[dict[str, Any]], **finish: Any) -> list[str]:
    stream = io.StringIO()
    console = PlainConsole(stream, clock=lambda: START)
    console.start(run)
    for event in events:
        console.on_event(event)
    console.stop(**finish)
    return stream.getvalue().splitlines()


def test_a_run_in_plain_lines(run: RunInfo, story: list[dict[str, Any]]) -> None:
    lines = told(run, story)
    assert lines[0] == "[0:00:00] SyncPS · simplenn on digits · 1 server + 2 workers"
    assert lines[1] == f"[0:00:00] directory {run.path}"
    assert lines[2] == "[0:00:00] mini1 starting"
    assert lines[8] == (
        "[0:00:01] step 1/10 (10 %)  loss 2  lr 0.001  grad norm 0.5  60 samples/s  1.0 kB sent  900 B received  "
        "waiting 10 %"
    )
    nodes = lines[-4].split("] ")[1].split(" | ")
    assert nodes[0] == "mini1 training: 2/2 links, 30 samples/s, 0.00 MB/s out, 0.00 in, waiting 50 %"
    assert nodes[2] == "mini3 training: 1/1 links, 30 samples/s, 0.00 MB/s out, 0.00 in, waiting 30 %"
    assert lines[-3:] == [
        "[0:00:10] evaluation at step 10: loss 0.25, accuracy 62.50 %",
        "[0:00:10] checkpoint at step 10 (best so far): checkpoints/step-10",
        "[0:00:10] mini3 answered too late at step 10: no answer in 5 s",
    ]


def test_steps_come_once_a_second_and_the_last_one_always(run: RunInfo, say: Any) -> None:
    events = [say("mini1", "metrics", after=step / 100, step=step, loss=1.0) for step in range(1, 251)]
    steps = [line.split()[2] for line in told(run, events) if " step " in line]
    assert steps == ["1", "101", "201", "250"]
    ended = [{**event, "num_steps": 130} for event in events[:130]]
    steps = [line.split()[2] for line in told(run, [*ended, say("mini1", "evaluation", step=130, loss=1.0)])[2:-1]]
    assert steps == ["1/130", "101/130", "130/130"]


def test_a_flood_of_news_is_counted(run: RunInfo, say: Any) -> None:
    events = [say("mini1", "journal", kind="late", peer="mini2", step=step, reason="slow") for step in range(100)]
    events.append(say("mini1", "journal", after=1.0, kind="late", peer="mini2", step=100, reason="slow"))
    lines = told(run, events)[2:]
    assert len(lines) == MAX_NEWS_PER_SECOND + 2
    assert lines[-2:] == [
        "[0:00:01] (80 more events: see events.jsonl)",
        "[0:00:01] mini2 answered too late at step 100: slow",
    ]


def test_a_nodes_life_is_told_once_and_without_its_pauses(run: RunInfo, say: Any) -> None:
    life = ["starting", "training", "evaluating", "training", "saving", "training", "finished"]
    states = [*life, "starting", "training"]
    events = [say("mini2", "state", state=state, detail="slowly" if state == "starting" else "") for state in states]
    assert [line[10:] for line in told(run, events)[2:]] == [
        "mini2 starting: slowly",
        "mini2 training",
        "mini2 finished",
        "mini2 starting: slowly",
        "mini2 training",
    ]


def test_a_flood_ends_with_its_second() -> None:
    flood = Flood(per_second=2)
    assert [flood.admits(now) for now in (5.0, 5.1, 5.2, 5.9, 6.0)] == [True, True, False, False, True]
    assert (flood.missed(), flood.missed()) == (2, 0)


def test_what_a_node_says_stays_on_its_line_and_steers_nothing(run: RunInfo, say: Any) -> None:
    evil = say("mini2", "state", state="failed", detail="\x1b[2J\r\ngone\x07 [red]x[/red]")
    assert told(run, [evil])[-1] == "[0:00:00] mini2 failed: ·[2J· gone· [red]x[/red]"


def test_a_stream_that_knows_no_unicode_gets_question_marks(run: RunInfo) -> None:
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding="ascii")
    console = PlainConsole(stream, clock=lambda: START)
    console.start(run)
    console.stop({"status": "done", "final": None, "seconds": None})
    written = raw.getvalue().decode("ascii")
    assert "SyncPS ? simplenn on digits" in written
    assert "status" in written


def test_a_summary_follows_the_last_line(run: RunInfo) -> None:
    lines = told(run, [], summary={"status": "failed", "reason": "mini2: out of memory", "steps": 0})
    assert lines[2].split() == ["status", "failed:", "mini2:", "out", "of", "memory"]


def test_events_before_the_start_and_a_second_stop_do_nothing(run: RunInfo, metrics: Any) -> None:
    stream = io.StringIO()
    console = PlainConsole(stream, clock=lambda: START)
    console.on_event(metrics(1, 1.0))
    console.stop()
    assert stream.getvalue() == ""


@pytest.mark.parametrize(
    ("stream", "term", "kind"),
    [
        (Terminal(), "xterm-256color", LiveConsole),
        (Terminal(), "dumb", PlainConsole),
        (Terminal(), "", PlainConsole),
        (io.StringIO(), "xterm-256color", PlainConsole),
    ],
)
def test_the_live_view_is_for_terminals(
    stream: io.StringIO, term: str, kind: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", term)
    assert type(console_for(stream)) is kind

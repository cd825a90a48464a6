import json
import logging
from typing import Any

import pytest

from smolcluster.tracking.logs import MAX_REMEMBERED, STDERR, FileLogs, LogFiles, log_line, node_handler, stderr_event
from smolcluster.tracking.rundir import RunReader
from smolcluster.tracking.tracker import RunInfo


def said(say: Any, level: str = "INFO", message: str = "hello", **fields: Any) -> dict[str, Any]:
    usual = {"level": level, "message": message, "logger": "smolcluster.node", "step": 3}
    event: dict[str, Any] = say("mini2", "log", after=0.25, **{**usual, **fields})
    return event


def test_a_line_has_the_labels_that_people_search_by(run: RunInfo, say: Any) -> None:
    assert log_line(said(say, "warning", exception="Traceback"), run) == {
        "ts": "1970-01-12T13:46:40.250000Z",
        "level": "WARNING",
        "job": "smolcluster-worker",
        "component": "worker",
        "host": "worker-rank0-mini2",
        "rank": 0,
        "run_id": "20261121-0",
        "step": 3,
        "logger": "smolcluster.node",
        "message": "hello",
        "node": "mini2",
        "exception": "Traceback",
    }


def test_each_node_has_its_file(run: RunInfo, say: Any) -> None:
    sink = FileLogs().sink(run)
    sink.on_event(said(say))
    sink.on_event(say("mini1", "log", level="ERROR", message="oh", logger="x"))
    sink.on_event(say("mini1", "metrics", step=1))
    sink.close()
    logs = RunReader(run.path).logs()
    found = {host: [line["message"] for line in lines] for host, lines in logs.items()}
    assert found == {"server-rank0-mini1": ["oh"], "worker-rank0-mini2": ["hello"]}


def test_a_node_that_nobody_knows_is_filed_in_the_folder_all_the_same(run: RunInfo, say: Any) -> None:
    sink = FileLogs().sink(run)
    sink.on_event(say("../../evil", "log", level="INFO", message="x", logger="x"))
    sink.close()
    assert [path.name for path in (run.path / "logs").iterdir()] == ["worker-rank9-.._.._evil.jsonl"]


def test_what_is_below_the_level_is_left_out_but_never_standard_error(run: RunInfo, say: Any) -> None:
    sink = FileLogs(level="ERROR").sink(run)
    for level in ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL", "ODD"):
        sink.on_event(said(say, level, message=level))
    sink.on_event(stderr_event(run.nodes[1], "Segmentation fault\n", now=7.0))
    sink.close()
    lines = RunReader(run.path).logs()["worker-rank0-mini2"]
    assert [line["message"] for line in lines] == ["ERROR", "CRITICAL", "ODD", "Segmentation fault"]
    assert (lines[-1]["level"], lines[-1]["logger"]) == ("WARNING", STDERR)


def test_a_full_file_takes_no_more_and_says_so(run: RunInfo, say: Any) -> None:
    sink = LogFiles(run, level="INFO", max_bytes=1000)
    for number in range(100):
        sink.on_event(said(say, message=f"{number:0100}"))
    sink.close()
    *lines, last = RunReader(run.path).logs()["worker-rank0-mini2"]
    assert (run.path / "logs" / "worker-rank0-mini2.jsonl").stat().st_size < 2000
    assert [int(line["message"]) for line in lines] == list(range(len(lines)))
    assert last["message"] == f"{100 - len(lines)} later lines are left out: the file is full (logging.max_mb)"


class Reported(list[dict[str, Any]]):
    def __call__(self, event: str, **fields: Any) -> None:
        json.dumps(fields)
        self.append({"event": event, **fields})

    @property
    def messages(self) -> list[tuple[str, int | None]]:
        return [(event["message"], event.get("repeated")) for event in self]


def record(message: str, at: float, level: int = logging.INFO, *args: Any, **more: Any) -> logging.LogRecord:
    found = logging.LogRecord("smolcluster.node", level, __file__, 1, message, args, more.pop("exc_info", None))
    found.created = at
    found.__dict__.update(more)
    return found


def test_a_record_becomes_an_event() -> None:
    reported = Reported()
    handler = node_handler(reported)
    try:
        raise ValueError("bad batch")
    except ValueError as error:
        exc_info = (type(error), error, error.__traceback__)
        handler.handle(record("step %d", 0.0, logging.ERROR, 7, step=7, exc_info=exc_info))
    assert reported[0].pop("exception").endswith("ValueError: bad batch\n")
    line = {"level": "ERROR", "message": "step 7", "logger": "smolcluster.node", "step": 7}
    assert reported == [{"event": "log", **line}]


def test_repetitions_are_counted_and_told_with_the_next() -> None:
    reported = Reported()
    handler = node_handler(reported, repeat_s=10.0)
    for at in (0.0, 1.0, 2.0, 9.9):
        handler.handle(record("slow", at))
    handler.handle(record("other", 9.95))
    handler.handle(record("slow", 10.0))
    assert reported.messages == [("slow", None), ("other", None), ("slow", 3)]


def test_repetitions_that_end_are_told_when_the_handler_closes() -> None:
    reported = Reported()
    handler = node_handler(reported)
    for at in (0.0, 1.0, 2.0):
        handler.handle(record("slow", at))
    handler.close()
    assert reported.messages == [("slow", None), ("slow", 2)]


def test_a_node_with_much_to_say_needs_no_more_memory() -> None:
    reported = Reported()
    handler = node_handler(reported)
    handler.handle(record("first", 0.0))
    handler.handle(record("first", 0.1))
    for number in range(MAX_REMEMBERED):
        handler.handle(record(f"message {number}", 0.2))
    assert reported.messages[-1] == ("first", 1)
    assert len(reported) == MAX_REMEMBERED + 2


def test_without_an_interval_everything_is_told() -> None:
    reported = Reported()
    handler = node_handler(reported, repeat_s=0.0)
    for _ in range(3):
        handler.handle(record("same", 5.0))
    assert reported.messages == [("same", None)] * 3


def test_a_reporter_that_logs_does_not_run_for_ever() -> None:
    calls = []

    def report(event: str, **fields: Any) -> None:
        calls.append(fields["message"])
        handler.handle(record("from inside", 0.0))

    handler = node_handler(report)
    handler.handle(record("from outside", 0.0))
    assert calls == ["from outside"]


def test_a_line_that_cannot_be_told_harms_nobody(capsys: pytest.CaptureFixture[str]) -> None:
    def report(event: str, **fields: Any) -> None:
        raise BrokenPipeError("gone")

    node_handler(report).handle(record("hello", 0.0))
    node_handler(report).handle(record("%d", 0.0, logging.INFO, "no number"))
    error = capsys.readouterr().err
    assert "BrokenPipeError: gone" in error
    assert "TypeError" in error

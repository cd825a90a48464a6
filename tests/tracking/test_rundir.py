from typing import Any

from smolcluster.tracking.rundir import RunDirectory, RunReader
from smolcluster.tracking.tracker import RunInfo


def test_a_run_reads_back_as_it_was_written(run: RunInfo, story: list[dict[str, Any]]) -> None:
    directory = RunDirectory(run.path)
    directory.write_spec({"seed": 42})
    for event in story:
        directory.on_event(event)
    directory.write_summary({"status": "done"})
    directory.close()
    reader = RunReader(run.path)
    assert reader.spec() == {"seed": 42}
    assert reader.summary() == {"status": "done"}
    assert [line["step"] for line in reader.metrics()] == list(range(1, 11))
    assert reader.metrics()[0]["wire"] == {"sent": 1000, "received": 900, "uncompressed": 4000}
    assert [line["loss"] for line in reader.evaluations()] == [0.5, 0.25]
    kinds = [event["event"] for event in reader.events()]
    assert kinds == ["state"] * 3 + ["link"] * 2 + ["state"] * 3 + ["evaluation", "checkpoint"] * 2 + ["journal"]


def test_the_layout_is_there_before_anything_is_written(run: RunInfo) -> None:
    RunDirectory(run.path).close()
    assert {path.name for path in run.path.iterdir()} == {"metrics.jsonl", "events.jsonl", "logs"}
    reader = RunReader(run.path)
    assert (reader.spec(), reader.summary(), reader.metrics(), reader.logs()) == (None, None, [], {})


def test_a_loss_that_is_no_number_keeps_its_line(run: RunInfo, metrics: Any) -> None:
    directory = RunDirectory(run.path)
    directory.on_event(metrics(1, float("nan")))
    directory.on_event(metrics(2, float("inf")))
    directory.close()
    lines = RunReader(run.path).metrics()
    assert [(line["step"], line["loss"], line["lr"]) for line in lines] == [(1, None, 0.001), (2, None, 0.001)]


def test_a_run_that_goes_on_in_its_directory_adds_to_it(run: RunInfo, metrics: Any) -> None:
    for step in (1, 2):
        directory = RunDirectory(run.path)
        directory.on_event(metrics(step, 1.0))
        directory.close()
    assert [line["step"] for line in RunReader(run.path).metrics()] == [1, 2]

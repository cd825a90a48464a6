import io
from dataclasses import replace
from typing import Any

import pytest
from rich.console import Console

from smolcluster.tracking.summary import Summary
from smolcluster.tracking.tables import comparison_table, show, summary_table
from smolcluster.tracking.tracker import RunInfo


def shown(table: Any, width: int = 100) -> list[str]:
    console = Console(file=io.StringIO(), width=width, record=True)
    console.print(table)
    return [" ".join(line.split()) for line in console.export_text().splitlines()]


def test_a_summary_on_one_screen(run: RunInfo, story: list[dict[str, Any]]) -> None:
    summary = Summary(run, started=1_000_000.0)
    for event in story:
        summary.on_event(event)
    lines = shown(summary_table(summary.result("done", "all steps done", now=1_000_012.5, digest="ab12")), width=80)
    assert lines == [
        "status done: all steps done",
        "run SyncPS · simplenn · digits",
        "steps 10 in 12.5 s, at 64 samples/s",
        "final loss 0.25, accuracy 62.50 % at step 10",
        "best loss 0.25, accuracy 62.50 % at step 10",
        "wire 30.0 kB sent, 27.0 kB received (2.0x less than 60.0 kB)",
        "waiting 20 % of a worker's time",
        "checkpoint checkpoints/step-10",
        "digest ab12",
        "",
        "node role on steps samples sent received waiting",
        "mini1 server 0 mini1 mps 10 320 10.0 kB 9.0 kB 50 %",
        "mini2 worker 0 mini2 mps 10 320 10.0 kB 9.0 kB 10 %",
        "mini3 worker 1 mini3 mps 10 320 10.0 kB 9.0 kB 30 %",
    ]


def test_an_evaluation_tells_what_was_found_and_in_which_weights(run: RunInfo) -> None:
    summary = Summary(replace(run, purpose="evaluate"), started=1_000_000.0)
    summary.on_event({"event": "evaluation", "node": "mini1", "step": 1200, "loss": 0.25, "accuracy": 0.625})
    lines = shown(summary_table(summary.result("done", "", now=1_000_012.5, digest="ab12")), width=80)
    assert lines == [
        "status done",
        "run SyncPS · simplenn · digits",
        "found loss 0.25, accuracy 62.50 % with the weights of step 1,200",
        "time 12.5 s",
        "digest ab12",
    ]


def test_a_run_that_failed_at_once_shows_what_there_is() -> None:
    lines = shown(summary_table({"status": "failed", "reason": "[red]mini2[/red]\x1b[2J is gone", "algo": "EDP"}))
    assert lines[0] == "status failed: [red]mini2[/red]·[2J is gone"
    assert "final" not in " ".join(lines)


def row(number: int, overrides: list[str], **summary: Any) -> dict[str, Any]:
    usual = {
        "status": "done",
        "samples_per_s": 100.0,
        "seconds": 60.0,
        "wire_bytes": {"sent": 10**6},
        "wait_share": 0.1,
    }
    return {"run": number, "overrides": overrides, **usual, **summary}


def test_a_comparison_names_what_differs_and_marks_the_best() -> None:
    rows = [
        row(0, ["model=gpt", "optim.lr=0.1"], final={"loss": 0.5, "accuracy": 0.8}),
        row(1, ["model=gpt", "optim.lr=0.01"], final={"loss": 0.4, "accuracy": 0.9}, seconds=90.0),
        row(2, ["model=gpt", "optim.lr=9"], status="failed", final={"loss": 0.1, "accuracy": 0.1}, seconds=1.0),
    ]
    assert shown(comparison_table(rows)) == [
        "run overrides status loss accuracy samples/s time sent waiting",
        "0 optim.lr=0.1 done 0.5 80.00 % 100 1:00 * 1.0 MB 10 %",
        "1 optim.lr=0.01 done 0.4 * 90.00 % * 100 1:30 1.0 MB 10 %",
        "2 optim.lr=9 failed 0.1 10.00 % 100 1.0 s 1.0 MB 10 %",
    ]


def test_what_looks_the_same_is_equally_good() -> None:
    rows = [row(k, [f"seed={k}"], seconds=seconds) for k, seconds in enumerate((4.51, 4.52, 5.0))]
    lines = shown(comparison_table(rows))
    assert [("*" in line) for line in lines] == [False, True, True, False]


def test_language_models_are_compared_by_perplexity() -> None:
    rows = [
        row(k, [f"seed={k}"], final={"loss": loss, "perplexity": ppl}) for k, (loss, ppl) in enumerate([(2, 7), (1, 3)])
    ]
    lines = shown(comparison_table(rows))
    assert lines[0].split()[3:5] == ["loss", "perplexity"]
    assert lines[2].split()[3:7] == ["1", "*", "3", "*"]


@pytest.mark.parametrize(
    "rows", [[], [row(0, ["a=1"], final=None)], [row(0, [], final={"loss": float("nan")}), {"run": 1}]]
)
def test_little_to_compare_is_compared_all_the_same(rows: list[dict[str, Any]]) -> None:
    lines = shown(comparison_table(rows))
    assert lines[0].startswith("run overrides status")
    assert len(lines) == 1 + len(rows)
    assert "*" not in "".join(lines)


def test_a_pipe_gets_wide_tables_and_no_colours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    stream = io.StringIO()
    show(stream, summary_table({"status": "done", "digest": "d" * 100}))
    assert "d" * 100 in stream.getvalue()
    assert "\x1b" not in stream.getvalue()

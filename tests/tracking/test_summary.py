from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smolcluster.tracking.counts import Counter, Mean, Traffic
from smolcluster.tracking.summary import Summary
from smolcluster.tracking.tracker import RunInfo

START = 1_000_000.0


def summed(run: RunInfo, events: list[dict[str, Any]], status: Any = "done", **more: Any) -> dict[str, Any]:
    summary = Summary(run, started=START)
    for event in events:
        summary.on_event(event)
    return summary.result(status, "all steps done", now=START + 12.5, **more)


def test_a_run_in_one_record(run: RunInfo, story: list[dict[str, Any]]) -> None:
    result = summed(run, story, digest="ab12")
    nodes = result.pop("nodes")
    assert result == {
        "status": "done",
        "reason": "all steps done",
        "run_id": "20261121-0",
        "project": "smolcluster",
        "purpose": "train",
        "started": "1970-01-12T13:46:40.000000Z",
        "algo": "SyncPS",
        "model": "simplenn",
        "data": "digits",
        "steps": 10,
        "seconds": 12.5,
        "samples_per_s": 64.0,
        "tokens_per_s": None,
        "final": {"step": 10, "loss": 0.25, "accuracy": 0.625},
        "best": {"step": 10, "loss": 0.25, "accuracy": 0.625},
        "wire_bytes": {"sent": 30_000, "received": 27_000, "uncompressed": 60_000},
        "wait_share": pytest.approx(0.2),
        "staleness": {"mean": None, "max": None},
        "checkpoint": "checkpoints/step-10",
        "digest": "ab12",
    }
    assert [node["name"] for node in nodes] == ["mini1", "mini2", "mini3"]
    mini3 = {"name": "mini3", "role": "worker", "rank": 1, "host": "mini3", "device": "mps"}
    counts = {"steps": 10, "samples": 320, "sent": 10_000, "received": 9_000, "wait_share": pytest.approx(0.3)}
    assert nodes[2] == mini3 | counts


def test_the_best_is_the_lowest_validation_loss_and_the_final_one_the_last(run: RunInfo, say: Any) -> None:
    losses = [(1, 0.9), (2, float("nan")), (3, 0.4), (4, 0.6)]
    events = [say("mini1", "evaluation", step=step, loss=loss, perplexity=2.0) for step, loss in losses]
    result = summed(run, events)
    assert result["best"] == {"step": 3, "loss": 0.4, "perplexity": 2.0}
    assert result["final"] == {"step": 4, "loss": 0.6, "perplexity": 2.0}


def test_losses_that_are_never_finite_make_no_best(run: RunInfo, say: Any) -> None:
    assert summed(run, [say("mini1", "evaluation", step=1, loss=float("inf"))])["best"] is None


def test_without_evaluation_the_training_loss_is_said_to_be_that(run: RunInfo, metrics: Any) -> None:
    result = summed(run, [metrics(1, 2.0), metrics(2, 1.5)], status="failed")
    assert (result["final"], result["best"]) == ({"step": 2, "loss": 1.5, "training": True}, None)


def test_a_run_that_never_began(run: RunInfo) -> None:
    result = summed(run, [], status="failed")
    assert (result["steps"], result["final"], result["samples_per_s"], result["wait_share"]) == (0, None, None, None)
    assert result["wire_bytes"] == {"sent": 0, "received": 0, "uncompressed": 0}
    assert [node["steps"] for node in result["nodes"]] == [0, 0, 0]


def test_speed_is_that_of_the_whole_run_and_tokens_follow(run: RunInfo, metrics: Any) -> None:
    events = [metrics(step, 1.0, samples_per_s=50.0, tokens_per_s=6400.0) for step in (1, 5, 9)]
    result = summed(run, events)
    assert (result["samples_per_s"], result["tokens_per_s"]) == (64.0, 64.0 * 128)


def test_one_step_alone_has_the_speed_that_it_says(run: RunInfo, metrics: Any) -> None:
    assert summed(run, [metrics(1, 1.0, samples_per_s=50.0)])["samples_per_s"] == 50.0


def test_staleness_over_the_run(run: RunInfo, metrics: Any) -> None:
    values = [{"mean": 1.0, "max": 4}, {"mean": 2.0, "max": 9}, {"mean": 3.0, "max": 5}]
    events = [metrics(step, 1.0, staleness=value) for step, value in enumerate(values)]
    assert summed(run, events)["staleness"] == {"mean": 2.0, "max": 9.0}


def test_a_node_that_joins_later_and_says_where_it_runs(run: RunInfo, say: Any) -> None:
    events = [
        say("pi5", "state", state="starting", detail=""),
        say("pi5", "ready", hardware={"device": "cpu"}),
        say("pi5", "node", step=4, samples=10, sent=5, received=6),
    ]
    joined = summed(run, events)["nodes"][-1]
    assert (joined["name"], joined["host"], joined["device"], joined["steps"]) == ("pi5", "pi5", "cpu", 4)


def test_counts_go_on_over_a_restart(run: RunInfo, say: Any) -> None:
    def node(sent: int) -> Any:
        return say("mini2", "node", step=1, samples=sent, sent=sent, received=0, uncompressed=4 * sent)

    events = [node(10), node(70), say("mini2", "state", state="starting"), node(0), node(5)]
    result = summed(run, events)
    assert result["nodes"][1]["samples"] == 75
    assert result["wire_bytes"] == {"sent": 75, "received": 0, "uncompressed": 300}


def test_waiting_before_the_first_step_does_not_count(run: RunInfo, say: Any) -> None:
    events = [say("mini2", "node", step=0, wait_share=1.0), say("mini2", "node", step=1, wait_share=0.2)]
    assert summed(run, events)["wait_share"] == 0.2


def test_the_weights_digest_may_come_with_the_checkpoint(run: RunInfo, say: Any) -> None:
    events = [say("mini1", "checkpoint", step=3, path="checkpoints/step-3", best=False, digest="cd34")]
    assert summed(run, events)["digest"] == "cd34"


@given(st.lists(st.lists(st.integers(0, 1000), min_size=1), min_size=1, max_size=5))
def test_a_counter_adds_up_the_last_count_of_every_life(lives: list[list[int]]) -> None:
    counter = Counter()
    for place, counts in enumerate(lives):
        if place:
            counter.restart()
        for value in sorted(counts):
            counter.see(value)
    assert counter.total == sum(max(counts) for counts in lives)


def test_a_node_that_says_nothing_of_compression_counts_as_it_sends() -> None:
    traffic = Traffic()
    traffic.see("a", {"sent": 10, "received": 1, "uncompressed": 40})
    traffic.see("b", {"sent": 5, "received": 2})
    assert traffic.total() == {"sent": 15, "received": 3, "uncompressed": 45}
    assert traffic.of("b") == (5, 2)


def test_a_mean_leaves_out_what_is_no_number() -> None:
    mean = Mean()
    for value in (1.0, None, float("nan"), "3", True, 4):
        mean.see(value)
    assert (mean.mean, mean.largest) == (2.5, 4.0)
    assert Mean().mean is None

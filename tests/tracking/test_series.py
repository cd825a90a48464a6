from typing import Any

from smolcluster.tracking.series import NODE_INTERVAL_S, Thinning, scalars


def test_everything_of_a_step_that_is_a_number(metrics: Any) -> None:
    event = metrics(
        3,
        0.5,
        tokens_per_s=128.0,
        staleness={"mean": 1.5, "max": 4},
        grad_norms={"block.0": 0.25},
        compression_error=0.1,
        note="text",
    )
    assert scalars(event) == {
        "train/loss": 0.5,
        "train/lr": 0.001,
        "train/grad_norm": 0.5,
        "train/epoch": 0.0,
        "train/samples": 192.0,
        "train/compression_error": 0.1,
        "throughput/samples_per_s": 60.0,
        "throughput/tokens_per_s": 128.0,
        "throughput/wait_share": 0.1,
        "wire/sent_bytes": 3000.0,
        "wire/received_bytes": 2700.0,
        "wire/uncompressed_bytes": 12000.0,
        "staleness/mean": 1.5,
        "staleness/max": 4.0,
        "gradients/block.0": 0.25,
    }


def test_validation_and_nodes(say: Any) -> None:
    assert scalars(say("mini1", "evaluation", step=3, loss=0.5, perplexity=1.65)) == {
        "validation/loss": 0.5,
        "validation/perplexity": 1.65,
    }
    found = scalars(say("mini2", "node", step=3, samples_per_s=30.0, wait_share=0.1, sent=7, rss_bytes=9))
    assert found == {
        "nodes/mini2/samples_per_s": 30.0,
        "nodes/mini2/wait_share": 0.1,
        "nodes/mini2/sent_bytes": 7.0,
        "nodes/mini2/rss_bytes": 9.0,
    }


def test_other_events_hold_nothing_to_plot(say: Any) -> None:
    for kind in ("state", "link", "checkpoint", "journal", "log"):
        assert scalars(say("mini1", kind, step=3, best=True)) == {}


def test_a_nodes_measurements_are_thinned_and_steps_are_not(say: Any, metrics: Any) -> None:
    thinning = Thinning()
    times = [0.0, 0.5, NODE_INTERVAL_S - 0.1, NODE_INTERVAL_S, NODE_INTERVAL_S + 1]
    assert [thinning.passes(say("mini2", "node", after=at)) for at in times] == [True, False, False, True, False]
    assert thinning.passes(say("mini3", "node", after=0.5))
    assert all(thinning.passes(metrics(step, 1.0)) for step in (1, 1, 1))

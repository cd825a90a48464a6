"""EDP over the network: what quantisation saves at the socket, and staleness on record."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from smolcluster.tracking.rundir import RunReader
from tests.integration.command import command


def test_quantised_pushes_are_a_quarter_of_the_bytes(tmp_path: Path) -> None:
    """Counted at the server's sockets, TLS and frames included; 3.8 is what int8 with its scales leaves of float32."""
    words = ("algo=edp", "train.max_steps=60", "train.eval_steps=null", "train.export=false")
    command(tmp_path, *words, "algo.use_quantization=false,true")
    dense, quantised = (pushed(RunReader(tmp_path / job)) for job in "01")
    assert dense["bytes"] > 4 * 9_610, "whole gradients"
    assert dense["bytes"] / quantised["bytes"] >= 3.8
    for run in (dense, quantised):
        histogram = run["staleness"]["histogram"]
        assert sum(histogram.values()) == run["pushes"]
        assert sum(int(versions) * count for versions, count in histogram.items()) > 0, "two workers: some are stale"


def pushed(run: RunReader) -> dict[str, Any]:
    """Bytes that the server received for each push, and the staleness of all of them."""
    summary, last = run.summary(), run.metrics()[-1]
    assert summary is not None
    pushes = last["pushes"]["pushes"]
    return {"bytes": summary["nodes"][0]["received"] / pushes, "staleness": last["staleness"], "pushes": pushes}

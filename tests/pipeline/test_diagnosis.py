"""From the lines of a survey to figures, forecasts and advice."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest
import yaml

from smolcluster.pipeline.diagnosis import (
    Findings,
    advice,
    best_single,
    calibrated,
    door_of,
    forecasts,
    measured_cluster,
)
from smolcluster.sim.figures import Channel
from smolcluster.spec.build import build
from smolcluster.spec.compose import validate_jobs
from smolcluster.spec.run import RunSpec

NAMES = ("server", "worker0", "worker1")
SIZE = 400_000


def spec(*words: str) -> RunSpec:
    (found,) = validate_jobs(["pipeline=doctor", *words], None)
    return found


def lines(speed: float = 1e9, gradient_s: float = 0.1) -> list[dict[str, Any]]:
    """What a survey of three nodes tells."""
    found: list[dict[str, Any]] = []

    def tell(node: str, what: str, **figures: Any) -> None:
        found.append({"event": "journal", "kind": "measured", "node": node, "what": what, **figures})

    def carried(node: str, sender: str, number: int, speed: float) -> None:
        tell(node, "carried", sender=sender, number=number, bytes_per_s=speed, burst_bytes=0.0, peak_per_s=speed)

    for rank, name in enumerate(reversed(NAMES)):  # in whatever order they come
        place = {"role": "server", "rank": 0} if name == "server" else {"role": "worker", "rank": 1 - rank}
        hardware = {"device": "cpu", "memory_bytes": 8_000_000_000, "threads": 1}
        found.append({"event": "ready", "node": name, **place, "hardware": hardware, "params": SIZE // 4})
    tell("server", "samples", num_samples=6400, max_items=1, tensor_bytes={"parameters": SIZE, "gradient": SIZE})
    for name in NAMES[1:]:
        tell(name, "compute together", gradient_s=1.5 * gradient_s)
    for name in NAMES:
        slower = 2.0 if name == "worker1" else 1.0
        tell(
            name, "compute alone", gradient_s=slower * gradient_s, apply_s=0.001, snapshot_s=0.0, load_s=0.0,
            pass_s=0.0, flops=int(1e9),
        )  # fmt: skip
    pairs = [(one, other) for one in NAMES for other in NAMES if one != other]
    for number, (one, other) in enumerate(pairs):
        tell(one, "reached", peer=other, round_trip_s=0.001)
        carried(other, one, number, speed)
    for name in NAMES[1:]:
        carried("server", name, 100, speed / 2)
        carried(name, "server", 101, speed / 2)
    return found


def test_findings_are_what_the_lines_say() -> None:
    found = Findings.of(lines(speed=125e5))
    assert list(found.nodes) == ["server", "worker0", "worker1"]
    assert [(link.source, link.target) for link in found.links][:3] == [
        ("server", "worker0"),
        ("server", "worker1"),
        ("worker0", "server"),
    ]
    assert {link.mbit_per_s for link in found.links} == {100.0}
    assert found.inlets == {"server": Channel(bytes_per_s=125e5, peak_per_s=125e5)}
    assert found.outlets == found.inlets
    figures = found.figures(32)
    assert figures.nodes["worker0"].together_s == pytest.approx(0.15)
    assert figures.nodes["server"].together_s == 0.1  # it does not compute with the others
    assert (figures.num_params, figures.num_samples, figures.batch_size) == (SIZE // 4, 6400, 32)


def test_a_door_is_the_narrow_place_or_as_wide_as_its_links() -> None:
    pairs = [("a", "s"), ("b", "s")]
    streams = [{"sender": one, "node": other, "bytes_per_s": 50.0} for one, other in pairs]
    narrow = {pair: Channel(bytes_per_s=100.0, burst_bytes=7.0, peak_per_s=900.0) for pair in pairs}
    assert door_of(streams, narrow) == narrow["a", "s"]
    wide = {pair: Channel(bytes_per_s=50.0, burst_bytes=7.0, peak_per_s=900.0) for pair in pairs}
    assert door_of(streams, wide) == Channel(bytes_per_s=100.0, burst_bytes=14.0, peak_per_s=1800.0)


def test_a_link_without_a_way_has_its_reason_and_no_speed() -> None:
    events = [line for line in lines() if not (line.get("node") == "worker1" and line.get("sender") == "worker0")]
    events = [line for line in events if not (line.get("node") == "worker0" and line.get("peer") == "worker1")]
    events.append(
        {
            "event": "journal", "kind": "measured", "node": "server", "what": "failed", "source": "worker0",
            "task": "reach", "peer": "worker1", "reason": "no answer within 3 s",
        }
    )  # fmt: skip
    (bad,) = [link for link in Findings.of(events).links if link.reason]
    assert (bad.source, bad.target, bad.channel, bad.reason) == ("worker0", "worker1", None, "no answer within 3 s")
    rows = forecasts(spec(), ["single", "syncps"], Findings.of(events).figures(32))
    assert all(row.step_time_s for row in rows), "the parameter server does not need that link"


def test_the_forecast_compares_with_the_best_node() -> None:
    asked = spec()
    rows = forecasts(asked, asked.pipeline.cases, Findings.of(lines()).figures(asked.batch_size))
    singles = [row for row in rows if row.algo == "single"]
    assert [row.nodes for row in singles] == [["server"], ["worker0"], ["worker1"]]
    best = best_single(rows)
    assert best is not None
    assert best.nodes == ["server"]
    assert best.ratio_to_single == 1.0
    assert singles[2].ratio_to_single == pytest.approx(0.5, abs=0.01)
    assert [(row.algo, dict(row.settings)) for row in rows[3:]] == [
        ("syncps", {}),
        ("edp", {}),
        ("edp", {"use_quantization": True}),
        ("ddp", {}),
    ]
    syncps = rows[3]
    assert syncps.samples_per_s == pytest.approx(64 / syncps.step_time_s)
    assert advice(asked, rows, Findings.of(lines()).figures(32)) == []


def test_what_a_rehearsal_takes_longer_is_charged_to_the_handling_of_gradients() -> None:
    asked = spec()
    assert calibrated(asked, Findings.of(lines())).handling_s == 0.0
    rounds = [
        {"event": "journal", "kind": "measured", "node": node, "what": what, "number": number, "seconds": seconds}
        for number in range(3)
        for node, what, seconds in (
            ("server", "round", 0.15 + 0.001 + 0.001 + 0.02),
            ("worker0", "part", 0.14),
            ("worker1", "part", 0.15),
        )
    ]
    figures = calibrated(asked, Findings.of([*lines(), *rounds]))
    assert figures.handling_s == pytest.approx(0.01)  # for each of two workers
    rows = [forecasts(asked, ["syncps"], each)[0].step_time_s for each in (figures, replace(figures, handling_s=0.0))]
    assert rows[0] - rows[1] == pytest.approx(0.02)  # type: ignore[operator]


def told(*words: str, events: Sequence[Mapping[str, Any]]) -> list[str]:
    asked = spec(*words)
    figures = Findings.of(events).figures(asked.batch_size)
    return advice(asked, forecasts(asked, asked.pipeline.cases, figures), figures)


def test_a_cluster_that_would_be_slower_is_told_so_and_what_helps() -> None:
    first, *others = told(events=lines(speed=4e6, gradient_s=0.1))
    assert first.startswith("algo=syncps on this cluster would be slower than server alone: ")
    assert first.endswith("against 318 samples/s")
    assert others == ["algo=syncps would be faster than one machine from about train.batch_size=512 on"]


def test_a_case_that_cannot_be_says_why() -> None:
    events = [line for line in lines() if line.get("node") != "worker1" and line.get("sender") != "worker1"]
    events = [line for line in events if line.get("peer") != "worker1"]
    (row,) = [
        row for row in forecasts(spec(), ["single", "syncps"], Findings.of(events).figures(32)) if row.algo == "syncps"
    ]
    assert row.step_time_s is None
    assert row.reason == "worker1 could not be measured"


def test_the_measured_cluster_is_a_cluster() -> None:
    home = {
        "nodes": {name: {"host": f"10.0.0.{rank + 1}"} for rank, name in enumerate(NAMES)},
        "server": "server",
        "workers": ["worker0", "worker1"],
    }
    base = spec()
    cluster = {**base.plain()["cluster"], **home}
    asked = build({**base.plain(), "cluster": cluster, "choices": {}})
    plain = measured_cluster(replace(asked, choices=base.choices), Findings.of(lines(speed=125e5)))
    again = build({**base.plain(), "cluster": yaml.safe_load(yaml.safe_dump(plain)), "choices": {}})
    node = again.cluster.node("worker1")
    assert (node.flops_per_second, node.memory_gb, node.bandwidth_mbps) == (5e9, 6.0, 100.0)
    assert again.cluster.worker_names == ("worker0", "worker1")

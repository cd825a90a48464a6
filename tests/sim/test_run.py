"""Forecasts against what can be worked out by hand, for every algorithm that there is."""

from __future__ import annotations

from dataclasses import replace

import pytest

from smolcluster.cluster.controller import roster
from smolcluster.errors import RunFailed
from smolcluster.sim.figures import Channel, Figures, LinkFigures, NodeFigures
from smolcluster.sim.node import HEAD_BYTES
from smolcluster.sim.run import Forecast, simulate
from smolcluster.spec.build import options
from smolcluster.spec.compose import validate_jobs
from smolcluster.spec.run import RunSpec

NAMES = ["server", "worker0", "worker1"]
SIZE = 20_000_000
SPEED, TRIP = 12.5e6, 0.002
NODE = NodeFigures(gradient_s=0.2, together_s=0.3, apply_s=0.05, snapshot_s=0.01, load_s=0.02, pass_s=0.004)


def figures(speed: float = SPEED, node: NodeFigures = NODE, **changes: NodeFigures) -> Figures:
    link = LinkFigures(round_trip_s=TRIP, channel=Channel(bytes_per_s=speed))
    return Figures(
        num_params=SIZE // 4, num_samples=10_000, max_items=64, batch_size=8,
        tensor_bytes={"parameters": SIZE, "gradient": SIZE},
        nodes={name: changes.get(name, node) for name in NAMES},
        links={(one, other): link for one in NAMES for other in NAMES if one != other},
    )  # fmt: skip


def spec(*words: str) -> RunSpec:
    (found,) = validate_jobs(["model=gpt", "train.batch_size=8", *words], None)
    return found


def forecast(of: Figures, *words: str) -> Forecast:
    asked = spec(*words)
    return simulate(asked, roster(asked), of)


def test_one_process_computes_and_steps() -> None:
    found = forecast(replace(figures(), links={}), "algo=single")
    assert found.step_s == pytest.approx(2 * 0.2 + 0.05)  # the batches of two workers
    assert found.samples_per_s == pytest.approx(16 / 0.45)
    assert found.wire_bytes_per_step == 0


def test_syncps_waits_for_weights_and_for_gradients() -> None:
    found = forecast(figures(), "algo=syncps")
    travel = 2 * (2 * (SIZE + HEAD_BYTES) / SPEED + TRIP / 2)  # to both and back, through the server's one link
    passes = 2 * 1 + 2 * 2  # two gradients looked at, then averaged
    server = 0.01 + 0.05 + passes * 0.004
    assert found.step_s == pytest.approx(travel + 0.02 + 0.3 + server, rel=0.002)
    assert found.wire_bytes_per_step == pytest.approx(4 * SIZE, rel=0.01)


def test_syncps_goes_at_the_pace_of_the_slowest() -> None:
    slow = NodeFigures(gradient_s=5.0, together_s=5.0)
    fast = NodeFigures(gradient_s=0.1, together_s=0.1)
    found = forecast(figures(1e12, fast, worker1=slow), "algo=syncps")
    assert found.step_s == pytest.approx(5.0 + 2 * TRIP / 2, rel=0.001)


def test_edp_does_not_wait_for_the_slowest() -> None:
    slow = NodeFigures(gradient_s=5.0, together_s=5.0)
    fast = NodeFigures(gradient_s=0.1, together_s=0.1)
    found = forecast(figures(1e12, fast, worker1=slow), "algo=edp")
    cycle = 2 * TRIP  # push and pull, one behind the other, and the answer: about one round trip each step
    assert 1 / (0.1 + cycle) < 1 / found.step_s < 1 / 0.1 + 1 / 5.0


def test_less_on_the_wire_takes_less_time() -> None:
    asked = spec("algo=edp", "algo.use_quantization=true")
    whole = forecast(figures(), "algo=edp")
    small = replace(figures(), tensor_bytes={"parameters": SIZE, "gradient": SIZE // 4})
    packed = simulate(asked, roster(asked), small)
    assert packed.step_s < 0.75 * whole.step_s
    assert packed.wire_bytes_per_step == pytest.approx(whole.wire_bytes_per_step * 5 / 8, rel=0.05)


@pytest.mark.parametrize("algo", sorted(options("algo")))
def test_every_algorithm_can_be_forecast_and_twice_the_same(algo: str) -> None:
    first, second = (forecast(figures(), f"algo={algo}") for _ in range(2))
    assert first == second
    assert first.step_s >= 0.2


@pytest.mark.parametrize("algo", sorted(set(options("algo")) - {"single"}))
def test_a_faster_network_never_hurts(algo: str) -> None:
    times = [forecast(figures(speed), f"algo={algo}").step_s for speed in (1e6, 1e7, 1e8, 1e10)]
    assert times == sorted(times, reverse=True)


def test_figures_survive_json() -> None:
    found = figures()
    assert Figures.of(found.plain()) == found


def test_a_link_that_is_not_known_is_an_error() -> None:
    with pytest.raises(KeyError):
        forecast(replace(figures(), links={}), "algo=syncps")


def test_too_little_to_do_is_an_error() -> None:
    with pytest.raises(RunFailed):
        forecast(figures(), "algo=edp", "algo.max_wait_s=0.01", "algo.flush_s=0.001")

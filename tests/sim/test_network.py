from __future__ import annotations

import asyncio
from collections.abc import Mapping

import pytest

from smolcluster.sim.figures import Channel, Figures, LinkFigures, NodeFigures
from smolcluster.sim.loop import run_virtually
from smolcluster.sim.network import Network, fair


def figures(
    links: Mapping[tuple[str, str], Channel], inlets: Mapping[str, Channel] | None = None, trip: float = 0.0
) -> Figures:
    names = sorted({name for pair in links for name in pair})
    return Figures(
        num_params=1, num_samples=1, max_items=1, batch_size=1, tensor_bytes={},
        nodes={name: NodeFigures(gradient_s=0.0, together_s=0.0) for name in names},
        links={pair: LinkFigures(round_trip_s=trip, channel=channel) for pair, channel in links.items()},
        inlets=inlets or {},
    )  # fmt: skip


def arrivals(of: Figures, *sent: tuple[float, str, str, int]) -> dict[int, float]:
    """Index of each message (time, from, to, bytes) -> when it is there."""

    async def work() -> dict[int, float]:
        loop = asyncio.get_running_loop()
        network, seen, done = Network(of, loop), dict[int, float](), asyncio.Event()

        def arrive(index: int) -> None:
            seen[index] = loop.time()
            if len(seen) == len(sent):
                done.set()

        for index, (when, one, other, size) in enumerate(sent):
            loop.call_at(when, lambda i=index, a=one, b=other, n=size: network.send(a, b, n, lambda: arrive(i)))
        await done.wait()
        return seen

    return run_virtually(work())


def test_a_message_takes_its_bytes_and_half_a_round_trip() -> None:
    found = arrivals(figures({("a", "b"): Channel(bytes_per_s=100.0)}, trip=0.2), (1.0, "a", "b", 50))
    assert found[0] == pytest.approx(1.0 + 0.5 + 0.1, abs=1e-9)


def test_messages_of_a_pair_come_one_after_another() -> None:
    link = figures({("a", "b"): Channel(bytes_per_s=100.0)})
    found = arrivals(link, (0.0, "a", "b", 100), (0.0, "a", "b", 10), (0.5, "a", "b", 40))
    assert [found[i] for i in range(3)] == pytest.approx([1.0, 1.1, 1.5], abs=1e-9)


def test_two_senders_share_the_way_in() -> None:
    fast = Channel(bytes_per_s=100.0)
    shared = figures({("a", "s"): fast, ("b", "s"): fast}, inlets={"s": fast})
    found = arrivals(shared, (0.0, "a", "s", 100), (0.0, "b", "s", 50))
    assert found[1] == pytest.approx(1.0, abs=1e-9)  # both at half speed
    assert found[0] == pytest.approx(1.5, abs=1e-9)  # the rest at full speed


def test_the_two_directions_of_a_link_do_not_share() -> None:
    way = Channel(bytes_per_s=100.0)
    found = arrivals(figures({("a", "b"): way, ("b", "a"): way}), (0.0, "a", "b", 100), (0.0, "b", "a", 100))
    assert found == pytest.approx({0: 1.0, 1: 1.0}, abs=1e-9)


def test_a_burst_passes_at_its_peak_and_comes_back_with_rest() -> None:
    shaped = figures({("a", "b"): Channel(bytes_per_s=100.0, burst_bytes=90.0, peak_per_s=1000.0)})
    found = arrivals(shaped, (0.0, "a", "b", 200), (10.0, "a", "b", 50))
    # 100 bytes pass in 0.1 s (90 of the burst, 10 earned meanwhile), the other 100 in 1 s
    assert found[0] == pytest.approx(1.1, abs=1e-6)
    assert found[1] == pytest.approx(10.05, abs=1e-6)


def test_shares_are_fair() -> None:
    flows = {("a", "x"): ["one"], ("b", "x"): ["one", "two"], ("c", "x"): ["two"]}
    speeds = fair(flows, {"one": 10.0, "two": 4.0})
    assert speeds == {("a", "x"): 8.0, ("b", "x"): 2.0, ("c", "x"): 2.0}

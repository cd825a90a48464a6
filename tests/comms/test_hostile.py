"""10,000 frames that lie, against a live node: nothing changes but the counts, and an honest worker trains on.

The law of accounting: each frame that a member sends is counted exactly once, under its own name: by the comms layer
with its reason, or by the role as refused, late or turned away. A cut connection is counted by the frame that it was
cut for.
"""

from __future__ import annotations

import asyncio
import gc
import math
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch

from smolcluster.algo.edp import LEASES_AHEAD
from smolcluster.comms.buffers import Layout
from smolcluster.comms.peers import BUFFERS_PER_PEER, MAX_WAITING, NodePeers, Patience
from smolcluster.comms.session import MAX_QUEUED_BYTES, MAX_QUEUED_FRAMES
from smolcluster.comms.transport.tcp import Tcp
from smolcluster.comms.transport.zmq import Zmq
from smolcluster.comms.wire import MAX_META_BYTES
from smolcluster.messages import Join, Pull, Update
from smolcluster.ports import Member
from tests.comms.cluster import SERVER, Cluster, go, resident_bytes, until, worker
from tests.comms.hostile import BATCH, COURSE, HOLD_AT, Liar, Live, TcpWire, ZmqWire

pytestmark = pytest.mark.usefixtures("nothing_left", "torch_settings")
W0, LIAR = worker(0), worker(1, joined=2)
NUMEL = 5000
LAYOUTS = {"gradient": Layout("float32", NUMEL), "parameters": Layout("float32", NUMEL)}
PATIENCE = Patience(connect_s=20.0, silent_s=10.0, lost_s=0.05)
KINDS: dict[str, Any] = {"tcp": Tcp(lost_after_s=10.0), "zmq": Zmq(lost_after_s=10.0)}
MEMORY_BOUND = (
    BUFFERS_PER_PEER * sum(layout.num_bytes for layout in LAYOUTS.values())
    + MAX_WAITING * 3 * MAX_META_BYTES
    + MAX_META_BYTES
    + (5 << 20)
)
"""docs/wire_format.md: what a peer that only sends can make us hold, in bytes."""


async def live(kind: str, algo: str) -> tuple[Cluster, Live]:
    """A server and worker 0 that have trained up to the batch at which worker 0 is held."""
    cluster = Cluster(kind, layouts=LAYOUTS, patience=PATIENCE, config=KINDS[kind])
    server, honest = cluster.start(SERVER, W0)
    cluster.view_all(1, SERVER, W0)
    node = Live(algo, server, honest, NUMEL)
    node.start()
    await node.local.holding.wait()
    before = node.state
    cluster.view_all(2, SERVER, W0, LIAR)
    await until(lambda: server.view.generation == 2, "the liar is a member")
    assert before == node.state
    assert node.theta.version == HOLD_AT
    return cluster, node


def wire_to(cluster: Cluster, node: Live, me: Member = LIAR) -> Any:
    address, mine = node.server.transport.address, cluster.credentials(me)
    if cluster.kind == "zmq":
        return ZmqWire(address, cluster.credentials(SERVER).curve_public, mine, me.joined)
    return TcpWire(address, mine, me.joined)


def attack(wire: Any, liar: Liar, count: int, usable: Callable[[str], bool]) -> Counter[str]:
    """Send ``count`` lies; how many there were of each kind."""
    sent: Counter[str] = Counter()
    while sent.total() < count:
        lie = liar.next(wire.number, wire.ack)
        if usable(lie.what):
            wire.say(lie)
            sent[lie.what] += 1
    return sent


UNDISTURBED: dict[tuple[str, str], torch.Tensor] = {}


async def undisturbed(kind: str, algo: str) -> torch.Tensor:
    """The weights at the end of the same run without a liar."""
    if (kind, algo) not in UNDISTURBED:
        cluster, node = await live(kind, algo)
        UNDISTURBED[kind, algo] = await node.finish()
        assert not node.server.refusals
        await cluster.close(0.0)
    return UNDISTURBED[kind, algo]


@pytest.mark.parametrize(
    ("kind", "algo", "count", "seed"),
    [("tcp", "syncps", 10_000, 1), ("tcp", "edp", 2_000, 2), ("zmq", "syncps", 1_000, 3), ("zmq", "edp", 1_000, 4)],
)
def test_lies_change_nothing_and_each_is_counted(kind: str, algo: str, count: int, seed: int) -> None:
    async def test() -> None:
        expected = await undisturbed(kind, algo)
        cluster, node = await live(kind, algo)
        before = node.state
        wire = await asyncio.to_thread(wire_to, cluster, node)
        liar = Liar(seed, numel=NUMEL, run="run", joined=LIAR.joined, generation=2)
        usable = {"tcp": lambda what: True, "zmq": lambda what: what != "truncated"}[kind]
        with wire:
            sent = await asyncio.to_thread(attack, wire, liar, 200, usable)  # what is made once is made now
            gc.collect()
            resident = resident_bytes()
            sent += await asyncio.to_thread(attack, wire, liar, count - 200, usable)
            await until(lambda: node.counted("worker1").total() >= count, f"{node.counted('worker1')} of {sent}")
            gc.collect()
            grown = resident_bytes() - resident
            sent["malformed"] += sent.pop("malformed early", 0)
            assert node.counted("worker1") == sent
            assert len(sent) > 14, "lies of all kinds"
            assert wire.cuts > 0
            assert grown < MEMORY_BOUND
            assert node.state == before, "no weight, no version, no record"
            assert torch.equal(await node.finish(), expected), "the honest worker trains on as if nothing had been"
            assert {peer for peer, _ in node.server.refusals} == {"worker1"}
        await cluster.close(0.0)

    go(test())


EARLY = worker(1)
SHARE = [0, BATCH // 2, BATCH]
"""What the second of two workers is given in step 0."""
GOOD = {"step": 0, "version": 0, "spans": SHARE, "num_samples": 8, "num_items": 8}
GOOD |= {"loss": 0.5, "compute_s": 0.1, "wait_s": 0.1}


async def given_work(server: NodePeers, wire: Any, liar: Liar, node: Live) -> None:
    """The liar joins as an honest worker does, and has a share; the other share of the step has arrived."""
    wire.say(liar.frame("join", Join.code, wire.number, wire.ack, ["toy"]))
    await until(lambda: wire.ack >= 1, "it is given work")
    await until(lambda: node.role.counts["accepted/worker0"] == 1, "worker 0 has done its own")


async def joined(algo: str) -> tuple[Cluster, Live, Liar]:
    """A run of which the liar is a worker from the start."""
    cluster = Cluster("tcp", layouts=LAYOUTS, patience=PATIENCE, config=KINDS["tcp"])
    server, honest = cluster.start(SERVER, W0)
    cluster.view_all(1, SERVER, W0, EARLY)
    node = Live(algo, server, honest, NUMEL)
    node.start()
    node.local.gate.set()
    return cluster, node, Liar(5, numel=NUMEL, run="run", joined=1, generation=1)


def test_lies_about_work_that_it_was_given_are_refused_and_others_do_it_when_it_is_gone() -> None:
    lies: list[dict[str, Any]] = [
        {"version": 1}, {"version": -1}, {"version": 2**53}, {"step": 1}, {"step": 2**53},
        {"spans": SHARE * 2, "num_samples": 16}, {"spans": [*SHARE, 0]}, {"spans": [0, 0, 8]},
        {"spans": [0, 8, 12], "num_samples": 4},
        {"spans": []}, {"num_samples": -1}, {"num_samples": 0}, {"num_samples": 9}, {"num_samples": 2**53},
    ]  # fmt: skip

    async def test() -> None:
        expected = await undisturbed("tcp", "syncps")
        cluster, node, liar = await joined("syncps")
        with await asyncio.to_thread(wire_to, cluster, node, EARLY) as wire:
            await given_work(node.server, wire, liar, node)
            before = node.state
            for lie in lies * 5:
                plain = list({**GOOD, **lie}.values())
                wire.say(liar.frame("role", Update.code, wire.number, wire.ack, plain, liar.payloads[0]))
            await until(lambda: node.counted("worker1")["role"] == 5 * len(lies), f"{node.counted('worker1')}")
            assert node.state == before
            assert node.theta.version == 0
            cluster.view_all(2, SERVER, W0)
            assert torch.equal(await node.finish(), expected)
        await cluster.close(0.0)

    go(test())


@pytest.mark.parametrize(
    ("lie", "payload"),
    [
        ({}, 1), ({}, 2), ({"loss": math.nan}, 0), ({"loss": math.inf}, 0), ({"compute_s": math.nan}, 0),
        ({"compute_s": -1.0}, 0), ({"wait_s": math.inf}, 0), ({"num_items": -1}, 0), ({"num_items": 9}, 0),
    ],
)  # fmt: skip
def test_numbers_that_are_none_have_no_part_in_the_step(lie: dict[str, float], payload: int) -> None:
    """Its share is consumed and counted; the step is made of what the others have sent."""

    async def test() -> None:
        cluster, node, liar = await joined("syncps")
        with await asyncio.to_thread(wire_to, cluster, node, EARLY) as wire:
            await given_work(node.server, wire, liar, node)
            plain = list({**GOOD, **lie}.values())
            wire.say(liar.frame("role", Update.code, wire.number, wire.ack, plain, liar.payloads[payload]))
            await until(lambda: node.theta.version == 1, "the step is made")
            assert node.counted("worker1") == {"role": 1}
            assert torch.equal(node.theta.weights, torch.full((NUMEL,), -3.5 / 2)), "worker 0's mean is 3.5"
            for task in node.tasks:
                task.cancel()
            await asyncio.gather(*node.tasks, return_exceptions=True)
        await cluster.close(0.0)

    go(test())


def test_who_asks_without_end_and_takes_nothing_is_cut_off() -> None:
    """It is answered as long as there is room, and reported; when it is gone the others do all there is to do."""

    async def test() -> None:
        cluster, node = await live("tcp", "edp")
        resident = resident_bytes()
        liar = Liar(6, numel=NUMEL, run="run", joined=LIAR.joined, generation=2)
        mine = cluster.credentials(LIAR)
        with await asyncio.to_thread(lambda: TcpWire(node.server.transport.address, mine, 2, deaf=True)) as wire:
            wire.say(liar.frame("join", Join.code, wire.number, 0, ["toy"]))  # only who has joined is sent weights
            for _ in range(3 * MAX_QUEUED_FRAMES):
                await asyncio.to_thread(wire.say, liar.frame("pull", Pull.code, wire.number, 0, [0]))
            enough = 2 * MAX_QUEUED_FRAMES
            await until(lambda: node.server.refusals["worker1", "not sent: queue full"] >= enough, "no room any more")
            (silent,) = [event for event in cluster.of("silent", SERVER) if event["peer"] == "worker1"]
            assert "takes nothing: 1024 frames to worker1 are unacknowledged" in silent["reason"]
            assert resident_bytes() - resident < MAX_QUEUED_BYTES + MEMORY_BOUND
            cluster.view_all(3, SERVER, W0)
            await node.finish()
            assert_each_sample_once(node)
        await cluster.close(0.0)

    go(test())


def assert_each_sample_once(node: Live) -> None:
    done = Counter(position for step in node.notes.commits for s in step.spans for position in range(*s[1:]))
    assert done == dict.fromkeys(range(COURSE.num_samples), COURSE.epochs)


def test_who_joins_again_and_again_is_given_no_more_work() -> None:
    async def test() -> None:
        cluster, node, liar = await joined("edp")
        node.local.gate.clear()
        with await asyncio.to_thread(wire_to, cluster, node, EARLY) as wire:
            for _ in range(50):
                wire.say(liar.frame("join", Join.code, wire.number, wire.ack, ["toy"]))
            refused = "refused/worker1"
            await until(lambda: node.role.counts[refused] == 49, "all but the first are refused")
            assert node.notes.events["joined", "worker1"] == 1
            assert node.role.leases.held("worker1") == LEASES_AHEAD
            cluster.view_all(2, SERVER, W0)
            await node.finish()
            assert_each_sample_once(node)
        await cluster.close(0.0)

    go(test())

"""What every transport must do, written once and run over each of them."""

from __future__ import annotations

import asyncio
import random
import socket
import time
from typing import Any

import pytest
import torch

from smolcluster.comms import curve
from smolcluster.comms.peers import BUFFERS_PER_PEER, MAX_WAITING, NodePeers, Patience
from smolcluster.comms.session import MAX_QUEUED_FRAMES
from smolcluster.comms.transport import tcp
from smolcluster.errors import PeerLost
from smolcluster.messages import Grant, Params, Pull, Push
from smolcluster.ports import Delivery, Received, ViewChanged
from tests.comms.cluster import (
    KINDS,
    LARGE,
    LAYOUTS,
    NETWORKED,
    PATIENCE,
    QUICK,
    SERVER,
    WITHIN_S,
    Cluster,
    Relay,
    go,
    receive,
    together,
    until,
    worker,
)

pytestmark = pytest.mark.usefixtures("nothing_left")
every = pytest.mark.parametrize("kind", KINDS)
networked = pytest.mark.parametrize("kind", NETWORKED)
W0, W1 = worker(0), worker(1)


def push(number: int, gradient: torch.Tensor) -> Push:
    return Push(
        lease=number, version=0, num_samples=1, num_items=1, loss=0.5, compute_s=0.0, wait_s=0.0, gradient=gradient
    )


def numbered(number: int) -> torch.Tensor:
    """A large tensor that says which one it is, at every place."""
    return torch.arange(LARGE, dtype=torch.float32).add_(number)


def numbers(messages: list[Any]) -> list[int]:
    """What :func:`send_numbered` has put into messages, after a look at all of each tensor."""
    found = []
    for message in messages:
        if isinstance(message, Push | Params):
            tensor = message.gradient if isinstance(message, Push) else message.parameters
            number = message.lease if isinstance(message, Push) else message.version
            assert torch.equal(tensor, numbered(number))
            found.append(number)
        else:
            found.append(message.version if isinstance(message, Pull) else message.leases[0])
    return found


def send_numbered(node: NodePeers, to: str, number: int, *, large: bool) -> Delivery:
    """Message ``number`` of a node to another, of a kind that its role may send."""
    if node.me.role == "worker":
        return node.send(to, push(number, numbered(number)) if large else Pull(version=number))
    if large:
        return node.send(to, Params(version=number, reason="", parameters=numbered(number)))
    return node.send(to, Grant(leases=(number, 0, 0, 1)))


async def ping_pong(a: NodePeers, b: NodePeers, seconds: float) -> None:
    """Exchange messages for a while: time passes for everybody else, and this pair is well."""
    end, number = time.monotonic() + seconds, 0
    while time.monotonic() < end or number < 20:
        number += 1
        send_numbered(a, b.me.name, number, large=False)
        assert numbers(await receive(b, 1)) == [number]
        send_numbered(b, a.me.name, number, large=False)
        assert numbers(await receive(a, 1)) == [number]


# --- order, completeness ---------------------------------------------------------------------------------


@every
def test_many_messages_both_ways_in_order_each_once(kind: str) -> None:
    async def test() -> None:
        cluster = together(kind, SERVER, W0, W1)
        server, *workers = cluster.nodes.values()
        count = 400

        async def talk(node: NodePeers, to: str) -> None:
            for number in range(count):
                delivery = send_numbered(node, to, number, large=number % 40 == 7)
                if number % 40 == 7:
                    await delivery.wait(WITHIN_S)

        async def hear(node: NodePeers, senders: int) -> dict[str, list[Any]]:
            heard: dict[str, list[Any]] = {}
            while sum(map(len, heard.values())) < count * senders:
                event = await node.next(asyncio.get_running_loop().time() + WITHIN_S, "a message")
                assert event is not None
                if isinstance(event, Received):
                    heard.setdefault(event.sender.name, []).extend(numbers([event.message]))
            return heard

        results = await asyncio.gather(
            hear(server, 2),
            *(hear(node, 1) for node in workers),
            *(talk(node, "server") for node in workers),
            *(talk(server, node.me.name) for node in workers),
        )
        want = list(range(count))
        assert results[0] == {"worker0": want, "worker1": want}
        assert results[1:3] == [{"server": want}, {"server": want}]
        assert not any(node.refusals for node in cluster.nodes.values())
        await cluster.close()

    go(test())


@every
def test_a_big_payload_is_intact_and_its_bytes_are_counted(kind: str) -> None:
    numel = 10_000_000  # 40 MB

    async def test() -> None:
        layouts = {name: LAYOUTS[name]._replace(numel=numel) for name in ("gradient", "parameters")}
        cluster = together(kind, SERVER, W0, layouts=layouts)
        server, node = cluster.nodes.values()
        gradient = torch.randn(numel, generator=torch.Generator().manual_seed(1))
        node.send("server", push(3, gradient))
        (message,) = await receive(server, 1)
        assert isinstance(message, Push)
        assert torch.equal(message.gradient, gradient)
        answer = server.send("worker0", Params(version=1, reason="", parameters=message.gradient))
        (back,) = await receive(node, 1)
        assert isinstance(back, Params)
        assert torch.equal(back.parameters, gradient)
        await answer.wait(WITHIN_S)
        sent, received = server.traffic()["sent"], node.traffic()["received"]
        for count in (sent, received, node.traffic()["sent"], server.traffic()["received"]):
            assert 4 * numel <= count < 4 * numel * 1.005 + 10_000
        await cluster.close()

    go(test())


@every
def test_start_order_does_not_matter(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The worker knows the view, dials and sends before the server knows of it; in the other order as well."""
    monkeypatch.setattr(tcp, "VIEW_S", 0.05)
    monkeypatch.setattr(curve, "VIEW_S", 0.05)

    async def test() -> None:
        for first in (0, 1):
            cluster = Cluster(kind)
            nodes = cluster.start(SERVER, W0)
            members = (SERVER, W0)
            cluster.view(nodes[first], 1, members)
            other = nodes[1 - first]
            for number in range(10):
                send_numbered(nodes[first], other.me.name, number, large=number == 5)
            if cluster.config.separate_processes:
                name = nodes[first].me.name  # the one who dials has been turned away at least once
                await until(lambda n=nodes[1], f=first: f == 0 or n.transport.silent_for("server")[1][:2] != "no", name)
            cluster.view(other, 1, members)
            assert numbers(await receive(other, 10)) == list(range(10))
            await cluster.close()

    go(test())


@networked
def test_a_server_that_comes_late_is_found(kind: str) -> None:
    async def test() -> None:
        async with Relay(None) as wire:
            cluster = Cluster(kind, via={"server": wire.address})
            (node,) = cluster.start(W0)
            cluster.view(node, 1, (SERVER, W0))
            for number in range(10):
                send_numbered(node, "server", number, large=False)
            await until(lambda: "no connection yet" not in node.transport.silent_for("server")[1], "an attempt")
            (server,) = cluster.start(SERVER)
            cluster.view(server, 1, (SERVER, W0))
            wire.target = server.transport.address
            assert numbers(await receive(server, 10)) == list(range(10))
            await cluster.close()

    go(test())


# --- deliveries and back-pressure --------------------------------------------------------------------------


@every
def test_a_delivery_is_done_when_the_peer_has_it_and_its_memory_is_free_then(kind: str) -> None:
    async def test() -> None:
        cluster = together(kind, SERVER, W0)
        server, node = cluster.nodes.values()
        gradient = numbered(1)
        delivery = node.send("server", push(1, gradient))
        await delivery.wait(WITHIN_S)  # although the role has not read it
        assert delivery.done
        gradient.zero_()
        assert numbers(await receive(server, 1)) == [1]
        await delivery.wait(0.0)  # once done, always done
        await cluster.close()

    go(test())


@every
def test_a_delivery_to_oneself_is_done_at_once(kind: str) -> None:
    async def test() -> None:
        cluster = together(kind, SERVER, W0)
        server = cluster.nodes[SERVER]
        delivery = server.send("server", Pull(version=5))
        assert delivery.done
        event = await receive(server, 1)
        assert numbers(event) == [5]
        await cluster.close()

    go(test())


@every
@pytest.mark.parametrize("large", [False, True], ids=["small", "large"])
def test_who_does_not_read_stops_the_sender_and_loses_nothing(kind: str, large: bool) -> None:
    """As many messages are taken in as there is room for, no matter how long; others are not slowed down."""

    async def test() -> None:
        cluster = together(kind, SERVER, W0, W1)
        server, blocked, well = cluster.nodes.values()
        room = BUFFERS_PER_PEER if large else MAX_WAITING
        count = room + 40
        deliveries = [send_numbered(server, "worker0", number, large=large) for number in range(count)]
        await until(lambda: sum(d.done for d in deliveries) == room, "the room is full")
        await ping_pong(server, well, 1.5 * QUICK["lost_after_s"])
        assert sum(d.done for d in deliveries) == room
        silent = [e for e in cluster.events if e["event"] == "silent"]
        assert not silent, "who does not read is not dead"
        with pytest.raises(PeerLost, match="lost worker0 during sending .*: not taken within 0.05 s"):
            await deliveries[-1].wait(0.05)
        for number in range(count):
            assert numbers(await receive(blocked, 1)) == [number]
        await deliveries[-1].wait(WITHIN_S)
        assert not blocked.refusals
        await cluster.close()

    go(test())


@every
def test_a_queue_that_only_grows_is_cut_off_and_the_role_lives(kind: str) -> None:
    """A peer that asks and asks but takes nothing: its messages are dropped, counted, and it is reported."""

    async def test() -> None:
        cluster = together(kind, SERVER, W0, W1)
        server, blocked, well = cluster.nodes.values()
        count = MAX_QUEUED_FRAMES + MAX_WAITING + 100
        deliveries = [send_numbered(server, "worker0", number, large=False) for number in range(count)]
        dropped = server.refusals["worker0", "not sent: queue full"]
        assert 100 - MAX_WAITING <= dropped <= 100 + MAX_WAITING
        assert all(d.done for d in deliveries[-50:]), "nobody waits for what was never sent"
        (silent,) = cluster.of("silent", SERVER)
        assert silent["peer"] == "worker0"
        assert "1024 frames to worker0 are unacknowledged" in silent["reason"]
        await ping_pong(server, well, 0.0)
        assert numbers(await receive(blocked, count - dropped)) == list(range(count - dropped))
        await cluster.close()

    go(test())


# --- membership --------------------------------------------------------------------------------------------


@every
def test_what_is_for_or_from_a_removed_member_is_dropped_and_counted(kind: str) -> None:
    async def test() -> None:
        cluster = together(kind, SERVER, W0, W1)
        server, removed, well = cluster.nodes.values()
        send_numbered(removed, "server", 1, large=False)
        assert numbers(await receive(server, 1)) == [1]
        on_its_way = [send_numbered(server, "worker0", number, large=True) for number in range(10)]
        cluster.view(server, 2, (SERVER, W1))
        cluster.view(well, 2, (SERVER, W1))
        for delivery in on_its_way:
            await delivery.wait(0.0)  # nobody waits for who is gone
        later = send_numbered(server, "worker0", 99, large=False)
        assert later.done
        assert server.refusals["worker0", "not sent: no member"] == 1
        for number in range(5):
            send_numbered(removed, "server", number, large=False)
        if cluster.config.separate_processes:  # turned away at the handshake, or frame by frame
            turned_away = ("", "refused"), ("", "handshake"), ("worker0", "not a member")
            await until(lambda: any(server.refusals[reason] for reason in turned_away), "it is turned away")
        event = await server.next(asyncio.get_running_loop().time() + 1.0, "the change")
        assert isinstance(event, ViewChanged)
        assert (event.lost, event.joined) == (("worker0",), ())
        await ping_pong(server, well, 0.0)  # and of the five messages none comes in between
        await cluster.close(flush_within=0.0)

    go(test())


@networked
def test_a_member_that_comes_back_is_a_new_one(kind: str) -> None:
    """The restarted node starts at number 0 and gets nothing of the old one's; the old one still talks, in vain."""

    async def test() -> None:
        cluster = together(kind, SERVER, W0)
        server, ghost = cluster.nodes.values()
        for number in range(30):
            send_numbered(ghost, "server", number, large=number == 20)
        assert numbers(await receive(server, 30)) == list(range(30))
        unread = send_numbered(ghost, "server", 30, large=False)
        await unread.wait(WITHIN_S)
        await until(lambda: bool(server._mailbox._events), "it waits in the mailbox while its sender is replaced")
        for number in range(100, 110):
            send_numbered(server, "worker0", number, large=True)
        back = worker(0, joined=3)
        (again,) = cluster.start(back)
        cluster.view(server, 3, (SERVER, back))  # gone and back in one view
        cluster.view(again, 3, (SERVER, back))
        for number in range(40, 60):
            send_numbered(ghost, "server", number, large=False)
            send_numbered(again, "server", 1000 + number, large=number == 50)
            send_numbered(server, "worker0", 2000 + number, large=number == 50)
        assert numbers(await receive(server, 21)) == [30, *range(1040, 1060)]
        assert numbers(await receive(again, 20)) == list(range(2040, 2060))
        assert server.transport.is_up("worker0")
        await cluster.close(flush_within=0.0)

    go(test())


@networked
def test_a_view_that_replaces_members_again_and_again_leaves_one_link(kind: str) -> None:
    async def test() -> None:
        cluster = Cluster(kind)
        (server,) = cluster.start(SERVER)
        for joined in range(1, 6):
            member = worker(0, joined=joined)
            (node,) = cluster.start(member)
            cluster.view(server, joined, (SERVER, member))
            cluster.view(node, joined, (SERVER, member))
            send_numbered(node, "server", joined, large=False)
        assert numbers(await receive(server, 1)) == [5], "only the last one is a member"
        await ping_pong(server, node, 0.0)
        await cluster.close(flush_within=0.0)

    go(test())


@every
def test_a_message_of_a_later_generation_waits_for_the_view(kind: str) -> None:
    async def test() -> None:
        cluster = together(kind, SERVER, W0, W1)
        server, ahead, well = cluster.nodes.values()
        members = (SERVER, W0, W1)
        cluster.view(ahead, 2, members)
        for number in range(3):
            send_numbered(ahead, "server", number, large=False)
        await ping_pong(server, well, 0.1)  # nothing of it comes meanwhile
        cluster.view(server, 2, members)
        assert numbers(await receive(server, 3)) == [0, 1, 2]
        assert not server.refusals
        await cluster.close()

    go(test())


@every
def test_a_message_of_a_later_generation_does_not_wait_for_ever(kind: str) -> None:
    async def test() -> None:
        cluster = together(kind, SERVER, W0, patience=Patience(connect_s=20, silent_s=20, lost_s=0.1))
        server, ahead = cluster.nodes.values()
        cluster.view(ahead, 2, (SERVER, W0))
        send_numbered(ahead, "server", 1, large=True)
        await until(lambda: server.refusals["worker0", "future generation"] == 1, "it is refused")
        cluster.view(ahead, 5000, (SERVER, W0))
        send_numbered(ahead, "server", 2, large=False)  # so far ahead that waiting is hopeless
        await until(lambda: server.refusals["worker0", "future generation"] == 2, "it is refused")
        await cluster.close()

    go(test())


@every
def test_a_message_of_an_older_generation_is_dropped_and_counted(kind: str) -> None:
    async def test() -> None:
        late = worker(0, joined=2) if KINDS[kind].separate_processes else W0
        cluster = Cluster(kind)
        server, node = cluster.start(SERVER, late)
        cluster.view(server, 3, (SERVER, worker(0, joined=2)))
        cluster.view(node, 1, (SERVER, late))  # it says that it knows nothing newer than 1
        send_numbered(node, "server", 1, large=True)
        await until(lambda: server.refusals["worker0", "old generation"] == 1, "it is refused")
        await cluster.close()

    go(test())


# --- deadlines and endings ---------------------------------------------------------------------------------


@networked
def test_silence_is_reported_and_a_silent_server_is_lost(kind: str) -> None:
    async def test() -> None:
        patience = Patience(connect_s=20.0, silent_s=QUICK["lost_after_s"], lost_s=1.0)
        cluster = Cluster(kind, patience=patience)
        server, node = cluster.start(SERVER, W0)
        async with Relay(server.transport.address) as wire:
            cluster.via["server"] = wire.address
            cluster.view_all(1, SERVER, W0)
            await ping_pong(server, node, 0.0)
            wire.open.clear()  # the connections stand, but nothing gets through
            frozen_at = time.monotonic()
            await until(lambda: bool(cluster.of("silent", SERVER)), "the server reports it")
            (silent,) = cluster.of("silent", SERVER)
            assert silent["peer"] == "worker0"
            assert "gives no sign of life for" in silent["reason"]
            with pytest.raises(PeerLost, match="lost server during waiting for weights: gives no sign of life for"):
                while True:
                    await node.next(asyncio.get_running_loop().time() + WITHIN_S, "weights")
            assert 0.9 < time.monotonic() - frozen_at < 5.0
            await cluster.close(flush_within=0.0)

    go(test())


@networked
def test_a_silent_peer_that_comes_back_goes_on(kind: str) -> None:
    async def test() -> None:
        cluster = Cluster(kind)
        server, node = cluster.start(SERVER, W0)
        async with Relay(server.transport.address) as wire:
            cluster.via["server"] = wire.address
            cluster.view_all(1, SERVER, W0)
            await ping_pong(server, node, 0.0)
            wire.open.clear()
            for number in range(20):
                send_numbered(node, "server", number, large=number == 10)
                send_numbered(server, "worker0", number, large=number == 10)
            await until(lambda: bool(cluster.of("silent", SERVER)), "the server reports it")
            wire.open.set()
            got = await asyncio.gather(receive(server, 20), receive(node, 20))
            assert [numbers(each) for each in got] == [list(range(20))] * 2
            await cluster.close()

    go(test())


@networked
def test_a_server_that_never_comes_is_lost(kind: str) -> None:
    async def test() -> None:
        async with Relay(None) as nobody:
            patience = Patience(connect_s=0.5, silent_s=20.0, lost_s=20.0)
            cluster = Cluster(kind, patience=patience, via={"server": nobody.address})
            (node,) = cluster.start(W0)
            cluster.view(node, 1, (SERVER, W0))
            began = time.monotonic()
            with pytest.raises(PeerLost, match=r"lost server during waiting for work: could not be connected to for 0"):
                while True:
                    await node.next(asyncio.get_running_loop().time() + WITHIN_S, "work")
            assert 0.4 < time.monotonic() - began < 3.0
            (silent,) = cluster.of("silent", W0)
            assert silent["peer"] == "server"
            await cluster.close(flush_within=0.0)

    go(test())


@every
def test_close_delivers_what_is_queued_and_says_goodbye(kind: str) -> None:
    async def test() -> None:
        cluster = together(kind, SERVER, W0)
        server, node = cluster.nodes.values()
        for number in range(50):
            send_numbered(node, "server", number, large=False)
        reading = asyncio.create_task(receive(server, 50))
        await node.close(flush_within=WITHIN_S)
        assert numbers(await reading) == list(range(50))
        if cluster.config.separate_processes:
            await until(lambda: server.transport.silent_for("worker0")[1] == "the peer said goodbye", "the goodbye")
            assert server.transport.has_left("worker0")
        await server.close(0.0)

    go(test())


@every
def test_close_does_not_wait_for_who_is_not_there(kind: str) -> None:
    async def test() -> None:
        cluster = Cluster(kind)
        (server,) = cluster.start(SERVER)
        cluster.view(server, 1, (SERVER, W0, W1))
        deliveries = [send_numbered(server, "worker0", number, large=True) for number in range(3)]
        began = time.monotonic()
        await server.close(flush_within=0.2)
        assert time.monotonic() - began < 3.0
        assert all(delivery.done for delivery in deliveries)

    go(test())


@every
def test_close_ends_a_reader_that_waits_for_room(kind: str) -> None:
    async def test() -> None:
        cluster = together(kind, SERVER, W0)
        server, node = cluster.nodes.values()
        deliveries = [send_numbered(server, "worker0", number, large=True) for number in range(8)]
        await until(lambda: sum(d.done for d in deliveries) == BUFFERS_PER_PEER, "the room is full")
        began = time.monotonic()
        await node.close(flush_within=0.0)
        await server.close(flush_within=0.0)
        assert time.monotonic() - began < 3.0

    go(test())


@networked
def test_a_stranger_in_the_middle_of_a_handshake_does_not_hold_up_the_end(kind: str) -> None:
    async def test() -> None:
        cluster = together(kind, SERVER, W0)
        server, node = cluster.nodes.values()
        strangers = [socket.create_connection(server.transport.address) for _ in range(3)]
        strangers[0].sendall(b"GET / HTTP/1.1\r\n\r\n")
        await ping_pong(server, node, 0.0)
        began = time.monotonic()
        await cluster.close()
        assert time.monotonic() - began < 5.0
        for stranger in strangers:
            stranger.close()

    go(test())


@networked
def test_a_port_in_use_is_an_os_error(kind: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        cluster = Cluster(kind)
        with pytest.raises(OSError, match="in use"):
            cluster.config.transports([cluster.credentials(SERVER)], "127.0.0.1", taken.getsockname()[1])


@networked
def test_ipv6(kind: str) -> None:
    async def test() -> None:
        cluster = Cluster(kind)
        transport = cluster.config.transports([cluster.credentials(SERVER)], "::1", 0)[0]
        server = NodePeers("run", SERVER, transport, PATIENCE, lambda event, **fields: None)
        cluster.nodes[SERVER] = server
        assert transport.address[0] == "::1"
        (node,) = cluster.start(W0)
        cluster.view_all(1, SERVER, W0)
        await ping_pong(server, node, 0.0)
        await cluster.close()

    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        return  # this machine has no IPv6
    go(test())


# --- bad wires ---------------------------------------------------------------------------------------------


@networked
@pytest.mark.parametrize("seed", [1, 2])
def test_connections_that_break_at_random_moments_lose_nothing(kind: str, seed: int) -> None:
    """Thousands of messages both ways over a wire that breaks in the middle of frames and handshakes."""
    count = 700

    async def test() -> None:
        cluster = Cluster(kind)
        server, node = cluster.start(SERVER, W0)
        async with Relay(server.transport.address, seed, mean_bytes=1_000_000) as wire:
            cluster.via["server"] = wire.address
            cluster.view_all(1, SERVER, W0)
            rng = random.Random(seed)
            large = {rng.randrange(count) for _ in range(12)}

            async def talk(sender: NodePeers, to: str) -> None:
                for number in range(count):
                    delivery = send_numbered(sender, to, number, large=number in large)
                    if number % 100 == 99:
                        await delivery.wait(WITHIN_S)

            async def hear(receiver: NodePeers) -> list[int]:
                return [numbers(await receive(receiver, 1))[0] for _ in range(count)]

            _, _, at_server, at_worker = await asyncio.gather(
                talk(node, "server"), talk(server, "worker0"), hear(server), hear(node)
            )
            assert at_server == list(range(count)), f"seed {seed}"
            assert at_worker == list(range(count)), f"seed {seed}"
            assert wire.breaks >= 20, f"seed {seed}: the wire broke {wire.breaks} times"
            await cluster.close()

    go(test())


@networked
def test_bytes_are_those_on_the_wire(kind: str) -> None:
    """Counters against a relay that counts what really passes; only handshakes are not in the counters."""

    async def test() -> None:
        cluster = Cluster(kind)
        server, node = cluster.start(SERVER, W0)
        async with Relay(server.transport.address) as wire:
            cluster.via["server"] = wire.address
            cluster.view_all(1, SERVER, W0)
            for number in range(300):
                await send_numbered(node, "server", number, large=number % 100 == 0).wait(WITHIN_S)
                assert numbers(await receive(server, 1)) == [number]
            send_numbered(server, "worker0", 1, large=True)
            await receive(node, 1)
            await cluster.close()
            handshake = 4_000 * wire.connections
            for sender, receiver, way in ((node, server, "there"), (server, node, "back")):
                passed = wire.forwarded[way]
                assert 0 <= passed - sender.traffic()["sent"] <= handshake, (way, passed, sender.traffic())
                assert 0 <= passed - receiver.traffic()["received"] <= handshake, (way, passed, receiver.traffic())

    go(test())

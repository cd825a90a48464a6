"""comms=zmq against a peer that speaks ZeroMQ as it likes, with or without a member's key."""

from __future__ import annotations

import asyncio
import math
from typing import Any

import pytest
import zmq
from zmq.utils import z85

from smolcluster.comms import curve, wire
from smolcluster.comms.chunks import CHUNK_BYTES, WINDOW
from smolcluster.comms.curve import BODY, HEAD, PREFIX, Prefix, size_on_wire
from smolcluster.comms.peers import NodePeers
from smolcluster.comms.security import Authority, Credentials, curve_keypair
from smolcluster.comms.transport.zmq import Zmq
from smolcluster.comms.wire import Envelope
from smolcluster.errors import LocalProtocolError
from smolcluster.messages import Pull
from tests.comms.cluster import SERVER, WITHIN_S, Cluster, go, receive, until, worker

pytestmark = pytest.mark.usefixtures("nothing_left")
W0, W1 = worker(0), worker(1)


class Dealer:
    """The other end, message by message."""

    def __init__(self, address: tuple[str, int], server_key: str, me: Credentials | None) -> None:
        self.context = zmq.Context()
        self.socket: Any = self.context.socket(zmq.DEALER)
        self.socket.linger = 0
        if me is not None:
            self.socket.curve_serverkey = server_key.encode()
            self.socket.curve_publickey = me.curve_public.encode()
            self.socket.curve_secretkey = me.curve_secret.encode()
        self.socket.connect(f"tcp://{address[0]}:{address[1]}")

    def __enter__(self) -> Dealer:
        return self

    def __exit__(self, *_: object) -> None:
        self.context.destroy(0)

    def say(self, kind: int, number: int = 0, used: int = 0, *body: bytes) -> None:
        self.socket.send_multipart([Prefix(kind, number, used).pack(), *body])

    def hello(self, expected: int = 0, used: int = 0, **changes: Any) -> None:
        self.say(wire.HELLO, expected, used, wire.encode(wire.HELLO, ENVELOPE._replace(**changes)))

    def is_answered(self) -> bool:
        """Say hello once more (what was sent on a broken connection is lost), and look for anything to read."""
        self.hello()
        return bool(self.socket.poll(50))

    async def answer(self) -> tuple[int, int, list[Any]]:
        """(kind, number, plain fields of its body) of the next message that is no heartbeat."""
        for _ in range(200):
            await until(lambda: bool(self.socket.poll(0)), "an answer")
            prefix, *body = self.socket.recv_multipart()
            *_, kind, _flags, number, _used = PREFIX.unpack(prefix)
            if kind != wire.HEARTBEAT:
                plain = wire.parse_meta(body[0][wire.HEADER.size :], 0).plain if body and kind in wire.CONTROL else []
                return kind, number, plain
        raise AssertionError("200 heartbeats and no answer")


ENVELOPE = Envelope("run", 1, "worker0", 1, -1, -1, [])


def pull(number: int, version: int, **changes: Any) -> bytes:
    """The header and meta of a good little frame in chunk ``number``."""
    return wire.encode(Pull.code, ENVELOPE._replace(seq=number, ack=0, plain=[version])._replace(**changes))


class Setting:
    """A server, and worker 0's key in the hands of the test; worker 1 is honest."""

    def __init__(self) -> None:
        self.cluster = Cluster("zmq")
        (self.server,) = self.cluster.start(SERVER)
        self.mine = self.cluster.credentials(W0)
        self.cluster.view(self.server, 1, (SERVER, W0, W1))

    def dealer(self, me: Credentials | None = None) -> Dealer:
        return Dealer(self.server.transport.address, self.cluster.credentials(SERVER).curve_public, me or self.mine)

    async def counted(self, reason: str, count: int = 1, peer: str = "worker0") -> None:
        await until(lambda: self.server.refusals[peer, reason] >= count, f"{reason} is counted")
        assert self.server.refusals[peer, reason] == count

    async def still_answers(self) -> None:
        (node,) = self.cluster.start(W1)
        self.cluster.view(node, 1, (SERVER, W0, W1))
        node.send("server", Pull(version=77))
        assert await receive(self.server, 1) == [Pull(version=77)]
        await self.cluster.close()


def test_a_good_peer_written_from_the_documentation() -> None:
    async def test() -> None:
        setting = Setting()
        with setting.dealer() as dealer:
            dealer.hello()
            assert await dealer.answer() == (wire.WELCOME, 0, [])
            for number in range(5):
                dealer.say(HEAD, number, 0, pull(number, 10 + number))
            assert await receive(setting.server, 5) == [Pull(version=10 + number) for number in range(5)]
            dealer.say(wire.GOODBYE)
            kind, _, _ = await dealer.answer()
            assert kind == wire.GOODBYE
            await until(lambda: not setting.server.transport.is_up("worker0"), "it is gone")
        assert not setting.server.refusals
        await setting.still_answers()

    go(test())


def test_who_has_no_members_key_gets_no_further_than_the_handshake() -> None:
    async def test() -> None:
        setting = Setting()
        server_key, address = setting.cluster.credentials(SERVER).curve_public, setting.server.transport.address
        strangers = [
            Dealer(address, server_key, None),  # no CURVE at all
            Dealer(address, server_key, Authority("run").issue("worker0", 1)),
            Dealer(address, server_key, setting.cluster.authority.issue("worker0", 1)),  # a key of this run, not in use
            Dealer(address, curve_keypair()[0], setting.mine),  # a member that expects another server
            Dealer(address, server_key, setting.cluster.credentials(SERVER)),  # nobody dials itself
        ]
        for stranger in strangers:
            stranger.hello()
        await until(lambda: setting.server.refusals["", "handshake"] >= len(strangers), "all are counted")
        assert setting.server.refusals.keys() == {("", "handshake")}
        assert not any(stranger.socket.poll(0) for stranger in strangers)
        for stranger in strangers:
            stranger.context.destroy(0)
        await setting.still_answers()

    go(test())


def test_before_the_first_view_nobody_is_let_in_and_nobody_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(curve, "VIEW_S", 0.1)

    async def test() -> None:
        cluster = Cluster("zmq")
        server, node = cluster.start(SERVER, W0)
        cluster.view(node, 1, (SERVER, W0))
        node.send("server", Pull(version=1))
        refused = "failed: it does not know our key (yet), or has another one"
        await until(lambda: node.transport.silent_for("server")[1].endswith(refused), "it was turned away")
        cluster.view(server, 1, (SERVER, W0))
        assert await receive(server, 1) == [Pull(version=1)]
        assert not server.refusals
        await cluster.close()

    go(test())


def test_a_member_may_dial_before_the_view_that_names_it_has_come() -> None:
    """Its key waits at the gate; so does that of a stranger, who is turned away in the end."""

    async def test() -> None:
        setting = Setting()
        transport = setting.server.transport
        new = worker(2, joined=2)
        mine = setting.cluster.credentials(new)
        with setting.dealer(mine) as dealer:
            dealer.hello(sender="worker2", joined=2, generation=2)
            await until(lambda: transport._gate.due_at < math.inf, "its key waits")
            setting.cluster.view(setting.server, 2, (SERVER, W0, W1, new))
            assert (await dealer.answer())[0] == wire.WELCOME
            assert not setting.server.refusals
        await setting.cluster.close(0.0)

    go(test())


def test_keys_that_wait_are_bounded_and_only_for_a_while() -> None:
    asked: list[bytes] = []
    with zmq.Context() as context:
        gate = curve.Gate(context)
        asking = [context.socket(zmq.DEALER) for _ in range(curve.MAX_QUESTIONS + 2)]
        for number, sock in enumerate(asking):
            sock.connect("inproc://zeromq.zap.01")
            key = bytes([number]) * 32
            sock.send_multipart([b"", b"1.0", b"1", b"", b"10.0.0.1", b"", b"CURVE", key])
            gate.hear(100.0)
            asked.append(z85.encode(key))
        assert gate.due_at == 100.0, "there is no room for the last two"
        assert gate.answer({}, 100.0) == ["10.0.0.1"] * 2
        assert gate.due_at == 100.0 + curve.VIEW_S
        assert gate.answer({asked[3]: "w#1"}, 101.0) == []
        assert asking[3].recv_multipart()[3:6] == [b"200", b"", b"w#1"]
        assert gate.answer({}, 102.0) == ["10.0.0.1"] * (curve.MAX_QUESTIONS - 1)
        assert asking[0].recv_multipart()[3:5] == [b"400", b"not a member (yet)"]
        for sock in (*asking, gate.socket):
            sock.close(0)


@pytest.mark.parametrize(
    ("changes", "reason", "text"),
    [
        ({"run": "other"}, "wrong identity", "worker0#1 says to be worker0#1 of run other"),
        ({"sender": "worker1"}, "wrong identity", "worker0#1 says to be worker1#1 of run run"),
        ({"joined": 2}, "wrong identity", "says to be worker0#2"),
        ({"expected": 1}, "wrong sequence", "wants to go on at chunk 1, possible are 0 to 0"),
        ({"used": 1}, "malformed", "acknowledges chunk 1, sent were 0"),
        ({"expected": 2**64 - 1}, "wrong sequence", "wants to go on at chunk 18446744073709551615"),
    ],
)
def test_a_hello_that_does_not_fit_is_answered_and_counted(changes: dict[str, Any], reason: str, text: str) -> None:
    async def test() -> None:
        setting = Setting()
        with setting.dealer() as dealer:
            dealer.hello(**changes)
            kind, _, (why,) = await dealer.answer()
            assert kind == wire.REFUSED
            assert text in why
            await setting.counted(reason)
            dealer.hello()
            assert await dealer.answer() == (wire.WELCOME, 0, [])
        await setting.still_answers()

    go(test())


HELLO = wire.encode(wire.HELLO, ENVELOPE)
GOOD_PREFIX = Prefix(HEAD, 0, 0).pack()
BAD_MESSAGES: dict[str, tuple[list[bytes], str]] = {
    "an empty part": ([b""], "malformed"),
    "a short prefix": ([GOOD_PREFIX[:-1], b"x"], "malformed"),
    "a long prefix": ([GOOD_PREFIX + b"x", b"x"], "malformed"),
    "another magic": ([b"SMOL" + GOOD_PREFIX[4:], b"x"], "malformed"),
    "another version": ([GOOD_PREFIX[:4] + b"\x02" + GOOD_PREFIX[5:], b"x"], "wrong version"),
    "flags": ([GOOD_PREFIX[:6] + b"\x00\x01" + GOOD_PREFIX[8:], b"x"], "wrong version"),
    "too many parts": ([GOOD_PREFIX, *[b"x"] * 12], "malformed"),
    "a chunk of nothing": ([GOOD_PREFIX], "malformed"),
    "an unknown kind": ([Prefix(99, 0, 0).pack(), b"x"], "malformed"),
    "a welcome": ([Prefix(wire.WELCOME, 0, 0).pack(), HELLO], "malformed"),
    "an acknowledgement of what was never sent": ([Prefix(wire.HEARTBEAT, 0, 5).pack()], "malformed"),
    "a gap": ([Prefix(HEAD, 1, 0).pack(), pull(1, 0)], "wrong sequence"),
    "the largest number": ([Prefix(HEAD, 2**64 - 1, 0).pack(), pull(1, 0)], "wrong sequence"),
    "a hello without a body": ([Prefix(wire.HELLO, 0, 0).pack()], "malformed"),
    "a hello of two parts": ([Prefix(wire.HELLO, 0, 0).pack(), HELLO, HELLO], "malformed"),
    "a hello that is too short": ([Prefix(wire.HELLO, 0, 0).pack(), HELLO[:19]], "malformed"),
    "a hello that is garbage": ([Prefix(wire.HELLO, 0, 0).pack(), HELLO[:20] + b"\xc1"], "malformed"),
    "a hello with a payload": (
        [Prefix(wire.HELLO, 0, 0).pack(), wire.HEADER.pack(b"SMOL", 1, 1, 0, len(HELLO) - 20, 2**63) + HELLO[20:]],
        "oversized",
    ),
}


@pytest.mark.parametrize("what", BAD_MESSAGES)
def test_a_bad_message_ends_the_connection_and_the_next_one_goes_on(what: str) -> None:
    parts, reason = BAD_MESSAGES[what]

    async def test() -> None:
        setting = Setting()
        with setting.dealer() as dealer:
            dealer.hello()
            assert (await dealer.answer())[0] == wire.WELCOME
            dealer.socket.send_multipart(parts)
            assert (await dealer.answer())[0] == wire.REFUSED
            await setting.counted(reason)
            dealer.say(HEAD, 0, 0, pull(0, 5))  # without a new hello
            await setting.counted("no hello")
            dealer.hello()
            assert (await dealer.answer())[:2] == (wire.WELCOME, 0)
            dealer.say(HEAD, 0, 0, pull(0, 6))
            assert await receive(setting.server, 1) == [Pull(version=6)]
        await setting.still_answers()

    go(test())


def test_frames_that_lie_or_repeat_themselves_are_refused_one_by_one() -> None:
    async def test() -> None:
        setting = Setting()
        with setting.dealer() as dealer:
            dealer.hello()
            assert (await dealer.answer())[0] == wire.WELCOME
            heads = [
                pull(0, 1),
                pull(1, 2, sender="worker1"),
                pull(2, 3, joined=0),
                pull(3, 4, run="other"),
                pull(4, 5, generation=0),
                pull(7, 6),
                wire.encode(200, ENVELOPE._replace(seq=6)),
                pull(7, 8),
            ]
            for number, head in enumerate(heads):
                dealer.say(HEAD, number, 0, head)
            dealer.say(HEAD, 3, 0, pull(3, 9))
            dealer.say(BODY, 8, 0, b"payload of nothing")
            dealer.say(HEAD, 9, 0, pull(9, 10))
            versions = [message.version for message in await receive(setting.server, 3)]  # type: ignore[union-attr]
            assert versions == [1, 8, 10]
            counts = {reason: n for (peer, reason), n in setting.server.refusals.items() if peer == "worker0"}
            assert counts == {
                "wrong identity": 2,
                "wrong run": 1,
                "old generation": 1,
                "malformed": 2,
                "unknown type": 1,
                "duplicate": 1,
            }
        await setting.still_answers()

    go(test())


def test_who_sends_more_than_the_window_is_cut_off() -> None:
    """The role does not read: 64 messages wait for it, 16 chunks for them; more is not kept in memory."""

    async def test() -> None:
        setting = Setting()
        with setting.dealer() as dealer:
            dealer.hello()
            assert (await dealer.answer())[0] == wire.WELCOME
            for number in range(64 + WINDOW + 20):
                dealer.say(HEAD, number, 0, pull(number, number))
            await setting.counted("flood")
            assert (await dealer.answer())[0] == wire.REFUSED
            pair = setting.server.transport.pairs["worker0"]
            assert pair.receiver.incoming.expected - pair.receiver.used <= WINDOW
            taken = await receive(setting.server, pair.receiver.incoming.expected)
            assert taken == [Pull(version=number) for number in range(len(taken))]
        await setting.still_answers()

    go(test())


def test_a_part_that_is_too_large_is_not_even_received() -> None:
    async def test() -> None:
        setting = Setting()
        with setting.dealer() as dealer:
            dealer.hello()
            assert (await dealer.answer())[0] == wire.WELCOME
            dealer.say(HEAD, 0, 0, pull(0, 1), bytes(2 * CHUNK_BYTES))
            await until(dealer.is_answered, "ZeroMQ has connected again by itself")
            assert (await dealer.answer())[:2] == (wire.WELCOME, 0)
        assert setting.server.transport.traffic()[1] < CHUNK_BYTES
        await setting.still_answers()

    go(test())


def test_the_key_says_who_speaks_whatever_name_the_connection_gives_itself() -> None:
    async def test() -> None:
        setting = Setting()
        (honest,) = setting.cluster.start(W1)
        setting.cluster.view(honest, 1, (SERVER, W0, W1))
        await until(lambda: setting.server.transport.is_up("worker1"), "worker 1 is there")
        with setting.dealer() as dealer:
            dealer.socket.disconnect(dealer.socket.last_endpoint)
            dealer.socket.setsockopt(zmq.ROUTING_ID, setting.server.transport.pairs["worker1"].route[1:])
            host, port = setting.server.transport.address
            dealer.socket.connect(f"tcp://{host}:{port}")
            dealer.hello(sender="worker1")
            assert (await dealer.answer())[0] == wire.REFUSED
            await setting.counted("wrong identity", peer="worker0")
            dealer.say(HEAD, 0, 0, pull(0, 66, sender="worker1"))
            await setting.counted("no hello", peer="worker0")
        honest.send("server", Pull(version=1))
        assert await receive(setting.server, 1) == [Pull(version=1)]
        await setting.cluster.close()

    go(test())


def test_a_key_is_needed_for_each_peer() -> None:
    async def test() -> None:
        cluster = Cluster("zmq")
        (server,) = cluster.start(SERVER)
        with pytest.raises(LocalProtocolError, match="no CURVE key of worker0 in the view: comms=zmq needs one"):
            server.transport.connect(W0, None)
        await cluster.close()

    go(test())


def test_a_transport_that_was_never_started_leaves_nothing() -> None:
    for _ in range(2):
        (transport,) = Zmq().transports([Authority("run").issue("server", 1)], "127.0.0.1", 0)
        transport.close(1.0)
        transport.close(1.0)


def test_deliveries_are_late_but_in_order_with_a_chaos_delay() -> None:
    async def test() -> None:
        config = Zmq(heartbeat_s=0.05, lost_after_s=0.4, chaos_delay_s=0.05)
        cluster = Cluster("zmq", config=config)
        server, node = cluster.start(SERVER, W0)
        cluster.view_all(1, SERVER, W0)
        began = asyncio.get_running_loop().time()
        for number in range(20):
            node.send("server", Pull(version=number))
        got = await receive(server, 20)
        assert got == [Pull(version=number) for number in range(20)]
        assert 0.1 < asyncio.get_running_loop().time() - began < WITHIN_S, "20 delays of 25 ms on average"
        await cluster.close()

    go(test())


def test_the_size_of_a_message_with_its_framing() -> None:
    """docs/wire_format.md: 33 bytes of CURVE for each part, then 2 bytes of ZMTP, or 9 beyond 255 bytes."""
    assert size_on_wire([bytes(24)]) == 24 + 33 + 2
    assert size_on_wire([bytes(222)]) == 222 + 33 + 2
    assert size_on_wire([bytes(223)]) == 223 + 33 + 9
    assert size_on_wire([bytes(24), bytes(CHUNK_BYTES)]) == 59 + CHUNK_BYTES + 42


def test_prefix() -> None:
    assert Prefix(HEAD, 5, 3).pack() == b"SMZQ\x01\x06\x00\x00" + (5).to_bytes(8, "big") + (3).to_bytes(8, "big")
    assert curve.parse_prefix([zmq.Frame(Prefix(HEAD, 5, 3).pack())]) == Prefix(HEAD, 5, 3)


@pytest.mark.parametrize(
    ("config", "key", "rule"),
    [
        (Zmq(encryption="off"), "comms.encryption", "must be on with comms=zmq: without CURVE nobody would be auth"),
        (Zmq(heartbeat_s=2.0), "comms.lost_after_s", "must be more than two heartbeats (comms.heartbeat_s=2)"),
    ],
)
def test_problems(config: Zmq, key: str, rule: str) -> None:
    (problem,) = config.problems(None)  # type: ignore[arg-type]
    assert problem.key == key
    assert rule in str(problem)
    assert list(Zmq().problems(None)) == []  # type: ignore[arg-type]


def test_what_a_node_says_of_a_peer_that_cannot_be_reached() -> None:
    async def test() -> None:
        cluster = Cluster("zmq", via={"server": ("127.0.0.1", 1)})
        (node,) = cluster.start(W0)
        cluster.view(node, 1, (SERVER, W0))
        text = "127.0.0.1:1 cannot be connected to"
        await until(lambda: node.transport.silent_for("server")[1] == text, "it says so")
        assert isinstance(node, NodePeers)
        await cluster.close(0.0)

    go(test())

"""One pair over stream sockets, with the test at the other end of the wire, byte by byte."""

from __future__ import annotations

import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from smolcluster.comms import wire
from smolcluster.comms.frames import Frame, Timing
from smolcluster.comms.link import Link
from smolcluster.comms.session import MAX_QUEUED_FRAMES
from smolcluster.comms.wire import Envelope, TensorSpec
from smolcluster.errors import LocalProtocolError, PeerProtocolError
from smolcluster.ports import Member

pytestmark = pytest.mark.usefixtures("nothing_left")
PEER = Member(name="w", role="worker", rank=0, joined=1)
TIMING = Timing(heartbeat_s=0.05, lost_after_s=5.0, timeout_s=5.0)
WITHIN_S = 10.0


@dataclass
class Landed:
    payload: list[memoryview]
    seq: int


@dataclass
class Notes:
    """A sink that takes everything and writes it down."""

    max_payload_bytes: int = 1 << 24
    taken: list[tuple[int, bytes]] = field(default_factory=list)
    admitted: list[int] = field(default_factory=list)
    abandoned: list[int] = field(default_factory=list)
    ups: list[bool] = field(default_factory=list)
    refusals: Counter[str] = field(default_factory=Counter)
    changed: threading.Condition = field(default_factory=threading.Condition)

    def stamp(self, seq: int, ack: int, plain: list[Any], tensors: tuple[TensorSpec, ...] = ()) -> Envelope:
        return Envelope("run", 1, "s", 1, seq, ack, plain, tensors)

    def admit(self, peer: Member, kind: int, envelope: Envelope) -> Landed:
        if kind == 99:
            raise PeerProtocolError("unknown type", "99")
        with self.changed:
            self.admitted.append(envelope.seq)
            self.changed.notify_all()
        return Landed([memoryview(bytearray(spec.num_bytes)) for spec in envelope.tensors], envelope.seq)

    def deliver(self, peer: Member, landing: Landed) -> None:
        with self.changed:
            self.taken.append((landing.seq, b"".join(bytes(view) for view in landing.payload)))
            self.changed.notify_all()

    def abandon(self, peer: Member, landing: Landed) -> None:
        with self.changed:
            self.abandoned.append(landing.seq)
            self.changed.notify_all()

    def link_changed(self, peer: Member, up: bool, reason: str) -> None:
        self.ups.append(up)

    def refused(self, peer: str, reason: str, detail: str) -> None:
        with self.changed:
            self.refusals[reason] += 1
            self.changed.notify_all()

    def until(self, true: Callable[[], bool]) -> None:
        with self.changed:
            assert self.changed.wait_for(true, WITHIN_S), vars(self)


class Ends:
    """A link that is dialled, and the other ends of its two connections."""

    def __init__(self, timing: Timing = TIMING) -> None:
        self.sink = Notes()
        self.link = Link(PEER, self.sink, timing, None)
        self.link.start()
        self.open: list[socket.socket] = []

    def connect(self, direction: Any, expected: int = 0) -> socket.socket:
        ours, theirs = socket.socketpair()
        theirs.settimeout(WITHIN_S)
        self.open.append(theirs)
        self.link.attach(direction, ours, expected)
        return theirs

    def close(self) -> None:
        self.link.close(0.0)
        for sock in self.open:
            sock.close()


@pytest.fixture
def ends() -> Iterator[Ends]:
    made = Ends()
    yield made
    made.close()


def frame(seq: int, payload: bytes = b"", kind: int = 18, ack: int = 0, **changes: Any) -> bytes:
    tensors = (TensorSpec("gradient", "uint8", len(payload)),) if payload else ()
    return wire.encode(kind, Envelope("run", 1, "w", 1, seq, ack, [], tensors)._replace(**changes)) + payload


def read(sock: socket.socket) -> tuple[int, Envelope, bytes]:
    def exactly(size: int) -> bytes:
        data = bytearray()
        while len(data) < size:
            part = sock.recv(min(size - len(data), 1 << 20))
            if not part:
                raise EOFError
            data += part
        return bytes(data)

    header = wire.parse_header(exactly(wire.HEADER.size), 1 << 40)
    return header.kind, wire.parse_meta(exactly(header.meta_bytes), header.payload_bytes), exactly(header.payload_bytes)


def next_frame(sock: socket.socket) -> tuple[int, Envelope, bytes]:
    """The next one that is no heartbeat."""
    while True:
        kind, envelope, payload = read(sock)
        if kind != wire.HEARTBEAT:
            return kind, envelope, payload


def small(number: int) -> Frame:
    return Frame(18, [number])


def large(size: int) -> Frame:
    return Frame(18, [], (TensorSpec("gradient", "uint8", size),), [memoryview(bytes(size))])


def test_frames_are_numbered_acknowledged_and_then_done(ends: Ends) -> None:
    out, into = ends.connect("out"), ends.connect("in")
    done: list[int] = []
    for number in range(3):
        ends.link.send(Frame(18, [number], done=lambda n=number: done.append(n)))
    assert [next_frame(out)[1][4:7] for _ in range(3)] == [(0, 0, [0]), (1, 0, [1]), (2, 0, [2])]
    into.sendall(frame(0, ack=2))
    ends.sink.until(lambda: bool(ends.sink.taken))
    assert done == [0, 1]


def test_a_received_frame_is_acknowledged_within_milliseconds(ends: Ends) -> None:
    slow = Ends(Timing(heartbeat_s=30.0, lost_after_s=60.0, timeout_s=60.0))
    out, into = slow.connect("out"), slow.connect("in")
    into.sendall(frame(0) + frame(1, b"abc"))
    began = time.monotonic()
    ack = 0
    while ack < 2:
        kind, envelope, _ = read(out)
        assert kind == wire.HEARTBEAT
        ack = envelope.ack
    assert time.monotonic() - began < 5.0
    slow.sink.until(lambda: len(slow.sink.taken) == 2)
    assert slow.sink.taken == [(0, b""), (1, b"abc")]
    slow.close()


def test_an_idle_link_shows_signs_of_life(ends: Ends) -> None:
    out = ends.connect("out")
    kinds = {read(out)[0] for _ in range(4)}
    assert kinds == {wire.HEARTBEAT}


def test_a_new_connection_goes_on_where_the_peer_says(ends: Ends) -> None:
    out = ends.connect("out")
    for number in range(5):
        ends.link.send(small(number))
    assert [next_frame(out)[1].seq for _ in range(5)] == [0, 1, 2, 3, 4]
    again = ends.connect("out", expected=3)
    assert [next_frame(again)[1].seq for _ in range(2)] == [3, 4]
    with pytest.raises(EOFError):
        while True:
            read(out)


def test_an_acknowledgement_that_overtakes_what_is_being_sent_again_does_not_stop_the_link(ends: Ends) -> None:
    """The peer takes in, from an older connection, frames that we are about to send again on the new one."""
    out, into = ends.connect("out"), ends.connect("in")
    size = 1 << 23  # more than socket buffers hold: the writer is in the middle of it
    ends.link.send(large(size))
    for number in range(1, 5):
        ends.link.send(small(number))
    assert out.recv(1) == b"S"
    into.sendall(frame(0, ack=3))  # it has frames 0 to 2 already
    ends.sink.until(lambda: bool(ends.sink.taken))
    left = wire.HEADER.size - 1 + len(wire.encode(18, ends.sink.stamp(0, 0, [], large(size).tensors)))
    left += size - wire.HEADER.size
    while left:
        left -= len(out.recv(min(left, 1 << 20)))
    assert [next_frame(out)[1].seq for _ in range(2)] == [3, 4]


def test_what_a_broken_connection_has_begun_is_abandoned_and_comes_again(ends: Ends) -> None:
    payload = bytes(range(256)) * 100
    breaks = 70
    for number in range(breaks):
        into = ends.connect("in")
        into.sendall(frame(0, payload)[: -1 - number])
        ends.sink.until(lambda n=number: len(ends.sink.admitted) == n + 1)
        into.close()
        ends.sink.until(lambda n=number: len(ends.sink.abandoned) == n + 1)
    ends.connect("in").sendall(frame(0, payload))
    ends.sink.until(lambda: bool(ends.sink.taken))
    assert ends.sink.taken == [(0, payload)]
    assert ends.sink.refusals["truncated"] == breaks


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (b"X" * 40, "malformed"),
        (frame(0)[:4] + b"\x09" + frame(0)[5:], "wrong version"),
        (wire.HEADER.pack(b"SMOL", 1, 18, 0, 10, 2**63), "oversized"),
        (wire.HEADER.pack(b"SMOL", 1, 18, 0, 2**20, 0), "oversized"),
        (frame(0, sender="x"), "wrong identity"),
        (frame(0, joined=2), "wrong identity"),
        (frame(1), "wrong sequence"),
        (frame(2**62 - 1), "wrong sequence"),
    ],
)
def test_a_fatal_fault_cuts_the_connection_and_the_next_one_is_good(ends: Ends, bad: bytes, reason: str) -> None:
    into = ends.connect("in")
    into.sendall(bad + frame(0, b"never read"))
    with pytest.raises(ConnectionResetError):  # or a plain end
        if into.recv(1) == b"":
            raise ConnectionResetError
    assert ends.sink.refusals == {reason: 1}
    assert ends.sink.taken == []
    ends.connect("in").sendall(frame(0, b"good"))
    ends.sink.until(lambda: bool(ends.sink.taken))
    assert ends.sink.taken == [(0, b"good")]


def test_other_faults_are_skipped_with_their_payload(ends: Ends) -> None:
    into = ends.connect("in")
    meta = b"\x90"
    into.sendall(
        frame(0, b"first")
        + frame(0, b"again")
        + (wire.HEADER.pack(b"SMOL", 1, 18, 0, len(meta), 5) + meta + b"12345")
        + frame(1, b"what is 99", kind=99)
        + frame(7, kind=wire.HELLO)
        + frame(7, kind=wire.REFUSED)
        + frame(2, b"last")
    )
    ends.sink.until(lambda: len(ends.sink.taken) == 2)
    assert ends.sink.taken == [(0, b"first"), (2, b"last")], "a frame of an unknown type counts as received"
    assert ends.sink.refusals == {"duplicate": 1, "malformed": 3, "unknown type": 1}


def test_after_a_goodbye_there_is_nothing_more(ends: Ends) -> None:
    out, into = ends.connect("out"), ends.connect("in")
    ends.sink.until(lambda: True)
    into.sendall(frame(-1, kind=wire.GOODBYE))
    with pytest.raises((EOFError, ConnectionResetError)):
        while True:
            read(out)
    assert ends.link.last_error == "the peer said goodbye"
    late = ends.connect("out")
    assert late.recv(1) == b"", "a connection that comes later is closed at once"


def test_close_says_goodbye_after_what_is_queued(ends: Ends) -> None:
    out, into = ends.connect("out"), ends.connect("in")
    ends.link.send(small(1))
    closing = threading.Thread(target=ends.link.close, args=(WITHIN_S,))
    closing.start()
    assert next_frame(out)[1].seq == 0
    into.sendall(frame(-1, ack=1, kind=wire.HEARTBEAT))
    assert next_frame(out)[0] == wire.GOODBYE
    closing.join()


def test_the_queue_has_a_limit() -> None:
    link = Link(PEER, Notes(), TIMING, None)
    for number in range(MAX_QUEUED_FRAMES):
        link.send(small(number))
    with pytest.raises(LocalProtocolError, match="1024 frames to w are unacknowledged"):
        link.send(small(0))


def test_connections_that_replace_each_other_quickly_are_all_closed(ends: Ends) -> None:
    ends.link.send(small(0))
    older = [ends.connect("out") for _ in range(20)]
    assert next_frame(older.pop())[1].seq == 0
    for sock in older:
        try:
            while sock.recv(1 << 16):
                pass
        except ConnectionResetError:
            continue

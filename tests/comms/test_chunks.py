"""Frames in pieces over channels that break: whatever happens, the sink gets every frame whole, in order, once."""

from __future__ import annotations

import random
from collections import Counter, deque
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from smolcluster.comms import wire
from smolcluster.comms.chunks import CHUNK_BYTES, WINDOW, Assembler, ChunkReceiver, ChunkSender, cut
from smolcluster.comms.frames import Frame
from smolcluster.comms.session import MAX_QUEUED_FRAMES
from smolcluster.comms.wire import Envelope, TensorSpec
from smolcluster.errors import LocalProtocolError, PeerProtocolError
from smolcluster.ports import Member

PEER = Member(name="w", role="worker", rank=0, joined=1)


@dataclass
class Landed:
    payload: list[memoryview]
    number: int


@dataclass
class Notes:
    """A sink that takes everything and writes it down."""

    max_payload_bytes: int = 1 << 24
    taken: list[tuple[int, bytes]] = field(default_factory=list)
    abandoned: list[int] = field(default_factory=list)
    refusals: Counter[str] = field(default_factory=Counter)

    def stamp(self, seq: int, ack: int, plain: list[Any], tensors: tuple[TensorSpec, ...] = ()) -> Envelope:
        return Envelope("run", 1, "w", 1, seq, ack, plain, tensors)

    def admit(self, peer: Member, kind: int, envelope: Envelope) -> Landed:
        if kind == 99:
            raise PeerProtocolError("unknown type", "99")
        return Landed([memoryview(bytearray(spec.num_bytes)) for spec in envelope.tensors], envelope.plain[0])

    def deliver(self, peer: Member, landing: Landed) -> None:
        self.taken.append((landing.number, b"".join(bytes(view) for view in landing.payload)))

    def abandon(self, peer: Member, landing: Landed) -> None:
        self.abandoned.append(landing.number)

    def link_changed(self, peer: Member, up: bool, reason: str) -> None: ...

    def refused(self, peer: str, reason: str, detail: str) -> None:
        self.refusals[reason] += 1


def content(number: int, sizes: list[int]) -> list[memoryview]:
    return [memoryview(random.Random(number * 10 + i).randbytes(size)) for i, size in enumerate(sizes)]


def make(number: int, sizes: list[int], kind: int = 18, done: Any = lambda: None) -> Frame:
    specs = tuple(TensorSpec(f"t{i}", "uint8", size) for i, size in enumerate(sizes))
    return Frame(kind, [number], specs, content(number, sizes), done)


def head_of(number: int, frame: Frame) -> memoryview:
    return memoryview(wire.encode(frame.kind, Envelope("run", 1, "w", 1, number, 0, frame.plain, frame.tensors)))


@pytest.mark.parametrize(
    ("sizes", "chunks"),
    [([], 1), ([1], 1), ([CHUNK_BYTES], 1), ([CHUNK_BYTES - 5, 5], 1), ([CHUNK_BYTES + 1], 3), ([CHUNK_BYTES, 1], 3)],
)
def test_cutting(sizes: list[int], chunks: int) -> None:
    frame = make(1, sizes)
    pieces = cut(frame)
    assert len(pieces) == chunks
    assert [piece.first for piece in pieces] == [True] + [False] * (chunks - 1)
    assert [piece.last for piece in pieces] == [False] * (chunks - 1) + [True]
    assert b"".join(bytes(v) for piece in pieces for v in piece.payload) == b"".join(map(bytes, frame.payload))
    assert all(sum(map(len, piece.payload)) <= CHUNK_BYTES for piece in pieces)


def test_cutting_does_not_copy() -> None:
    memory = bytearray(2 * CHUNK_BYTES)
    pieces = cut(Frame(18, [], (TensorSpec("t", "uint8", len(memory)),), [memoryview(memory)]))
    memory[CHUNK_BYTES] = 7
    assert pieces[2].payload[0][0] == 7


class Channel(RuleBasedStateMachine):
    """One direction: queue, window, channel that breaks, order and room at the other end, reader thread, frames."""

    def __init__(self) -> None:
        super().__init__()
        self.sender, self.receiver = ChunkSender(), ChunkReceiver()
        self.sink = Notes()
        self.assembler = Assembler(PEER, self.sink)
        self.channel: deque[tuple[int, bool, list[memoryview]]] | None = None
        self.arrived: deque[tuple[int, bool, list[memoryview]]] = deque()
        self.sizes: list[list[int]] = []
        self.done: list[int] = []

    @rule(sizes=st.lists(st.sampled_from([0, 1, 1000, CHUNK_BYTES, 3 * CHUNK_BYTES + 7]).filter(bool), max_size=3))
    def queue(self, sizes: list[int]) -> None:
        number = len(self.sizes)
        self.sizes.append(sizes)
        self.sender.add(make(number, sizes, done=lambda: self.done.append(number)), "w")

    @precondition(lambda self: self.channel is None)
    @rule()
    def open(self) -> None:
        self.acknowledge()
        self.sender.resume(self.receiver.incoming.expected)
        self.channel = deque()

    @precondition(lambda self: self.channel is not None)
    @rule(count=st.integers(1, 20))
    def send(self, count: int) -> None:
        assert self.channel is not None
        for _ in range(count):
            item = self.sender.next()
            if item is None:
                return
            number, chunk = item
            parts = [head_of(number, chunk.frame), *chunk.payload] if chunk.first else list(chunk.payload)
            self.channel.append((number, chunk.first, parts))
            self.sender.sent()

    @precondition(lambda self: bool(self.channel))
    @rule(count=st.integers(1, 20))
    def arrive(self, count: int) -> None:
        for _ in range(min(count, len(self.channel or ()))):
            assert self.channel
            number, first, parts = self.channel.popleft()
            self.receiver.accept(number)
            self.arrived.append((number, first, parts))

    @precondition(lambda self: bool(self.arrived))
    @rule(count=st.integers(1, 20))
    def use(self, count: int) -> None:
        for _ in range(min(count, len(self.arrived))):
            number, first, parts = self.arrived.popleft()
            if first:
                self.assembler.first(number, parts[0], parts[1:])
            else:
                self.assembler.rest(parts)
            self.receiver.used = number + 1

    @rule()
    def acknowledge(self) -> None:
        for frame in self.sender.acknowledge(self.receiver.used):
            frame.done()

    @precondition(lambda self: self.channel is not None)
    @rule()
    def break_down(self) -> None:
        self.channel = None

    @invariant()
    def whole_in_order_once(self) -> None:
        assert [number for number, _ in self.sink.taken] == list(range(len(self.sink.taken)))
        assert not self.sink.abandoned
        assert not self.sink.refusals

    @invariant()
    def released_in_order_after_use(self) -> None:
        assert self.done == list(range(len(self.done)))
        assert len(self.done) <= len(self.sink.taken)
        assert self.sender.backlog.frames == len(self.sizes) - len(self.done)

    @invariant()
    def bounded(self) -> None:
        assert len(self.arrived) + len(self.channel or ()) <= WINDOW

    def teardown(self) -> None:
        self.channel = None
        self.open()
        while self.sender.backlog.frames:
            self.send(10**9)
            self.arrive(10**9)
            self.use(10**9)
            self.acknowledge()
        for (number, payload), sizes in zip(self.sink.taken, self.sizes, strict=True):
            assert payload == b"".join(map(bytes, content(number, sizes)))
        assert self.done == list(range(len(self.sizes)))


TestChannel = Channel.TestCase
TestChannel.settings = settings(max_examples=25, stateful_step_count=50, deadline=None)


def test_the_receiver_refuses_what_is_out_of_order_or_too_much() -> None:
    receiver = ChunkReceiver()
    for number in range(WINDOW):
        receiver.accept(number)
    cases = ((0, "duplicate", False), (WINDOW + 1, "wrong sequence", True), (WINDOW, "flood", True))
    for number, reason, fatal in cases:
        with pytest.raises(PeerProtocolError) as caught:
            receiver.accept(number)
        assert (caught.value.reason, caught.value.fatal) == (reason, fatal)
    receiver.used = 1
    receiver.accept(WINDOW)


def test_the_sender_refuses_what_cannot_be() -> None:
    sender = ChunkSender()
    for number in range(3):
        sender.add(make(number, []), "w")
    sender.sent()
    with pytest.raises(PeerProtocolError, match="malformed: acknowledges chunk 2, sent were 1"):
        sender.acknowledge(2)
    sender.sent()
    assert len(sender.acknowledge(1)) == 1
    for expected in (0, 3):
        message = f"wrong sequence: wants to go on at chunk {expected}, possible are 1"
        with pytest.raises(PeerProtocolError, match=message):
            sender.resume(expected)
    sender.resume(1)
    assert sender.next() is not None


def test_the_queue_has_a_limit() -> None:
    sender = ChunkSender()
    for number in range(MAX_QUEUED_FRAMES):
        sender.add(make(number, []), "w")
    with pytest.raises(LocalProtocolError, match="1024 frames to w are unacknowledged"):
        sender.add(make(0, []), "w")


def refused_by(assembler: Assembler, number: int, head: memoryview, payload: list[memoryview]) -> str:
    with pytest.raises(PeerProtocolError) as caught:
        assembler.first(number, head, payload)
    return caught.value.reason


def test_a_bad_frame_is_skipped_with_all_its_chunks() -> None:
    sink = Notes()
    assembler = Assembler(PEER, sink)
    good = make(1, [4])
    head = bytes(head_of(0, good))
    oversized = memoryview(wire.HEADER.pack(b"SMOL", 1, 18, 0, len(head) - 20, 2**62) + head[20:])
    for bad, number, reason in (
        (memoryview(b"SMOL"), 0, "malformed"),
        (memoryview(b"X" + head[1:]), 0, "malformed"),
        (oversized, 0, "oversized"),
        (memoryview(head + b"\x00"), 0, "malformed"),
        (memoryview(head[:-1]), 0, "malformed"),
        (memoryview(wire.encode(18, Envelope("run", 1, "x", 1, 0, 0, [], ()))), 0, "wrong identity"),
        (memoryview(wire.encode(18, Envelope("run", 1, "w", 2, 0, 0, [], ()))), 0, "wrong identity"),
        (memoryview(wire.encode(wire.HEARTBEAT, Envelope("run", 1, "w", 1, 0, 0, [], ()))), 0, "malformed"),
        (memoryview(head), 7, "malformed"),
        (head_of(0, make(1, [4], kind=99)), 0, "unknown type"),
    ):
        assert refused_by(assembler, number, bad, [memoryview(b"1234")]) == reason
        assembler.rest([memoryview(b"of the bad frame")])
        assert assembler.between_frames
    assembler.first(0, memoryview(head), list(good.payload))
    assert sink.taken == [(1, bytes(good.payload[0]))]


def test_payload_that_nobody_announced() -> None:
    sink = Notes()
    assembler = Assembler(PEER, sink)
    with pytest.raises(PeerProtocolError, match="malformed: payload without a frame"):
        assembler.rest([memoryview(b"x")])
    assert refused_by(assembler, 0, head_of(0, make(1, [4])), [memoryview(b"12345")]) == "wrong size"
    assert sink.abandoned == [1]
    assembler.rest([memoryview(b"its rest")])
    assert sink.taken == []


def test_a_frame_that_is_not_completed_is_abandoned_and_counted() -> None:
    sink = Notes()
    assembler = Assembler(PEER, sink)
    assembler.first(0, head_of(0, make(1, [4])), [memoryview(b"123")])
    assert not assembler.between_frames
    assembler.first(1, head_of(1, make(2, [4])), [memoryview(b"5678")])
    assert (sink.abandoned, sink.refusals, sink.taken) == ([1], {"truncated": 1}, [(2, b"5678")])
    assembler.first(2, head_of(2, make(3, [4])), [])
    assembler.abandon()
    assert sink.abandoned == [1, 3]

"""Sequence numbers over connections that break at any moment: in order, each once, and nothing is lost."""

from __future__ import annotations

from collections import deque

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from smolcluster.comms.session import MAX_QUEUED_BYTES, MAX_QUEUED_FRAMES, Arrival, Backlog, Incoming, Outgoing
from smolcluster.errors import LocalProtocolError


class Sessions(RuleBasedStateMachine):
    """One direction. The wire keeps order and loses everything at a break; then the receiver says where to go on.

    As on the real wire, an acknowledgement may come on another connection than the frames, and thus late.
    """

    def __init__(self) -> None:
        super().__init__()
        self.outgoing: Outgoing[int] = Outgoing()
        self.incoming = Incoming()
        self.wire: deque[tuple[int, int]] | None = None
        self.next_to_send = 0
        self.acks: deque[int] = deque()
        self.produced = 0
        self.received: list[int] = []
        self.released: list[int] = []

    @rule()
    def produce(self) -> None:
        assert self.outgoing.add(self.produced) == self.produced
        self.produced += 1

    @precondition(lambda self: self.wire is None)
    @rule()
    def connect(self) -> None:
        self.wire = deque()
        self.released += self.outgoing.acknowledge(self.incoming.expected)
        resumed = self.outgoing.resume()
        self.next_to_send = resumed[0][0] if resumed else self.outgoing.next_seq
        assert self.next_to_send == self.incoming.expected

    @precondition(lambda self: self.wire is not None)
    @rule(count=st.integers(1, 5))
    def send(self, count: int) -> None:
        assert self.wire is not None
        for seq, frame in [pair for pair in self.outgoing.resume() if pair[0] >= self.next_to_send][:count]:
            self.wire.append((seq, frame))
            self.next_to_send = seq + 1

    @precondition(lambda self: bool(self.wire))
    @rule()
    def arrive(self) -> None:
        assert self.wire
        seq, frame = self.wire.popleft()
        assert self.incoming.judge(seq) is Arrival.NEW, "within one connection nothing is missing or repeated"
        self.incoming.received()
        self.received.append(frame)
        self.acks.append(self.incoming.expected)

    @precondition(lambda self: bool(self.acks))
    @rule()
    def acknowledge(self) -> None:
        self.released += self.outgoing.acknowledge(self.acks.popleft())

    @precondition(lambda self: self.wire is not None)
    @rule(keep_acks=st.booleans())
    def break_down(self, keep_acks: bool) -> None:
        self.wire = None
        if not keep_acks:
            self.acks.clear()

    @precondition(lambda self: self.received)
    @rule(data=st.data())
    def replay(self, data: st.DataObject) -> None:
        seq = data.draw(st.integers(0, len(self.received) - 1))
        before = self.incoming.duplicates
        assert self.incoming.judge(seq) is Arrival.DUPLICATE
        assert self.incoming.duplicates == before + 1

    @rule(ahead=st.integers(1, 100))
    def jump(self, ahead: int) -> None:
        assert self.incoming.judge(self.incoming.expected + ahead) is Arrival.GAP

    @rule(ahead=st.integers(1, 100))
    def acknowledge_the_future(self, ahead: int) -> None:
        before = list(self.outgoing.unacknowledged)
        assert self.outgoing.acknowledge(self.outgoing.next_seq + ahead) == []
        assert list(self.outgoing.unacknowledged) == before

    @invariant()
    def in_order_each_once(self) -> None:
        assert self.received == list(range(len(self.received)))

    @invariant()
    def kept_until_acknowledged(self) -> None:
        waiting = [frame for _, frame in self.outgoing.unacknowledged]
        assert self.released + waiting == list(range(self.produced))
        assert len(self.released) <= len(self.received), "nothing is released that has not arrived"

    def teardown(self) -> None:
        """Whatever has happened, one good connection brings the rest."""
        self.wire = None
        self.connect()
        self.send(10**9)
        while self.wire:
            self.arrive()
        self.released += self.outgoing.acknowledge(self.incoming.expected)
        assert self.received == list(range(self.produced)) == self.released


TestSessions = Sessions.TestCase
TestSessions.settings = settings(max_examples=60, stateful_step_count=60, deadline=None)


@given(st.integers(0, 50), st.integers(-3, 60))
def test_acknowledging_releases_what_is_older(added: int, expected: int) -> None:
    outgoing: Outgoing[int] = Outgoing()
    for number in range(added):
        outgoing.add(number)
    released = outgoing.acknowledge(expected)
    assert released == (list(range(expected)) if 0 <= expected <= added else [])
    assert outgoing.acknowledge(expected) == []


@pytest.mark.parametrize(("seq", "arrival"), [(0, Arrival.DUPLICATE), (1, Arrival.NEW), (2, Arrival.GAP)])
def test_judging_changes_nothing(seq: int, arrival: Arrival) -> None:
    incoming = Incoming(expected=1)
    assert incoming.judge(seq) is incoming.judge(seq) is arrival
    assert incoming.expected == 1


def test_a_backlog_has_a_limit_in_frames_and_in_bytes() -> None:
    backlog = Backlog()
    for _ in range(MAX_QUEUED_FRAMES):
        backlog.add(0, "w", 0)
    with pytest.raises(LocalProtocolError, match="1024 frames to w are unacknowledged"):
        backlog.add(0, "w", 0)
    backlog.done(0)
    backlog.add(MAX_QUEUED_BYTES, "w", 0)
    backlog.done(0)
    with pytest.raises(LocalProtocolError, match=f"{MAX_QUEUED_BYTES} bytes to w are unacknowledged"):
        backlog.add(1, "w", MAX_QUEUED_BYTES // 4)
    backlog.add(4, "w", MAX_QUEUED_BYTES // 4 + 1)  # four of the largest frames fit, however large
    assert (backlog.frames, backlog.payload_bytes) == (MAX_QUEUED_FRAMES, MAX_QUEUED_BYTES + 4)

"""Reliable order over connections that may break: sequence numbers, acknowledgements, resumption. Pure.

One direction between two members is a *session*. Each frame has the next sequence number and is kept until
the other side has acknowledged it. When a connection is reopened the receiver says which number it expects,
and the sender goes on from there: nothing is lost, and a frame that arrives twice is recognised.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from enum import Enum
from typing import Generic, TypeVar

F = TypeVar("F")


class Arrival(Enum):
    """What a sequence number means to the receiver."""

    NEW = "new"
    DUPLICATE = "duplicate"
    GAP = "gap"


@dataclass
class Outgoing(Generic[F]):
    """The sender's half. ``unacknowledged`` holds (sequence number, frame), oldest first."""

    next_seq: int = 0
    unacknowledged: deque[tuple[int, F]] = field(default_factory=deque)

    def add(self, frame: F) -> int:
        """Take a frame in; returns its sequence number."""
        seq = self.next_seq
        self.next_seq += 1
        self.unacknowledged.append((seq, frame))
        return seq

    def acknowledge(self, expected: int) -> list[F]:
        """The receiver expects number ``expected`` next: the frames that are done now."""
        done = []
        while self.unacknowledged and self.unacknowledged[0][0] < expected <= self.next_seq:
            done.append(self.unacknowledged.popleft()[1])
        return done

    def resume(self) -> list[tuple[int, F]]:
        """What has to be sent again on a new connection (after :meth:`acknowledge`)."""
        return list(self.unacknowledged)


@dataclass
class Incoming:
    """The receiver's half. ``expected`` is the next sequence number; it is also what we acknowledge."""

    expected: int = 0
    duplicates: int = 0

    def judge(self, seq: int) -> Arrival:
        """Whether number ``seq`` is the next one; changes nothing but the count of duplicates."""
        if seq == self.expected:
            return Arrival.NEW
        if seq < self.expected:
            self.duplicates += 1
            return Arrival.DUPLICATE
        return Arrival.GAP

    def received(self) -> None:
        """The expected frame is complete."""
        self.expected += 1

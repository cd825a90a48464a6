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

from smolcluster.errors import LocalProtocolError

F = TypeVar("F")
MAX_QUEUED_FRAMES = 1024
"""Unacknowledged frames to one peer. Roles answer each other, so a handful is normal."""
MAX_QUEUED_BYTES = 64 << 20
"""Unacknowledged payload to one peer, or :data:`QUEUED_PAYLOADS` times the largest frame, whichever is more."""
QUEUED_PAYLOADS = 4
"""Weights that the slowest may be behind; a role never lets anybody get so far behind."""


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
class Backlog:
    """What one peer has not acknowledged yet: it keeps memory of ours, so there is a limit to it."""

    frames: int = 0
    payload_bytes: int = 0

    def add(self, num_bytes: int, to: str, max_payload_bytes: int) -> None:
        """Make room for a frame of ``num_bytes``; LocalProtocolError where there is none."""
        limit = max(MAX_QUEUED_BYTES, QUEUED_PAYLOADS * max_payload_bytes)
        if self.frames >= MAX_QUEUED_FRAMES:
            raise LocalProtocolError(f"{MAX_QUEUED_FRAMES} frames to {to} are unacknowledged")
        if self.payload_bytes + num_bytes > limit:
            raise LocalProtocolError(f"{self.payload_bytes} bytes to {to} are unacknowledged (limit {limit})")
        self.frames += 1
        self.payload_bytes += num_bytes

    def done(self, num_bytes: int) -> None:
        self.frames -= 1
        self.payload_bytes -= num_bytes


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

"""Frames in pieces, over a channel that keeps order but may break at any moment. Pure: no sockets here.

A frame travels as one chunk with its header, its meta part and a small payload, or with the payload behind it
in chunks of :data:`CHUNK_BYTES`. Chunks are numbered, kept until the receiver has *used* them, and sent again
from where a reopened channel resumes. At most :data:`WINDOW` chunks are on their way or wait at the receiver:
that bounds its memory, and it is how back-pressure reaches the sender although the channel itself is always
read, so that signs of life and acknowledgements never wait behind a payload.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from smolcluster.comms import wire
from smolcluster.comms.frames import Frame, Sink
from smolcluster.comms.session import Arrival, Backlog, Incoming, Outgoing
from smolcluster.errors import PeerProtocolError
from smolcluster.ports import Member

CHUNK_BYTES = 1 << 19
"""Largest payload part of a chunk: encryption of one overlaps with decryption of the last."""
WINDOW = 16
"""Chunks that the sender may be ahead of the receiving role's memory: 8 MiB."""


class Chunk(NamedTuple):
    """A piece of a frame. The first one carries the header and, where it fits, the whole payload."""

    frame: Frame
    payload: Sequence[memoryview]
    first: bool
    last: bool


def cut(frame: Frame) -> list[Chunk]:
    """The chunks of a frame, in order."""
    if sum(len(view) for view in frame.payload) <= CHUNK_BYTES:
        return [Chunk(frame, frame.payload, first=True, last=True)]
    views = [view[i : i + CHUNK_BYTES] for view in frame.payload for i in range(0, len(view), CHUNK_BYTES)]
    behind = [Chunk(frame, [view], first=False, last=i == len(views)) for i, view in enumerate(views, start=1)]
    return [Chunk(frame, [], first=True, last=False), *behind]


@dataclass
class ChunkSender:
    """The sender's half of one direction. Not thread-safe."""

    outgoing: Outgoing[Chunk] = field(default_factory=Outgoing)
    next_to_send: int = 0
    backlog: Backlog = field(default_factory=Backlog)

    def add(self, frame: Frame, to: str, max_payload_bytes: int = 0) -> None:
        """Queue a frame; LocalProtocolError where too much is queued already."""
        self.backlog.add(frame.payload_bytes, to, max_payload_bytes)
        for chunk in cut(frame):
            self.outgoing.add(chunk)

    def next(self) -> tuple[int, Chunk] | None:
        """The chunk to send now, with its number; None where there is none or the window is full."""
        waiting = self.outgoing.unacknowledged
        index = self.next_to_send - waiting[0][0] if waiting else 0
        return waiting[index] if index < min(len(waiting), WINDOW) else None

    def sent(self) -> None:
        self.next_to_send += 1

    def acknowledge(self, used: int) -> list[Frame]:
        """The receiver has used all chunks before number ``used``: the frames that are done now."""
        if used > self.next_to_send:
            detail = f"acknowledges chunk {used}, sent were {self.next_to_send}"
            raise PeerProtocolError("malformed", detail, fatal=True)
        done = [chunk.frame for chunk in self.outgoing.acknowledge(used) if chunk.last]
        for frame in done:
            self.backlog.done(frame.payload_bytes)
        return done

    def resume(self, expected: int) -> None:
        """Go on at number ``expected`` on a new channel."""
        oldest = self.outgoing.unacknowledged[0][0] if self.outgoing.unacknowledged else self.outgoing.next_seq
        if not oldest <= expected <= self.next_to_send:
            detail = f"wants to go on at chunk {expected}, possible are {oldest} to {self.next_to_send}"
            raise PeerProtocolError("wrong sequence", detail, fatal=True)
        self.next_to_send = expected


@dataclass
class ChunkReceiver:
    """The receiver's half, before anything is looked at: order and room. ``used`` grows in another thread."""

    incoming: Incoming = field(default_factory=Incoming)
    used: int = 0

    def accept(self, number: int) -> None:
        """Chunk ``number`` has come; PeerProtocolError where it must not be taken."""
        arrival = self.incoming.judge(number)
        if arrival is Arrival.DUPLICATE:
            raise PeerProtocolError("duplicate", f"chunk {number} came again")
        if arrival is Arrival.GAP:
            raise PeerProtocolError("wrong sequence", f"chunk {number}, expected {self.incoming.expected}", fatal=True)
        if number - self.used >= WINDOW:
            raise PeerProtocolError("flood", f"chunk {number} came when {self.used} were used up", fatal=True)
        self.incoming.received()


class Assembler:
    """Puts frames together: judges each by its first chunk and copies payloads where the sink wants them."""

    def __init__(self, peer: Member, sink: Sink) -> None:
        self.peer, self.sink = peer, sink
        self._landing: Any = None
        self._views: list[memoryview] = []
        self._skipping = False

    def first(self, number: int, head: memoryview, payload: Sequence[memoryview]) -> None:
        """The first chunk of a frame. May block: back-pressure. PeerProtocolError refuses the frame as a whole."""
        if self._landing is not None:
            self.abandon()
            self.sink.refused(self.peer.name, "truncated", "a frame began before the last one had ended")
        self._skipping = True  # until it is admitted
        if len(head) < wire.HEADER.size:
            raise PeerProtocolError("malformed", f"a frame of {len(head)} bytes")
        header = wire.parse_header(head[: wire.HEADER.size], self.sink.max_payload_bytes)
        if header.meta_bytes != len(head) - wire.HEADER.size:
            raise PeerProtocolError("malformed", f"{header.meta_bytes} bytes of meta announced, {len(head)} in all")
        envelope = wire.parse_meta(head[wire.HEADER.size :], header.payload_bytes)
        if (envelope.sender, envelope.joined) != (self.peer.name, self.peer.joined):
            raise PeerProtocolError("wrong identity", f"{self.peer.name} says to be {envelope.sender}")
        if envelope.seq != number or header.kind in wire.CONTROL:
            raise PeerProtocolError("malformed", f"frame {envelope.seq} of kind {header.kind} in chunk {number}")
        self._landing = self.sink.admit(self.peer, header.kind, envelope)
        self._skipping = False
        self._views = [view for view in self._landing.payload if len(view)]
        self.rest(payload)

    @property
    def between_frames(self) -> bool:
        return self._landing is None

    def rest(self, payload: Sequence[memoryview]) -> None:
        """More of the payload."""
        if self._skipping:
            return
        if self._landing is None:
            raise PeerProtocolError("malformed", "payload without a frame")
        for part in payload:
            self._copy(part)
        if not self._views:
            landing, self._landing = self._landing, None
            self.sink.deliver(self.peer, landing)

    def abandon(self) -> None:
        """The frame that is being received will not be completed."""
        if self._landing is not None:
            landing, self._landing, self._views = self._landing, None, []
            self.sink.abandon(self.peer, landing)

    def _copy(self, part: memoryview) -> None:
        while len(part):
            if not self._views:
                self.abandon()
                self._skipping = True
                raise PeerProtocolError("wrong size", "more payload than was announced")
            view = self._views[0]
            count = min(len(view), len(part))
            view[:count] = part[:count]
            part = part[count:]
            if count < len(view):
                self._views[0] = view[count:]
            else:
                self._views.pop(0)

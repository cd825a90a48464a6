"""One pair of members on a channel of messages: what to send, what has come, and who is at the other end.

Knows no sockets. All methods belong to the thread that owns them, except :meth:`Pair.read` (a thread of its own,
because judging and taking in frames may block) and :meth:`Pair.send`.
"""

from __future__ import annotations

import math
import queue
import random
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from smolcluster.comms import wire
from smolcluster.comms.chunks import WINDOW, Assembler, ChunkReceiver, ChunkSender
from smolcluster.comms.curve import BODY, HANDSHAKE_S, HEAD, Prefix
from smolcluster.comms.frames import ACK_DELAY_S, Frame, Sink, Timing
from smolcluster.errors import PeerProtocolError
from smolcluster.ports import Member

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.02, 1.0
"""Between attempts to dial; grows by 1.6 each time."""
GOODBYE_S = 0.2
"""How long a goodbye may take to arrive and to be answered."""


class Pair:
    """The state of both directions. ``address`` is where to dial; None: the peer dials us."""

    def __init__(
        self, peer: Member, address: tuple[str, int] | None, curve_key: str, sink: Sink, timing: Timing, run: str
    ) -> None:
        self.peer, self.address, self.curve_key = peer, address, curve_key.encode()
        self.sink, self.timing, self.run = sink, timing, run
        self.user = f"{peer.name}#{peer.joined}"
        self.sender, self.receiver = ChunkSender(), ChunkReceiver()
        self.sent_bytes = self.received_bytes = 0
        self.last_heard = time.monotonic()
        self.last_error = "no connection yet"
        self.up = self.left = False
        self.route: bytes | None = None
        self.dealer: Any = None
        self.opened_at = self.retry_at = self.blocked_until = self.hold_until = self.last_sent = 0.0
        self.goodbye_at = math.inf
        self._pause = FIRST_PAUSE_S
        self._acknowledged = 0
        self._ack_due_at = math.inf
        self._lock = threading.Lock()
        self._arrived: queue.SimpleQueue[tuple[int, bool, list[memoryview]] | None] = queue.SimpleQueue()
        self.reader = threading.Thread(target=lambda: None)

    # --- other threads ------------------------------------------------------------------------------------

    def send(self, frame: Frame) -> None:
        with self._lock:
            self.sender.add(frame, self.peer.name, self.sink.max_payload_bytes)

    def start(self, wake: Callable[[], None]) -> None:
        name = f"reader from {self.peer.name}"
        self.reader = threading.Thread(target=self.read, args=(wake,), name=name, daemon=True)
        self.reader.start()

    def read(self, wake: Callable[[], None]) -> None:
        """Judge and take in what has arrived, until the end; may block in the sink."""
        assembler = Assembler(self.peer, self.sink)
        while (item := self._arrived.get()) is not None:
            number, first, parts = item
            try:
                if first:
                    assembler.first(number, parts[0], parts[1:])
                else:
                    assembler.rest(parts)
            except PeerProtocolError as error:
                self.sink.refused(self.peer.name, error.reason, str(error))
            del item, parts  # ZeroMQ's memory, as soon as it is copied
            self.receiver.used = number + 1
            many = number + 1 - self._acknowledged >= WINDOW // 4
            if many or assembler.between_frames:
                self._ack_due_at = min(self._ack_due_at, time.monotonic() + (0.0 if many else ACK_DELAY_S))
                wake()
        assembler.abandon()

    def end(self) -> None:
        """Have :meth:`read` return, after what has arrived."""
        self._arrived.put(None)

    # --- time ---------------------------------------------------------------------------------------------

    def due_at(self) -> float:
        """When something has to be done for this peer although nothing comes."""
        if self.goodbye_at < math.inf:
            return self.goodbye_at + GOODBYE_S
        if self.left or (not self.up and self.address is None):
            return math.inf
        if not self.up:
            return self.opened_at + HANDSHAKE_S if self.dealer else self.retry_at
        lost = math.inf if self.address is None else self.last_heard + self.timing.lost_after_s
        return max(self.blocked_until, min(self._sign_of_life_at, lost, self.hold_until or math.inf))

    @property
    def _sign_of_life_at(self) -> float:
        return min(self._ack_due_at, self.last_sent + self.timing.heartbeat_s)

    def is_silent(self, now: float) -> bool:
        return self.up and now >= self.last_heard + self.timing.lost_after_s

    def retry_later(self, now: float) -> None:
        """The last attempt to dial was in vain, or its connection is gone."""
        self.retry_at = now + self._pause * random.uniform(0.5, 1.5)
        self._pause = min(1.6 * self._pause, LONGEST_PAUSE_S)

    # --- sending ------------------------------------------------------------------------------------------

    def next_chunk(self, now: float) -> tuple[int, int, list[Any]] | None:
        """(kind, number, parts) of the chunk to send now; None where there is none, or it is held back."""
        with self._lock:
            item = self.sender.next()
        if item is None or (item[1].first and self._held(now)):
            return None
        number, chunk = item
        if not chunk.first:
            return BODY, number, list(chunk.payload)
        frame = chunk.frame
        head = wire.encode(frame.kind, self.sink.stamp(number, self.receiver.used, frame.plain, frame.tensors))
        return HEAD, number, [head, *chunk.payload]

    def chunk_sent(self) -> None:
        self.hold_until = 0.0
        self.sender.sent()

    def _held(self, now: float) -> bool:
        """Whether the next frame is being delayed (``chaos_delay_s``)."""
        if self.timing.chaos_delay_s and not self.hold_until:
            self.hold_until = now + random.uniform(0, self.timing.chaos_delay_s)
        return now < self.hold_until

    def heartbeat_due(self, now: float) -> bool:
        return self.up and now >= max(self.blocked_until, self._sign_of_life_at)

    def prefix(self, kind: int, number: int) -> Prefix:
        """With the newest acknowledgement; to be sent, or the acknowledgement is :meth:`unsent`."""
        self._ack_due_at = math.inf  # before `used` is read: what is used later is due again
        self._acknowledged = self.receiver.used
        return Prefix(kind, number, self._acknowledged)

    def unsent(self) -> None:
        self._ack_due_at = 0.0

    @property
    def flushed(self) -> bool:
        return self.sender.backlog.frames == 0

    # --- receiving ----------------------------------------------------------------------------------------

    def take(self, prefix: Prefix, body: Sequence[Any]) -> None:
        """A message on a connection that both sides have agreed on."""
        self.last_heard = time.monotonic()
        self._acknowledge(prefix.used)
        if prefix.kind in (HEAD, BODY):
            if not body:
                raise PeerProtocolError("malformed", "a chunk of nothing", fatal=True)
            self.receiver.accept(prefix.number)
            self._arrived.put((prefix.number, prefix.kind == HEAD, [part.buffer for part in body]))
        elif prefix.kind == wire.GOODBYE:
            self.left = True
        elif prefix.kind != wire.HEARTBEAT:
            raise PeerProtocolError("malformed", f"a message of kind {prefix.kind}", fatal=True)

    def take_greeting(self, prefix: Prefix, body: Sequence[Any]) -> None:
        """Hello or welcome: it says the same as the key, and where to go on. Every fault is fatal."""
        try:
            envelope = read_greeting(body)
            if (envelope.run, envelope.sender, envelope.joined) != (self.run, self.peer.name, self.peer.joined):
                said = f"{envelope.sender}#{envelope.joined} of run {envelope.run}"
                raise PeerProtocolError("wrong identity", f"{self.user} says to be {said}")
            self._acknowledge(prefix.used)
            with self._lock:
                self.sender.resume(prefix.number)
        except PeerProtocolError as error:
            raise PeerProtocolError(error.reason, str(error), fatal=True) from None
        self.last_heard = time.monotonic()
        self.blocked_until = self.hold_until = 0.0
        self._pause = FIRST_PAUSE_S

    def _acknowledge(self, used: int) -> None:
        with self._lock:
            done = self.sender.acknowledge(used)
        for frame in done:
            frame.done()

    def greeting(self, kind: int, why: str = "") -> bytes:
        """The body of a hello, a welcome or a refusal."""
        return wire.encode(kind, self.sink.stamp(-1, -1, [why[:200]] if why else []))


def read_greeting(body: Sequence[Any]) -> wire.Envelope:
    """The envelope in a hello, a welcome or a refusal."""
    if len(body) != 1 or len(body[0]) < wire.HEADER.size:
        raise PeerProtocolError("malformed", "a greeting has one part", fatal=True)
    data = body[0].buffer
    header = wire.parse_header(data[: wire.HEADER.size], 0)
    return wire.parse_meta(data[wire.HEADER.size :], header.payload_bytes)

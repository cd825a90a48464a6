"""One pair of members over stream sockets: two connections, one per direction, each with its own thread.

The writer thread is the only one that writes on its connection and the reader thread the only one that reads
on its own (an SSL object must not be read and written by two threads at once). Either may break and be
reopened, any number of times, without a frame being lost or taken twice (comms/session.py). Whoever can
dial dials both.
"""

from __future__ import annotations

import math
import random
import socket
import ssl
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

from smolcluster.comms import wire
from smolcluster.comms.frames import ACK_DELAY_S, Frame, Sink, Timing
from smolcluster.comms.session import Arrival, Backlog, Incoming, Outgoing
from smolcluster.errors import PeerProtocolError
from smolcluster.ports import Member

if TYPE_CHECKING:
    pass

Direction = Literal["out", "in"]
CHUNK_BYTES = 1 << 20
"""Written or read in one call: large enough to be rare, small enough that a deadline sees progress."""


class Closed(Exception):
    """The link is being closed; ends its threads."""


class Link:
    """Both directions to one peer. ``dial`` opens a connection (None: the other side dials and we are handed it)."""

    def __init__(
        self,
        peer: Member,
        sink: Sink,
        timing: Timing,
        dial: Callable[[Direction, int], tuple[socket.socket, int]] | None,
        overhead: Callable[[int], int] = lambda num_bytes: 0,
    ) -> None:
        self.peer, self.sink, self.timing, self.dial, self.overhead = peer, sink, timing, dial, overhead
        self.outgoing: Outgoing[Frame] = Outgoing()
        self.backlog = Backlog()
        self.incoming = Incoming()
        self.sent_bytes = self.received_bytes = 0
        self.last_heard = time.monotonic()
        self.last_error = "no connection yet"
        self.stalled = False
        self._changed = threading.Condition()
        self._next_to_send = 0
        self._told = 0
        self._ack_due_at = math.inf
        self._closing_at: float | None = None
        self._left = False
        self._sockets: dict[Direction, socket.socket | None] = {"out": None, "in": None}
        self._handed: dict[Direction, tuple[socket.socket, int] | None] = {"out": None, "in": None}
        self._threads = [
            threading.Thread(target=self._run, args=(work,), name=f"{name} {peer.name}", daemon=True)
            for name, work in (("writer to", self._write), ("reader from", self._read))
        ]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    @property
    def up(self) -> bool:
        """Both directions are connected."""
        return all(self._sockets.values())

    @property
    def has_left(self) -> bool:
        """The peer has said goodbye."""
        return self._left

    def send(self, frame: Frame) -> None:
        """Queue a frame; returns at once. LocalProtocolError where too much is queued already."""
        with self._changed:
            self.backlog.add(frame.payload_bytes, self.peer.name, self.sink.max_payload_bytes)
            self.outgoing.add(frame)
            self._changed.notify_all()

    def attach(self, direction: Direction, sock: socket.socket, expected: int) -> None:
        """Hand over a connection that the peer has dialled. ``direction`` is ours; a former one is closed."""
        with self._changed:
            closed = self._left or (self._closing_at is not None and time.monotonic() >= self._closing_at)
            superseded, self._handed[direction] = (
                ((sock, expected), None) if closed else (self._handed[direction], (sock, expected))
            )
            former = self._sockets[direction]
            self._changed.notify_all()
        if superseded:
            superseded[0].close()
        if former:
            shut(former)

    def close(self, flush_within: float) -> None:
        """Say goodbye after at most ``flush_within`` seconds for what is queued; ends both threads."""
        with self._changed:
            self._closing_at = time.monotonic() + flush_within
            self._changed.notify_all()
        self._threads[0].join(flush_within + 1.0)
        with self._changed:
            self._closing_at = 0.0
            handed = [pair[0] for pair in self._handed.values() if pair]
            self._changed.notify_all()
        for sock in [*self._sockets.values(), *handed]:
            if sock:
                shut(sock)
        for thread in self._threads:
            thread.join(self.timing.timeout_s)
        for sock in handed:
            sock.close()

    # --- threads -----------------------------------------------------------------------------------------

    def _run(self, work: Callable[[socket.socket, int], None]) -> None:
        """Open a connection, work on it until it breaks, and again, until the link is closed."""
        direction: Direction = "out" if work == self._write else "in"
        try:
            while True:
                sock, expected = self._open(direction)
                try:
                    self._set_socket(direction, sock, "connected")
                    work(sock, expected)
                except (OSError, EOFError) as error:
                    if not self._left:  # the goodbye says more than what follows from it
                        self.last_error = in_words(error)
                except PeerProtocolError as error:
                    self.last_error = str(error)
                    self.sink.refused(self.peer.name, error.reason, str(error))
                finally:
                    self._set_socket(direction, None, self.last_error)
                    shut(sock)
                    sock.close()
        except Closed:
            self._hang_up(direction)

    def _hang_up(self, direction: Direction) -> None:
        """Close a connection that came too late for anybody to work on it."""
        with self._changed:
            handed, self._handed[direction] = self._handed[direction], None
        if handed:
            handed[0].close()

    def _open(self, direction: Direction) -> tuple[socket.socket, int]:
        """A new connection for ``direction`` and the sequence number that the peer expects next."""
        pause = 0.02
        while True:
            self._check_open()
            if self.dial is None:
                with self._changed:
                    pair, self._handed[direction] = self._handed[direction], None
                    if pair:
                        return pair
                    self._changed.wait(0.5)
                continue
            try:
                return self.dial(direction, self.incoming.expected)
            except (OSError, EOFError, PeerProtocolError) as error:
                self.last_error = in_words(error)
            with self._changed:
                self._changed.wait(pause * random.uniform(0.5, 1.5))
            pause = min(pause * 1.6, 1.0)

    def _check_open(self) -> None:
        """Closing ends the wait for a connection when its time is over, or nobody needs one any more."""
        closing = self._closing_at
        settled = not self.outgoing.unacknowledged and self._told == self.incoming.expected
        if self._left or (closing is not None and (settled or time.monotonic() >= closing)):
            raise Closed

    def _set_socket(self, direction: Direction, sock: socket.socket | None, reason: str) -> None:
        before = self.up
        self._sockets[direction] = sock
        if sock is not None:
            self.last_heard = time.monotonic()
        if self.up != before and self._closing_at is None and not self._left:
            self.sink.link_changed(self.peer, self.up, reason)

    # --- writing -----------------------------------------------------------------------------------------

    def _write(self, sock: socket.socket, expected: int) -> None:
        sock.settimeout(self.timing.timeout_s)
        self.acknowledged(expected)
        with self._changed:
            oldest = self.outgoing.unacknowledged
            self._next_to_send = oldest[0][0] if oldest else self.outgoing.next_seq
        while True:
            seq, frame = self._wait_for_frame()
            if frame is None:
                self._write_frame(sock, Frame(wire.HEARTBEAT, []), -1)
                continue
            if self.timing.chaos_delay_s:
                time.sleep(random.uniform(0, self.timing.chaos_delay_s))
            self._write_frame(sock, frame, seq)
            self._next_to_send = seq + 1

    def _wait_for_frame(self) -> tuple[int, Frame | None]:
        """The next frame to write, or None when it is time for a heartbeat. Raises Closed after the goodbye."""
        until = time.monotonic() + self.timing.heartbeat_s
        with self._changed:
            while True:
                queued = self.outgoing.unacknowledged
                # An acknowledgement may overtake us: of what an older connection has still brought there.
                index = max(0, self._next_to_send - queued[0][0]) if queued else 0
                now = time.monotonic()
                if index < len(queued):
                    self._ack_due_at = math.inf
                    return queued[index]
                if now >= self._ack_due_at:
                    self._ack_due_at = math.inf
                    return -1, None
                if self._left or (self._closing_at is not None and (not queued or now >= self._closing_at)):
                    self._say_goodbye()
                    raise Closed
                if now >= until:
                    return -1, None
                wake = min(until, self._ack_due_at, math.inf if self._closing_at is None else self._closing_at)
                self._changed.wait(max(0.0, wake - now))

    def _say_goodbye(self) -> None:
        sock = self._sockets["out"]
        if sock is not None and not self._left:
            try:
                sock.settimeout(0.5)
                self._write_frame(sock, Frame(wire.GOODBYE, []), -1)
            except OSError as error:
                self.last_error = f"goodbye not sent: {error}"

    def _write_frame(self, sock: socket.socket, frame: Frame, seq: int) -> None:
        told = self.incoming.expected
        head = wire.encode(frame.kind, self.sink.stamp(seq, told, frame.plain, frame.tensors))
        parts: list[bytes | memoryview] = [head, *frame.payload]
        for part in parts:
            self.sent_bytes += write_all(sock, part) + self.overhead(len(part))
        self._told = told

    def acknowledged(self, expected: int) -> None:
        """The peer has everything before sequence number ``expected``."""
        with self._changed:
            done = self.outgoing.acknowledge(expected)
            for frame in done:
                self.backlog.done(frame.payload_bytes)
            if done:
                self._changed.notify_all()
        for frame in done:
            frame.done()

    # --- reading -----------------------------------------------------------------------------------------

    def _read(self, sock: socket.socket, _expected: int) -> None:
        sock.settimeout(self.timing.lost_after_s)
        head = bytearray(wire.HEADER.size)
        meta = bytearray(wire.MAX_META_BYTES)
        while True:
            self._receive(sock, memoryview(head), starts_frame=True)
            header = wire.parse_header(head, self.sink.max_payload_bytes)
            part = memoryview(meta)[: header.meta_bytes]
            self._receive(sock, part)
            self.received_bytes += self.overhead(wire.HEADER.size + header.meta_bytes)
            try:
                self._take_frame(sock, header, part)
            except PeerProtocolError as error:
                if error.fatal:
                    raise
                self.sink.refused(self.peer.name, error.reason, str(error))

    def _take_frame(self, sock: socket.socket, header: wire.Header, meta: memoryview) -> None:
        """Judge one frame, then receive its payload or skip over it."""
        try:
            envelope = wire.parse_meta(meta, header.payload_bytes)
            if (envelope.sender, envelope.joined) != (self.peer.name, self.peer.joined):
                raise PeerProtocolError("wrong identity", f"{self.peer.name} says to be {envelope.sender}", fatal=True)
            self.acknowledged(envelope.ack)
            if header.kind in wire.CONTROL:
                self._take_control(header.kind)
                raise _Skip
            arrival = self.incoming.judge(envelope.seq)
            if arrival is Arrival.GAP:
                detail = f"sequence number {envelope.seq}, expected {self.incoming.expected}"
                raise PeerProtocolError("wrong sequence", detail, fatal=True)
            if arrival is Arrival.DUPLICATE:
                raise PeerProtocolError("duplicate", f"sequence number {envelope.seq} came again")
        except PeerProtocolError as error:
            if not error.fatal:
                self._skip(sock, header.payload_bytes)
            raise
        except _Skip:
            return self._skip(sock, header.payload_bytes)
        try:
            self.stalled = True
            landing = self.sink.admit(self.peer, header.kind, envelope)
        except PeerProtocolError:
            self._skip(sock, header.payload_bytes)
            self._received()
            raise
        finally:
            self.stalled = False
            self.last_heard = time.monotonic()
        try:
            for view in landing.payload:
                self._receive(sock, view)
                self.received_bytes += self.overhead(len(view))
        except BaseException:
            self.sink.abandon(self.peer, landing)
            raise
        self._received()
        self.stalled = True
        try:
            self.sink.deliver(self.peer, landing)
        finally:
            self.stalled = False
            self.last_heard = time.monotonic()
        return None

    def _received(self) -> None:
        with self._changed:
            self.incoming.received()
            self._ack_due_at = min(self._ack_due_at, time.monotonic() + ACK_DELAY_S)
            self._changed.notify_all()

    def _take_control(self, kind: int) -> None:
        if kind == wire.GOODBYE:
            self._left = True
            self.last_error = "the peer said goodbye"
            with self._changed:
                self._changed.notify_all()
            raise EOFError(self.last_error)
        if kind != wire.HEARTBEAT:
            raise PeerProtocolError("malformed", f"control frame {kind} belongs into a handshake")

    def _receive(self, sock: socket.socket, view: memoryview, *, starts_frame: bool = False) -> None:
        """Fill ``view``. Each chunk that arrives is a sign of life."""
        filled = 0
        while filled < len(view):
            between_frames = starts_frame and not filled
            try:
                count = sock.recv_into(view[filled : filled + CHUNK_BYTES])
            except OSError as error:
                if between_frames:
                    raise
                raise PeerProtocolError(
                    "truncated", f"the connection broke inside a frame: {error}", fatal=True
                ) from error
            if count == 0:
                if not between_frames:
                    raise PeerProtocolError("truncated", "the connection ended inside a frame", fatal=True)
                raise EOFError("the peer closed the connection")
            filled += count
            self.received_bytes += count
            self.last_heard = time.monotonic()

    def _skip(self, sock: socket.socket, num_bytes: int) -> None:
        self.received_bytes += self.overhead(num_bytes)
        scratch = memoryview(bytearray(min(num_bytes, CHUNK_BYTES)))
        while num_bytes > 0:
            part = scratch[: min(num_bytes, CHUNK_BYTES)]
            self._receive(sock, part)
            num_bytes -= len(part)


class _Skip(Exception):
    """A control frame: read over its payload (it should have none)."""


def write_all(sock: socket.socket, data: bytes | memoryview) -> int:
    """Write everything in chunks, each within the socket's timeout; returns the number of bytes."""
    view = memoryview(data)
    position = 0
    while position < len(view):
        position += sock.send(view[position : position + CHUNK_BYTES])
    return position


def in_words(error: OSError | EOFError | PeerProtocolError) -> str:
    """Why a connection has ended, for people."""
    if isinstance(error, (EOFError, ConnectionResetError, BrokenPipeError, ssl.SSLEOFError)):
        return "it ended without a goodbye"
    return f"{type(error).__name__}: {error}"


def shut(sock: socket.socket) -> None:
    """Wake whoever is blocked on this socket."""
    try:
        # Not SSLSocket.shutdown: that would let a concurrent reader go on with the raw, encrypted bytes.
        socket.socket.shutdown(sock, socket.SHUT_RDWR)
    except OSError:
        return  # it was not connected any more, so nobody is blocked on it

"""``comms=zmq``: the same messages on ZeroMQ, one CURVE connection per pair of members.

Each node binds a ROUTER; who dials opens a DEALER to it, and both directions travel on that one connection. One
thread owns all sockets and always reads, so acknowledgements and signs of life never wait; each peer has another
thread, which judges its frames and copies their payloads (comms/chunks.py). ZeroMQ loses what is in flight when a
connection breaks, so a DEALER lives as long as one connection: then it is replaced, says hello, and both sides go
on where the other one is. Only keys of present members get through the handshake, and the key says who speaks.
"""

from __future__ import annotations

import math
import queue
import socket
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import zmq
from zmq.utils.monitor import parse_monitor_message

from smolcluster.comms import curve, wire
from smolcluster.comms.curve import ZERO_COPY, Gate, open_dealer, open_router, parse_prefix, size_on_wire
from smolcluster.comms.frames import Frame, Sink, Timing
from smolcluster.comms.pair import GOODBYE_S, Pair, read_greeting
from smolcluster.errors import LocalProtocolError, PeerProtocolError, Problem
from smolcluster.ports import Member
from smolcluster.spec.schema import Range

if TYPE_CHECKING:
    from smolcluster.comms.security import Credentials
    from smolcluster.spec.run import RunSpec

BLOCKED_S = 0.01
"""Pause when ZeroMQ takes nothing more for a peer."""
BURST = 32
"""Messages read from one socket before others have their turn."""
KEY_CHARS = 40
"""A public CURVE key in Z85."""


@dataclass(frozen=True, kw_only=True)
class Zmq:
    """ZeroMQ between nodes."""

    separate_processes: ClassVar[bool] = True

    encryption: Literal["on", "off"] = "on"
    """CURVE. off is refused: ZeroMQ authenticates nobody without it; comms=tcp can."""
    connect_timeout_s: Annotated[float, Range(gt=0, le=3600, unit="seconds")] = 30.0
    """Dialling is tried again for so long; start order does not matter."""
    timeout_s: Annotated[float, Range(gt=0, le=3600, unit="seconds")] = 30.0
    """A peer that says nothing that is due for so long has failed."""
    heartbeat_s: Annotated[float, Range(gt=0, le=60, unit="seconds")] = 1.0
    """An idle connection shows a sign of life that often."""
    lost_after_s: Annotated[float, Range(gt=0, le=600, unit="seconds")] = 4.0
    """A peer without a sign of life for so long is reported to the controller."""
    chaos_delay_s: Annotated[float, Range(ge=0, le=60, unit="seconds")] = 0.0
    """Rehearsal: each message is sent a random time of at most so long late."""

    def problems(self, spec: RunSpec) -> Iterable[Problem]:
        if self.encryption == "off":
            rule = "must be on with comms=zmq: without CURVE nobody would be authenticated"
            yield Problem(key="comms.encryption", value="off", rule=rule, nearest="on, or comms=tcp")
        if self.lost_after_s <= 2 * self.heartbeat_s:
            yield Problem(
                key="comms.lost_after_s",
                value=self.lost_after_s,
                rule=f"must be more than two heartbeats (comms.heartbeat_s={self.heartbeat_s:g})",
                nearest=f"{4 * self.heartbeat_s:g}",
            )

    def transports(self, credentials: Sequence[Credentials], host: str, port: int) -> list[ZmqTransport]:
        """A transport for each node of this process, listening on (host, port); port 0: the system chooses."""
        return [ZmqTransport(self, each, host, port) for each in credentials]


class ZmqTransport:
    """One node's sockets, and a :class:`Pair` for each member."""

    def __init__(self, config: Zmq, credentials: Credentials, host: str, port: int) -> None:
        self.config, self.me = config, credentials
        self.timing = Timing(
            heartbeat_s=config.heartbeat_s,
            lost_after_s=config.lost_after_s,
            timeout_s=config.timeout_s,
            chaos_delay_s=config.chaos_delay_s,
        )
        self.pairs: dict[str, Pair] = {}
        self.sink: Sink | None = None
        self._retired: list[Pair] = []
        self._lock = threading.Lock()
        self._commands: queue.SimpleQueue[Callable[[], Any]] = queue.SimpleQueue()
        self._bell, self._ears = socket.socketpair()
        self._rung = self._closed = False
        self._closing_at = math.inf
        self._active: dict[str, Pair] = {}
        self._poller = zmq.Poller()
        self._handlers: dict[Any, Callable[[], Any]] = {}
        self._context: zmq.Context[Any] = zmq.Context(io_threads=1)
        self._gate = Gate(self._context)
        try:
            self._router, self.address = open_router(self._context, credentials, host, port)
        except BaseException:
            self._release(0)
            raise
        self._thread = threading.Thread(target=self._run, name=f"sockets of {credentials.name}", daemon=True)
        ZERO_COPY.enter()

    # --- the transport's interface: any thread ------------------------------------------------------------

    def start(self, sink: Sink) -> None:
        """Begin to accept connections; what comes in goes to ``sink``."""
        self.sink = sink
        self._thread.start()

    def connect(self, peer: Member, address: tuple[str, int] | None, curve_key: str = "") -> None:
        """Open a link to ``peer``. ``address`` is where to dial; None: it dials us. ``curve_key``: its public key."""
        if len(curve_key) != KEY_CHARS:
            raise LocalProtocolError(f"no CURVE key of {peer.name} in the view: comms=zmq needs one")
        pair = Pair(peer, address, curve_key, self._sink, self.timing, self.me.run)
        pair.start(self._wake)
        with self._lock:
            self.pairs[peer.name] = pair
        self._do(lambda: self._active.update({pair.user: pair}))

    def disconnect(self, name: str) -> None:
        """End the link to a member that is no longer one; returns at once."""
        with self._lock:
            pair = self.pairs.pop(name, None)
            if pair is None:
                return
            self._retired.append(pair)
        self._do(lambda: self._retire(pair))

    def send(self, to: str, frame: Frame) -> None:
        self.pairs[to].send(frame)
        self._wake()

    def is_up(self, name: str) -> bool:
        pair = self.pairs.get(name)
        return pair is not None and pair.up

    def silent_for(self, name: str) -> tuple[float, str]:
        """Seconds since the last sign of life of ``name``, and why."""
        pair = self.pairs[name]
        return time.monotonic() - pair.last_heard, pair.last_error

    def has_left(self, name: str) -> bool:
        """The peer has said goodbye."""
        return self.pairs[name].left

    def traffic(self) -> tuple[int, int]:
        """Bytes (sent, received), with what ZeroMQ's framing and CURVE add (:func:`size_on_wire`)."""
        with self._lock:
            pairs = [*self.pairs.values(), *self._retired]
        return sum(pair.sent_bytes for pair in pairs), sum(pair.received_bytes for pair in pairs)

    def close(self, flush_within: float) -> None:
        """End all links, after at most ``flush_within`` seconds for what is queued, and all threads and sockets."""
        if self._closed:
            return
        self._closed = True
        if self._thread.ident is None:
            self._release(0)
        else:
            closing_at = time.monotonic() + flush_within
            self._do(lambda: setattr(self, "_closing_at", closing_at))
            self._thread.join(flush_within + self.timing.timeout_s)
        for pair in [*self.pairs.values(), *self._retired]:
            pair.end()
            pair.reader.join(self.timing.timeout_s)
        ZERO_COPY.leave()

    def _do(self, command: Callable[[], Any]) -> None:
        """Have ``command`` carried out by the thread that owns the sockets."""
        self._commands.put(command)
        self._wake()

    def _wake(self) -> None:
        if not self._rung:
            self._rung = True
            try:
                self._bell.send(b"!")
            except OSError:
                return  # the thread has ended: there is nobody to wake

    @property
    def _sink(self) -> Sink:
        assert self.sink is not None
        return self.sink

    # --- the thread that owns the sockets -----------------------------------------------------------------

    def _run(self) -> None:
        self._ears.setblocking(False)
        self._listen(self._ears.fileno(), self._hear_bell)
        self._listen(self._router, lambda: self._drain(self._router, self._from_router))
        self._listen(self._gate.socket, lambda: self._gate.hear(time.monotonic()))
        strangers = self._router.get_monitor_socket(curve.REFUSED_AT_HANDSHAKE)
        self._listen(strangers, lambda: self._count_stranger(parse_monitor_message(strangers.recv_multipart())))
        while not self._over():
            for ready, _ in self._poller.poll(self._patience_ms()):
                if ready in self._handlers:  # it may have been closed a moment ago
                    self._handlers[ready]()
            while not self._commands.empty():
                self._commands.get()()
            self._admit(time.monotonic())
            for pair in list(self._active.values()):
                self._tend(pair, time.monotonic())
        self._release(int(1000 * GOODBYE_S))

    def _listen(self, ready: Any, handler: Callable[[], Any]) -> None:
        self._poller.register(ready, zmq.POLLIN)
        self._handlers[ready] = handler

    def _ignore(self, ready: Any) -> None:
        self._poller.unregister(ready)
        del self._handlers[ready]

    def _release(self, linger_ms: int) -> None:
        """Close every socket and the context."""
        self._context.destroy(linger_ms)
        self._bell.close()
        self._ears.close()

    def _hear_bell(self) -> None:
        self._ears.recv(64)
        self._rung = False  # before the commands are looked at, so that none is missed

    def _patience_ms(self) -> int:
        now = time.monotonic()
        closing_at = self._closing_at if self._closing_at > now else math.inf
        until = min([pair.due_at() for pair in self._active.values()] + [self._gate.due_at, closing_at, now + 1.0])
        return max(0, math.ceil(1000 * (until - now)))

    def _over(self) -> bool:
        """Closing, and everybody has been told (and has answered: what is unread when we close takes what we have
        sent last away with it) or cannot be."""
        if self._closing_at == math.inf:
            return False
        now = time.monotonic()
        for pair in self._active.values():
            if pair.goodbye_at == math.inf and (now >= self._closing_at or pair.flushed):
                pair.goodbye_at = now
                if pair.up:
                    self._send(pair, wire.GOODBYE, 0)
            pair.left = pair.left or now >= pair.goodbye_at + (GOODBYE_S if pair.up else 0.0)
        return all(pair.left for pair in self._active.values())

    def _tend(self, pair: Pair, now: float) -> None:
        """Dial, send what is due, show signs of life."""
        if pair.left or pair.goodbye_at < math.inf:
            return
        if pair.address is not None:
            self._keep_dialled(pair, now)
        while pair.up and now >= pair.blocked_until and (chunk := pair.next_chunk(now)) is not None:
            if self._send(pair, *chunk):
                pair.chunk_sent()
        if pair.heartbeat_due(now):
            self._send(pair, wire.HEARTBEAT, pair.sender.next_to_send)

    def _retire(self, pair: Pair) -> None:
        pair.left = True
        self._down(pair, "no longer a member")
        del self._active[pair.user]
        pair.end()

    def _send(self, pair: Pair, kind: int, number: int, body: Sequence[Any] = ()) -> bool:
        """Hand one message to ZeroMQ, which keeps the memory of large parts; False where it takes nothing."""
        parts = [pair.prefix(kind, number).pack(), *body]
        try:
            if pair.address is not None:
                pair.dealer.send_multipart(parts, zmq.NOBLOCK, copy=False)
            else:
                self._router.send_multipart([pair.route, *parts], zmq.NOBLOCK, copy=False)
        except zmq.Again:
            pair.blocked_until = time.monotonic() + BLOCKED_S
            pair.unsent()
            return False
        except zmq.ZMQError as error:
            if not curve.unreachable(error):
                raise
            self._down(pair, "the peer's connection is gone")
            return False
        pair.last_sent = time.monotonic()
        pair.sent_bytes += size_on_wire(parts)
        return True

    # --- connections --------------------------------------------------------------------------------------

    def _keep_dialled(self, pair: Pair, now: float) -> None:
        if pair.dealer is None:
            if now >= pair.retry_at:
                self._dial(pair, now)
        elif not pair.up and now >= pair.opened_at + curve.HANDSHAKE_S:
            self._down(pair, f"no welcome within {curve.HANDSHAKE_S:g} s")
        elif pair.is_silent(now):
            self._down(pair, f"no sign of life for {self.timing.lost_after_s:g} s")

    def _dial(self, pair: Pair, now: float) -> None:
        assert pair.address is not None
        dealer, monitor = open_dealer(self._context, self.me, pair.address, pair.curve_key)
        pair.dealer, pair.opened_at = dealer, now
        self._listen(dealer, lambda: self._drain(dealer, lambda parts: self._from_dealer(pair, parts)))
        self._listen(monitor, lambda: self._broken(pair, parse_monitor_message(monitor.recv_multipart())))
        self._send(pair, wire.HELLO, pair.receiver.incoming.expected, [pair.greeting(wire.HELLO)])

    def _broken(self, pair: Pair, event: Mapping[str, Any]) -> None:
        """The connection has ended, or never came to be; what had come before is taken first."""
        while pair.dealer is not None and pair.dealer.poll(0):
            self._drain(pair.dealer, lambda parts: self._from_dealer(pair, parts))
        where = ":".join(map(str, pair.address or ()))
        if pair.dealer is None:
            return
        if event["event"] & curve.REFUSED_AT_HANDSHAKE:
            self._down(pair, f"handshake with {where} failed: it does not know our key (yet), or has another one")
        elif pair.up:
            self._down(pair, "the connection broke")
        else:
            self._down(pair, f"{where} cannot be connected to")

    def _down(self, pair: Pair, reason: str) -> None:
        """The connection is of no use any more; who dials will dial again."""
        if pair.dealer is not None:
            monitor = pair.dealer.get_monitor_socket()
            self._ignore(monitor)
            pair.dealer.disable_monitor()
            monitor.close(0)
            self._ignore(pair.dealer)
            pair.dealer.close(int(1000 * GOODBYE_S) if pair.left else 0)
        pair.dealer = pair.route = None
        pair.retry_later(time.monotonic())
        pair.last_error = reason
        self._set_up(pair, False, reason)

    def _set_up(self, pair: Pair, up: bool, reason: str) -> None:
        changed, pair.up = pair.up != up, up
        if changed and not pair.left and self._closing_at == math.inf:
            self._sink.link_changed(pair.peer, up, reason)

    # --- receiving ----------------------------------------------------------------------------------------

    def _drain(self, ready: Any, take: Callable[[list[Any]], None]) -> None:
        for _ in range(BURST):
            if ready.closed:
                return
            try:
                parts = ready.recv_multipart(zmq.NOBLOCK, copy=False)
            except zmq.Again:
                return
            take(parts)

    def _from_router(self, parts: list[Any]) -> None:
        """A message of somebody who has dialled us; the key that its connection was opened with says who."""
        route, rest = parts[0].bytes, parts[1:]
        user = str(rest[0].get("User-Id")) if rest else ""
        pair = self._active.get(user)
        if pair is None:
            self._sink.refused(user.rpartition("#")[0], "not a member", f"message of {user or 'nobody'}")
            return
        pair.received_bytes += size_on_wire(rest)
        try:
            prefix = parse_prefix(rest)
            if prefix.kind == wire.HELLO:
                self._welcome(pair, route, prefix, rest[1:])
            elif pair.route != route:
                raise PeerProtocolError("no hello", "a message on a connection that was not agreed on, or replaced")
            else:
                self._take(pair, prefix, rest[1:])
        except PeerProtocolError as error:
            self._sink.refused(pair.peer.name, error.reason, str(error))
            if error.fatal:
                pair.route = route
                self._send(pair, wire.REFUSED, 0, [pair.greeting(wire.REFUSED, str(error))])
                self._down(pair, str(error))

    def _welcome(self, pair: Pair, route: bytes, prefix: curve.Prefix, body: list[Any]) -> None:
        """A new connection: it replaces a former one."""
        pair.take_greeting(prefix, body)
        pair.route = route
        self._set_up(pair, True, "connected")
        self._send(pair, wire.WELCOME, pair.receiver.incoming.expected, [pair.greeting(wire.WELCOME)])

    def _from_dealer(self, pair: Pair, parts: list[Any]) -> None:
        pair.received_bytes += size_on_wire(parts)
        try:
            prefix = parse_prefix(parts)
            if prefix.kind == wire.REFUSED:
                why = read_greeting(parts[1:]).plain[:1]
                self._down(pair, f"{pair.peer.name} says: {why}")
            elif pair.up:
                self._take(pair, prefix, parts[1:])
            elif prefix.kind == wire.WELCOME:
                pair.take_greeting(prefix, parts[1:])
                self._set_up(pair, True, "connected")
        except PeerProtocolError as error:
            self._sink.refused(pair.peer.name, error.reason, str(error))
            if error.fatal:
                self._down(pair, str(error))

    def _take(self, pair: Pair, prefix: curve.Prefix, body: list[Any]) -> None:
        pair.take(prefix, body)
        if pair.left:
            if pair.goodbye_at == math.inf:
                self._send(pair, wire.GOODBYE, 0)
            self._down(pair, "the peer said goodbye")

    # --- strangers ----------------------------------------------------------------------------------------

    def _admit(self, now: float) -> None:
        """Keys of members that are to dial us may pass."""
        users = {pair.curve_key: pair.user for pair in self._active.values() if pair.address is None}
        for where in self._gate.answer(users, now):
            if self._active:  # before the first view nobody can be told apart; members try again
                self._sink.refused("", "handshake", f"{where}: not the key of a member")

    def _count_stranger(self, event: Mapping[str, Any]) -> None:
        """A handshake that did not get as far as showing a key (those are counted by :meth:`_admit`)."""
        if event["event"] != zmq.EVENT_HANDSHAKE_FAILED_AUTH:
            self._sink.refused("", "handshake", "a connection that does not speak CURVE to our key")

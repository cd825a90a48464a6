"""``comms=zmq``: the same messages on ZeroMQ, one CURVE connection per pair of members.

Each node binds a ROUTER; who dials opens a DEALER to it, and both directions travel on that one connection. One
thread owns all sockets and always reads, so acknowledgements and signs of life never wait; each peer has another
thread, which judges its frames and copies their payloads (comms/chunks.py). ZeroMQ loses what is in flight when a
connection breaks, so a DEALER lives as long as one connection: then it is replaced, says hello, and both sides go
on where the other one is. Only keys of present members get through the handshake, and the key says who speaks.
"""

from __future__ import annotations

import errno
import math
import queue
import random
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import zmq
from zmq.utils.garbage import gc as zero_copy_collector
from zmq.utils.monitor import parse_monitor_message

from smolcluster.comms import wire
from smolcluster.comms.chunks import CHUNK_BYTES, WINDOW, Assembler, ChunkReceiver, ChunkSender
from smolcluster.comms.link import ACK_DELAY_S, Frame, Sink
from smolcluster.errors import LocalProtocolError, PeerProtocolError, Problem
from smolcluster.ports import Member
from smolcluster.spec.schema import Range

if TYPE_CHECKING:
    from smolcluster.comms.security import Credentials
    from smolcluster.spec.run import RunSpec

PREFIX = struct.Struct("!4sBBHQQ")
"""Before each message: magic, version, kind, flags (0), a chunk number, and how many chunks have been used."""
MAGIC = b"SMZQ"
HEAD, BODY = 6, 7
"""Kinds of message besides the control frames of comms/wire.py: the first chunk of a frame, and the others."""
MAX_PARTS = 12
"""Parts of one message: prefix, header with meta, and the tensors of a frame."""
DIAL_S = 10.0
"""A connection that is not there and welcomed after that time is given up; the next attempt follows."""
BLOCKED_S = 0.01
"""Pause when ZeroMQ takes nothing more for a peer."""
BURST = 32
"""Messages read from one socket before others have their turn."""
GOODBYE_MS = 200
"""How long a goodbye may take to leave at the end; LINGER is 0 before."""
FAILED = zmq.EVENT_CLOSED | zmq.EVENT_DISCONNECTED
REFUSED_AT_HANDSHAKE = (
    zmq.EVENT_HANDSHAKE_FAILED_AUTH | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
)


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


class ZmqLink:
    """One pair of members. The fields without a lock belong to the thread that owns the sockets."""

    def __init__(self, peer: Member, address: tuple[str, int] | None, curve_key: str, sink: Sink) -> None:
        self.peer, self.address, self.curve_key, self.sink = peer, address, curve_key.encode(), sink
        self.user = f"{peer.name}#{peer.joined}"
        self.lock = threading.Lock()
        self.sender, self.receiver = ChunkSender(), ChunkReceiver()
        self.sent_bytes = self.received_bytes = 0
        self.last_heard = time.monotonic()
        self.last_error = "no connection yet"
        self.up = self.left = False
        self.route: bytes | None = None
        self.dealer: Any = None
        self.opened_at = self.retry_at = self.blocked_until = self.hold_until = 0.0
        self.last_sent = 0.0
        self.pause = 0.02
        self.acknowledged = 0
        self.ack_due_at = math.inf
        self.arrived: queue.SimpleQueue[tuple[int, bool, list[memoryview]] | None] = queue.SimpleQueue()
        self.reader = threading.Thread(target=lambda: None)

    def read(self, wake: Callable[[], None]) -> None:
        """Use what has arrived, until there is a None; in a thread of its own, since the sink may block."""
        assembler = Assembler(self.peer, self.sink)
        while (item := self.arrived.get()) is not None:
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
            many = number + 1 - self.acknowledged >= WINDOW // 4
            if many or assembler.between_frames:
                self.ack_due_at = min(self.ack_due_at, time.monotonic() + (0.0 if many else ACK_DELAY_S))
                wake()
        assembler.abandon()

    def due_at(self, heartbeat_s: float, lost_after_s: float) -> float:
        """When something has to be done for this link although nothing comes."""
        if self.left:
            return math.inf
        if not self.up:
            return math.inf if self.address is None else (self.opened_at + DIAL_S if self.dealer else self.retry_at)
        lost = math.inf if self.address is None else self.last_heard + lost_after_s
        held = self.hold_until or math.inf
        return max(self.blocked_until, min(self.ack_due_at, self.last_sent + heartbeat_s, lost, held))


class ZmqTransport:
    """One node's sockets, and a :class:`ZmqLink` to each member."""

    def __init__(self, config: Zmq, credentials: Credentials, host: str, port: int) -> None:
        self.config, self.me = config, credentials
        self.links: dict[str, ZmqLink] = {}
        self.sink: Sink | None = None
        self._context = zmq.Context(io_threads=1)
        self._lock = threading.Lock()
        self._retired: list[ZmqLink] = []
        self._commands: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._bell, self._ears = socket.socketpair()
        self._rung = False
        self._closing_at = math.inf
        self._poller = zmq.Poller()
        self._handlers: dict[Any, Callable[[], None]] = {}
        self._active: dict[str, ZmqLink] = {}
        self._gate = self._context.socket(zmq.REP)
        self._gate.bind("inproc://zeromq.zap.01")
        self._router = self._socket(zmq.ROUTER)
        try:
            self.address = self._bind(host, port)
        except BaseException:
            self._release()
            raise
        self._thread = threading.Thread(target=self._run, name=f"sockets of {credentials.name}", daemon=True)
        _in_use.enter()

    # --- the transport's interface: any thread ------------------------------------------------------------

    def start(self, sink: Sink) -> None:
        """Begin to accept connections; what comes in goes to ``sink``."""
        self.sink = sink
        self._thread.start()

    def connect(self, peer: Member, address: tuple[str, int] | None, curve_key: str = "") -> None:
        """Open a link to ``peer``. ``address`` is where to dial; None: it dials us. ``curve_key``: its public key."""
        assert self.sink is not None
        if len(curve_key) != 40:
            raise LocalProtocolError(f"no CURVE key of {peer.name} in the view: comms=zmq needs one")
        link = ZmqLink(peer, address, curve_key, self.sink)
        link.reader = threading.Thread(
            target=link.read, args=(self._wake,), name=f"reader from {peer.name}", daemon=True
        )
        link.reader.start()
        with self._lock:
            self.links[peer.name] = link
        self._do(lambda: self._active.update({link.user: link}))

    def disconnect(self, name: str) -> None:
        """End the link to a member that is no longer one; returns at once."""
        with self._lock:
            link = self.links.pop(name, None)
            if link is not None:
                self._retired.append(link)
        if link is not None:
            self._do(lambda: self._retire(link))

    def send(self, to: str, frame: Frame) -> None:
        link = self.links[to]
        with link.lock:
            link.sender.add(frame, to)
        self._wake()

    def is_up(self, name: str) -> bool:
        link = self.links.get(name)
        return link is not None and link.up

    def silent_for(self, name: str) -> tuple[float, str]:
        """Seconds since the last sign of life of ``name``, and why."""
        link = self.links[name]
        return time.monotonic() - link.last_heard, link.last_error

    def traffic(self) -> tuple[int, int]:
        """Bytes (sent, received), with what ZeroMQ's framing and CURVE add (:func:`size_on_wire`)."""
        with self._lock:
            links = [*self.links.values(), *self._retired]
        return sum(link.sent_bytes for link in links), sum(link.received_bytes for link in links)

    def close(self, flush_within: float) -> None:
        """End all links, after at most ``flush_within`` seconds for what is queued, and all threads and sockets."""
        if self._thread.ident is None:
            self._release()
        else:
            closing_at = time.monotonic() + flush_within
            self._do(lambda: setattr(self, "_closing_at", closing_at))
            self._thread.join(flush_within + self.config.timeout_s)
        for link in [*self.links.values(), *self._retired]:
            link.arrived.put(None)
            link.reader.join(self.config.timeout_s)
        _in_use.leave()

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

    # --- sockets ------------------------------------------------------------------------------------------

    def _socket(self, kind: int) -> Any:
        """A socket with our keys and limits."""
        made = self._context.socket(kind)
        made.linger = 0
        made.sndhwm, made.rcvhwm = 4 * WINDOW, WINDOW
        made.setsockopt(zmq.MAXMSGSIZE, CHUNK_BYTES + wire.MAX_META_BYTES)
        made.setsockopt(zmq.HANDSHAKE_IVL, int(1000 * DIAL_S))
        made.setsockopt(zmq.TCP_KEEPALIVE, 1)
        made.curve_publickey, made.curve_secretkey = self.me.curve_public.encode(), self.me.curve_secret.encode()
        return made

    def _bind(self, host: str, port: int) -> tuple[str, int]:
        family, *_, where = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        self._router.curve_server = 1
        self._router.setsockopt(zmq.ZAP_DOMAIN, b"smolcluster")
        self._router.setsockopt(zmq.ROUTER_MANDATORY, 1)
        self._router.setsockopt(zmq.BACKLOG, 128)
        self._router.setsockopt(zmq.IPV6, family == socket.AF_INET6)
        try:
            self._router.bind(_endpoint(str(where[0]), int(where[1])))
        except zmq.ZMQError as error:
            raise OSError(error.errno, error.strerror) from None
        return str(where[0]), int(self._router.last_endpoint.rsplit(b":", 1)[1])

    def _listen(self, ready: Any, handler: Callable[[], None]) -> None:
        self._poller.register(ready, zmq.POLLIN)
        self._handlers[ready] = handler

    def _ignore(self, ready: Any) -> None:
        self._poller.unregister(ready)
        del self._handlers[ready]

    def _release(self, linger: int = 0) -> None:
        """Close every socket and the context; in the thread that owns them."""
        self._context.destroy(linger)
        self._bell.close()
        self._ears.close()

    # --- the thread that owns the sockets -----------------------------------------------------------------

    def _run(self) -> None:
        self._ears.setblocking(False)
        self._listen(self._ears.fileno(), self._hear_bell)
        self._listen(self._router, lambda: self._drain(self._router, self._from_router))
        self._listen(self._gate, self._admit)
        strangers = self._router.get_monitor_socket(REFUSED_AT_HANDSHAKE)
        self._listen(strangers, lambda: self._count_stranger(parse_monitor_message(strangers.recv_multipart())))
        while not self._over():
            for ready, _ in self._poller.poll(self._patience_ms()):
                if ready in self._handlers:  # it may have been closed a moment ago
                    self._handlers[ready]()
            while not self._commands.empty():
                self._commands.get()()
            for link in list(self._active.values()):
                self._tend(link, time.monotonic())
        self._release(GOODBYE_MS)

    def _hear_bell(self) -> None:
        self._ears.recv(64)
        self._rung = False  # before the commands are looked at, so that none is missed

    def _patience_ms(self) -> int:
        config = self.config
        due = [link.due_at(config.heartbeat_s, config.lost_after_s) for link in self._active.values()]
        left = min([*due, self._closing_at, time.monotonic() + 1.0]) - time.monotonic()
        return max(0, math.ceil(1000 * left))

    def _over(self) -> bool:
        """Closing, and everybody has been told or cannot be."""
        if self._closing_at == math.inf:
            return False
        late = time.monotonic() >= self._closing_at
        for link in self._active.values():
            with link.lock:
                flushed = link.sender.num_frames == 0
            if not link.left and (late or flushed):
                link.left = True
                if link.up:
                    self._send(link, wire.GOODBYE, 0)
        return all(link.left for link in self._active.values())

    def _tend(self, link: ZmqLink, now: float) -> None:
        """Dial, send what is due and show signs of life."""
        if link.left:
            return
        if link.address is not None:
            self._keep_dialled(link, now)
        if link.up and now >= link.blocked_until:
            self._pump(link, now)
        if link.up and now >= max(link.blocked_until, min(link.ack_due_at, link.last_sent + self.config.heartbeat_s)):
            self._send(link, wire.HEARTBEAT, link.sender.next_to_send)

    def _retire(self, link: ZmqLink) -> None:
        link.left = True
        self._down(link, "no longer a member")
        del self._active[link.user]
        link.arrived.put(None)

    # --- sending ------------------------------------------------------------------------------------------

    def _pump(self, link: ZmqLink, now: float) -> None:
        """Send chunks until the window is full."""
        while link.up:
            with link.lock:
                item = link.sender.next()
            if item is None or self._held(link, now, first=item[1].first):
                return
            number, chunk = item
            body: list[Any] = list(chunk.payload)
            if chunk.first:
                frame = chunk.frame
                envelope = self._sink.stamp(number, link.receiver.used, frame.plain, frame.tensors)
                body.insert(0, wire.encode(frame.kind, envelope))
            if not self._send(link, HEAD if chunk.first else BODY, number, body):
                return
            link.sender.sent()

    def _held(self, link: ZmqLink, now: float, *, first: bool) -> bool:
        """Whether the next message is being delayed (``chaos_delay_s``)."""
        if not self.config.chaos_delay_s or not first:
            return False
        if not link.hold_until:
            link.hold_until = now + random.uniform(0, self.config.chaos_delay_s)
        if now < link.hold_until:
            return True
        link.hold_until = 0.0
        return False

    def _send(self, link: ZmqLink, kind: int, number: int, body: Sequence[Any] = ()) -> bool:
        """Hand one message to ZeroMQ, which keeps the memory of large parts; False where it takes nothing."""
        used = link.receiver.used
        parts = [PREFIX.pack(MAGIC, wire.VERSION, kind, 0, number, used), *body]
        try:
            if link.address is not None:
                link.dealer.send_multipart(parts, zmq.NOBLOCK, copy=False)
            else:
                self._router.send_multipart([link.route, *parts], zmq.NOBLOCK, copy=False)
        except zmq.Again:
            link.blocked_until = time.monotonic() + BLOCKED_S
            return False
        except zmq.ZMQError as error:
            if error.errno != errno.EHOSTUNREACH:
                raise
            self._down(link, "the peer's connection is gone")
            return False
        link.last_sent = time.monotonic()
        link.acknowledged, link.ack_due_at = used, math.inf
        link.sent_bytes += size_on_wire(parts)
        return True

    # --- dialling -----------------------------------------------------------------------------------------

    def _keep_dialled(self, link: ZmqLink, now: float) -> None:
        if link.dealer is None:
            if now >= link.retry_at:
                self._dial(link, now)
        elif not link.up and now >= link.opened_at + DIAL_S:
            self._down(link, f"no welcome within {DIAL_S:g} s")
        elif link.up and now >= link.last_heard + self.config.lost_after_s:
            self._down(link, f"no sign of life for {self.config.lost_after_s:g} s")

    def _dial(self, link: ZmqLink, now: float) -> None:
        """One connection, without ZeroMQ's own attempts to mend it: it would go on in the middle."""
        assert link.address is not None
        link.dealer, link.opened_at = self._socket(zmq.DEALER), now
        link.dealer.curve_serverkey = link.curve_key
        link.dealer.setsockopt(zmq.IPV6, ":" in link.address[0])
        link.dealer.setsockopt(zmq.RECONNECT_IVL, -1)
        link.dealer.setsockopt(zmq.CONNECT_TIMEOUT, int(1000 * DIAL_S))
        monitor = link.dealer.get_monitor_socket(FAILED | REFUSED_AT_HANDSHAKE)
        self._listen(link.dealer, lambda: self._drain(link.dealer, lambda parts: self._from_dealer(link, parts)))
        self._listen(monitor, lambda: self._broken(link, parse_monitor_message(monitor.recv_multipart())))
        link.dealer.connect(_endpoint(*link.address))
        self._send(link, wire.HELLO, link.receiver.incoming.expected, [self._greeting(wire.HELLO)])

    def _broken(self, link: ZmqLink, event: dict[str, Any]) -> None:
        """The connection has ended, or never came to be; what had come before is taken first."""
        while link.dealer is not None and link.dealer.poll(0):
            self._drain(link.dealer, lambda parts: self._from_dealer(link, parts))
        where = ":".join(map(str, link.address or ()))
        if event["event"] & REFUSED_AT_HANDSHAKE:
            self._down(link, f"handshake with {where} failed (it does not know our key, or has another one)")
        elif link.up:
            self._down(link, "the connection broke")
        else:
            self._down(link, f"{where} cannot be connected to")

    def _down(self, link: ZmqLink, reason: str) -> None:
        """The connection is of no use any more; who dials will dial again."""
        if link.dealer is not None:
            self._ignore(link.dealer.get_monitor_socket())
            link.dealer.disable_monitor()
            self._ignore(link.dealer)
            link.dealer.close(0)
        link.retry_at = time.monotonic() + link.pause * random.uniform(0.5, 1.5)
        link.pause = min(1.6 * link.pause, 1.0)
        link.dealer = link.route = None
        link.last_error = reason
        self._set_up(link, False, reason)

    def _set_up(self, link: ZmqLink, up: bool, reason: str) -> None:
        changed, link.up = link.up != up, up
        if changed and not link.left and self._closing_at == math.inf:
            self._sink.link_changed(link.peer, up, reason)

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
        route, *rest = parts
        user = str(rest[0].get("User-Id")) if rest else ""
        link = self._active.get(user)
        if link is None:
            self._sink.refused(user.rpartition("#")[0], "not a member", f"message of {user or 'nobody'}")
            return
        link.received_bytes += size_on_wire(rest)
        try:
            kind, number, used = _prefix(rest)
            if kind == wire.HELLO:
                self._take_greeting(link, number, used, rest[1:])
                link.route = route.bytes
                self._set_up(link, True, "connected")
                self._send(link, wire.WELCOME, link.receiver.incoming.expected, [self._greeting(wire.WELCOME)])
            elif link.route != route.bytes:
                raise PeerProtocolError("no hello", "a message on a connection that was not agreed on, or replaced")
            else:
                self._take(link, kind, number, used, rest[1:])
        except PeerProtocolError as error:
            self._sink.refused(link.peer.name, error.reason, str(error))
            if error.fatal:
                self._refuse(link, route.bytes, str(error))

    def _refuse(self, link: ZmqLink, route: bytes, why: str) -> None:
        """Tell who dialled that this connection is over; it may dial again."""
        link.route = route
        self._send(link, wire.REFUSED, 0, [self._greeting(wire.REFUSED, why[:200])])
        self._down(link, why)

    def _from_dealer(self, link: ZmqLink, parts: list[Any]) -> None:
        link.received_bytes += size_on_wire(parts)
        try:
            kind, number, used = _prefix(parts)
            if kind == wire.WELCOME and not link.up:
                self._take_greeting(link, number, used, parts[1:])
                link.pause = 0.02
                self._set_up(link, True, "connected")
            elif kind == wire.REFUSED:
                _, why = self._read_greeting(parts[1:])
                self._down(link, f"{link.peer.name} says: {why}")
            elif link.up:
                self._take(link, kind, number, used, parts[1:])
        except PeerProtocolError as error:
            self._sink.refused(link.peer.name, error.reason, str(error))
            if error.fatal or not link.up:
                self._down(link, str(error))

    def _take(self, link: ZmqLink, kind: int, number: int, used: int, body: list[Any]) -> None:
        """A message on a connection that both sides have agreed on."""
        link.last_heard = time.monotonic()
        self._acknowledge(link, used)
        if kind in (HEAD, BODY):
            if not body:
                raise PeerProtocolError("malformed", "a chunk of nothing", fatal=True)
            link.receiver.accept(number)
            link.arrived.put((number, kind == HEAD, [part.buffer for part in body]))
        elif kind == wire.GOODBYE:
            link.left = True
            self._down(link, "the peer said goodbye")
        elif kind != wire.HEARTBEAT:
            raise PeerProtocolError("malformed", f"a message of kind {kind}", fatal=True)

    def _acknowledge(self, link: ZmqLink, used: int) -> None:
        with link.lock:
            done = link.sender.acknowledge(used)
        for frame in done:
            frame.done()

    # --- who is it ----------------------------------------------------------------------------------------

    @property
    def _sink(self) -> Sink:
        assert self.sink is not None
        return self.sink

    def _greeting(self, kind: int, why: str = "") -> bytes:
        return wire.encode(kind, self._sink.stamp(-1, -1, [why] if why else []))

    def _read_greeting(self, body: list[Any]) -> tuple[wire.Envelope, str]:
        if len(body) != 1 or len(body[0]) < wire.HEADER.size:
            raise PeerProtocolError("malformed", "a greeting has one part", fatal=True)
        data = body[0].buffer
        header = wire.parse_header(data[: wire.HEADER.size], 0)
        envelope = wire.parse_meta(data[wire.HEADER.size :], header.payload_bytes)
        return envelope, str(envelope.plain[0])[:200] if envelope.plain else ""

    def _take_greeting(self, link: ZmqLink, number: int, used: int, body: list[Any]) -> None:
        """Hello or welcome: it says the same as the key, and where to go on. Every fault is fatal."""
        try:
            envelope, _ = self._read_greeting(body)
            if (envelope.run, envelope.sender, envelope.joined) != (self.me.run, link.peer.name, link.peer.joined):
                said = f"{envelope.sender}#{envelope.joined} of run {envelope.run}"
                raise PeerProtocolError("wrong identity", f"{link.user} says to be {said}")
            self._acknowledge(link, used)
            with link.lock:
                link.sender.resume(number)
        except PeerProtocolError as error:
            raise PeerProtocolError(error.reason, str(error), fatal=True) from None
        link.last_heard = time.monotonic()
        link.blocked_until = link.hold_until = 0.0

    def _admit(self) -> None:
        """Answer libzmq's question whether a key may pass (ZAP, rfc.zeromq.org/spec/27)."""
        version, request, _, where, _, mechanism, *shown = self._gate.recv_multipart()
        key = zmq.utils.z85.encode(shown[0]) if mechanism == b"CURVE" and shown else b""
        link = next((each for each in self._active.values() if each.curve_key == key and each.address is None), None)
        if link is None:
            self._sink.refused("", "handshake", f"{where.decode(errors='replace')}: no member's key")
            self._gate.send_multipart([version, request, b"400", b"not a member (yet)", b"", b""])
        else:
            self._gate.send_multipart([version, request, b"200", b"", link.user.encode(), b""])

    def _count_stranger(self, event: dict[str, Any]) -> None:
        """A handshake that did not get as far as showing a key (those are counted by :meth:`_admit`)."""
        if event["event"] != zmq.EVENT_HANDSHAKE_FAILED_AUTH:
            self._sink.refused("", "handshake", "a connection that does not speak CURVE with our key")


class _InUse:
    """Ends pyzmq's thread for zero-copy memory when the last transport of this process is closed."""

    def __init__(self) -> None:
        self._lock, self._count = threading.Lock(), 0

    def enter(self) -> None:
        with self._lock:
            self._count += 1

    def leave(self) -> None:
        with self._lock:
            self._count -= 1
            if self._count == 0 and not zero_copy_collector.refs:
                zero_copy_collector.stop()


_in_use = _InUse()


def size_on_wire(parts: Sequence[Any]) -> int:
    """Bytes of a message with its framing: CURVE adds 33 to each part, ZMTP 2, or 9 beyond 255 bytes."""
    return sum(len(part) + 33 + (9 if len(part) + 33 > 255 else 2) for part in parts)


def _prefix(parts: list[Any]) -> tuple[int, int, int]:
    """(kind, number, used) of a message; every fault is fatal."""
    if not 0 < len(parts) <= MAX_PARTS or len(parts[0]) != PREFIX.size:
        raise PeerProtocolError("malformed", f"a message of {len(parts)} parts", fatal=True)
    magic, version, kind, flags, number, used = PREFIX.unpack(parts[0].buffer)
    if magic != MAGIC:
        raise PeerProtocolError("malformed", f"a message starts with {magic!r}, not {MAGIC!r}", fatal=True)
    if version != wire.VERSION or flags:
        raise PeerProtocolError(
            "wrong version", f"version {version}, flags {flags} (we speak {wire.VERSION})", fatal=True
        )
    return kind, number, used


def _endpoint(host: str, port: int) -> str:
    return f"tcp://[{host}]:{port}" if ":" in host else f"tcp://{host}:{port}"

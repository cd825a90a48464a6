"""``comms=tcp``: frames over TCP with mutual TLS 1.3, received straight into the memory they are used in."""

from __future__ import annotations

import socket
import ssl
import threading
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from smolcluster.comms import wire
from smolcluster.comms.frames import Frame, Sink, Timing
from smolcluster.comms.link import Direction, Link, shut, write_all
from smolcluster.comms.security import Credentials, Identity, peer_of
from smolcluster.comms.wire import Envelope
from smolcluster.errors import PeerProtocolError, Problem
from smolcluster.ports import Member
from smolcluster.spec.schema import Range

if TYPE_CHECKING:
    from smolcluster.spec.run import RunSpec

HANDSHAKE_S = 10.0
"""A handshake must be over within that time, or the connection is cut."""
MAX_HANDSHAKES = 32
"""Handshakes at one time; further connections are closed at once, so that strangers cannot use up memory."""
VIEW_S = 2.0
"""A member that dials before the view that names it has reached us is let wait so long."""
ACCEPT_PAUSE_S = 0.1
"""Pause after a connection that could not be accepted."""
DIAL_S = 5.0
"""One attempt to connect; there are more until ``connect_timeout_s``."""


@dataclass(frozen=True, kw_only=True)
class Tcp:
    """TCP between nodes."""

    separate_processes: ClassVar[bool] = True

    encryption: Literal["on", "off"] = "on"
    """off: the same handshake, then plain frames: nothing is secret or protected from change."""
    connect_timeout_s: Annotated[float, Range(gt=0, le=3600, unit="seconds")] = 30.0
    """Dialling is tried again for so long; start order does not matter."""
    timeout_s: Annotated[float, Range(gt=0, le=3600, unit="seconds")] = 30.0
    """A peer that takes nothing, or says nothing that is due, for so long has failed."""
    heartbeat_s: Annotated[float, Range(gt=0, le=60, unit="seconds")] = 1.0
    """An idle connection shows a sign of life that often."""
    lost_after_s: Annotated[float, Range(gt=0, le=600, unit="seconds")] = 4.0
    """A peer without a sign of life for so long is reported to the controller."""
    chaos_delay_s: Annotated[float, Range(ge=0, le=60, unit="seconds")] = 0.0
    """Rehearsal: each message is sent a random time of at most so long late."""

    def problems(self, spec: RunSpec) -> Iterable[Problem]:
        if self.lost_after_s <= 2 * self.heartbeat_s:
            yield Problem(
                key="comms.lost_after_s",
                value=self.lost_after_s,
                rule=f"must be more than two heartbeats (comms.heartbeat_s={self.heartbeat_s:g})",
                nearest=f"{4 * self.heartbeat_s:g}",
            )

    def transports(self, credentials: Sequence[Credentials], host: str, port: int) -> list[TcpTransport]:
        """A transport for each node of this process, listening on (host, port); port 0: the system chooses."""
        return [TcpTransport(self, each, host, port) for each in credentials]


class TcpTransport:
    """Listens, dials, and keeps a :class:`Link` to each member."""

    def __init__(self, config: Tcp, credentials: Credentials, host: str, port: int) -> None:
        self.config, self.identity = config, Identity(credentials)
        self.timing = Timing(
            heartbeat_s=config.heartbeat_s,
            lost_after_s=config.lost_after_s,
            timeout_s=config.timeout_s,
            chaos_delay_s=config.chaos_delay_s,
        )
        self.links: dict[str, Link] = {}
        self.sink: Sink | None = None
        self._lock = threading.Lock()
        self._linked = threading.Condition(self._lock)
        self._closed = threading.Event()
        self._handshakes = threading.BoundedSemaphore(MAX_HANDSHAKES)
        family, *_, where = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        self._listener = socket.create_server((str(where[0]), int(where[1])), family=family, backlog=128)
        self.address: tuple[str, int] = self._listener.getsockname()[:2]
        self._acceptor = threading.Thread(target=self._accept, name="acceptor", daemon=True)
        self._greeting: dict[threading.Thread, socket.socket] = {}
        self._closers: list[threading.Thread] = []
        self._retired_sent = self._retired_received = 0

    def start(self, sink: Sink) -> None:
        """Begin to accept connections; what comes in goes to ``sink``."""
        self.sink = sink
        self._acceptor.start()

    def connect(self, peer: Member, address: tuple[str, int] | None, curve_key: str = "") -> None:
        """Open a link to ``peer``. ``address`` is where to dial; None: it dials us."""
        assert self.sink is not None
        dial = None
        if address is not None:
            where = address

            def dial(direction: Direction, expected: int) -> tuple[socket.socket, int]:
                return self._dial(peer, where, direction, expected)

        overhead = wire.tls_overhead if self.config.encryption == "on" else lambda num_bytes: 0
        link = Link(peer, self.sink, self.timing, dial, overhead)
        with self._linked:
            self.links[peer.name] = link
            self._linked.notify_all()
        link.start()

    def disconnect(self, name: str) -> None:
        """End the link to a member that is no longer one; returns at once."""
        with self._lock:
            link = self.links.pop(name, None)
            if link is None:
                return
            closer = threading.Thread(target=self._retire, args=(link,), name=f"closing {name}", daemon=True)
            self._closers = [*(other for other in self._closers if other.is_alive()), closer]
            closer.start()

    def _retire(self, link: Link) -> None:
        link.close(0.0)
        with self._lock:
            self._retired_sent += link.sent_bytes
            self._retired_received += link.received_bytes

    def send(self, to: str, frame: Frame) -> None:
        self.links[to].send(frame)

    def is_up(self, name: str) -> bool:
        link = self.links.get(name)
        return link is not None and link.up

    def silent_for(self, name: str) -> tuple[float, str]:
        """Seconds since the last sign of life of ``name`` (0 while it is we who do not read), and why."""
        link = self.links[name]
        return (0.0 if link.stalled else time.monotonic() - link.last_heard), link.last_error

    def has_left(self, name: str) -> bool:
        """The peer has said goodbye."""
        return self.links[name].has_left

    def traffic(self) -> tuple[int, int]:
        """Bytes (sent, received) at the sockets so far, headers and the overhead of TLS records included."""
        with self._lock:
            links = list(self.links.values())
            sent = self._retired_sent + sum(link.sent_bytes for link in links)
            received = self._retired_received + sum(link.received_bytes for link in links)
        return sent, received

    def close(self, flush_within: float) -> None:
        """End all links, after at most ``flush_within`` seconds for what is queued, and all threads."""
        with self._lock:
            links, closers = list(self.links.values()), list(self._closers)
        for link in links:
            closers.append(threading.Thread(target=link.close, args=(flush_within,), name="closer"))
            closers[-1].start()
        for closer in closers:
            closer.join()
        with self._linked:
            self._closed.set()  # until now a peer could come back for what is queued
            self._linked.notify_all()
        shut(self._listener)
        if self._acceptor.ident is not None:
            self._acceptor.join(2.0)
        self._listener.close()
        with self._lock:
            greeting = dict(self._greeting)
        for thread, sock in greeting.items():
            shut(sock)
            thread.join(2.0)

    # --- opening connections -----------------------------------------------------------------------------

    def _dial(
        self, peer: Member, address: tuple[str, int], direction: Direction, expected: int
    ) -> tuple[socket.socket, int]:
        """Connect, show certificates, say who we are and where to resume; the peer answers with the same."""
        raw = socket.create_connection(address, timeout=DIAL_S)
        until = time.monotonic() + HANDSHAKE_S
        try:
            _tune(raw)
            raw.settimeout(HANDSHAKE_S)
            sock = self.identity.wrap(raw, dialled=True)
        except BaseException:
            raw.close()
            raise
        try:
            name, joined = peer_of(sock, self.identity.run)
            if (name, joined) != (peer.name, peer.joined):
                raise PeerProtocolError("wrong identity", f"{address} is {name}#{joined}, not {peer.name}")
            self._write_control(sock, wire.HELLO, [direction, expected])
            kind, envelope = read_control(sock, until)
            if kind != wire.WELCOME:
                raise PeerProtocolError("refused", f"{peer.name} says: {envelope.plain[:1]}")
            return self._plain_if_off(sock), _number(envelope)
        except BaseException:
            sock.close()
            raise

    def _accept(self) -> None:
        self._listener.settimeout(0.2)
        while not self._closed.is_set():
            try:
                raw, where = self._listener.accept()
            except TimeoutError:
                continue
            except OSError as error:
                if self._closed.is_set():
                    return
                # The caller has gone again, or this process has too many files open: neither lasts.
                self._count("not accepted", f"{type(error).__name__}: {error}")
                self._closed.wait(ACCEPT_PAUSE_S)
                continue
            if not self._handshakes.acquire(blocking=False):
                self._count("too many handshakes", f"from {where[0]}")
                raw.close()
                continue
            thread = threading.Thread(target=self._welcome, args=(raw, where), name="handshake", daemon=True)
            with self._lock:
                self._greeting[thread] = raw
            thread.start()

    def _welcome(self, raw: socket.socket, where: tuple[str, int]) -> None:
        """The accepting side of a handshake, in a thread of its own."""
        try:
            self._greet(raw, where)
        finally:
            self._handshakes.release()
            with self._lock:
                del self._greeting[threading.current_thread()]

    def _greet(self, raw: socket.socket, where: tuple[str, int]) -> None:
        """Check who has dialled us, agree where to resume, and hand the connection to its link."""
        sock: socket.socket = raw
        until = time.monotonic() + HANDSHAKE_S
        try:
            _tune(raw)
            raw.settimeout(HANDSHAKE_S)
            secured = self.identity.prepare(raw, dialled=False)
            sock = secured
            with self._lock:
                self._greeting[threading.current_thread()] = secured
            secured.do_handshake()
            name, joined = peer_of(secured, self.identity.run)
            kind, envelope = read_control(secured, until)
            link = self._expected_link(secured, name, joined, kind, envelope)
            ours: Direction = "in" if envelope.plain[0] == "out" else "out"
            secured.settimeout(max(0.001, until - time.monotonic()))
            self._write_control(secured, wire.WELCOME, ["", link.incoming.expected])
            link.attach(ours, self._plain_if_off(secured), _number(envelope))
        except (ssl.SSLError, PeerProtocolError) as error:
            reason = error.reason if isinstance(error, PeerProtocolError) else "handshake"
            self._count(str(reason), f"{where[0]}: {error}")
            sock.close()
        except (OSError, EOFError) as error:
            self._count("handshake", f"{where[0]}: {type(error).__name__}: {error}")
            sock.close()

    def _expected_link(self, sock: ssl.SSLSocket, name: str, joined: int, kind: int, envelope: Envelope) -> Link:
        """The link that this connection is for; tells the peer why where there is none."""
        if kind != wire.HELLO or envelope.plain[:1] not in (["in"], ["out"]) or len(envelope.plain) != 2:
            why = "malformed hello"
        elif (envelope.run, envelope.sender, envelope.joined) != (self.identity.run, name, joined):
            why = "hello and certificate differ"
        elif link := self._link_to(name, joined):
            return link
        else:
            why = "not a member (yet)"
        self._write_control(sock, wire.REFUSED, [why])
        raise PeerProtocolError("refused", f"{name}#{joined}: {why}")

    def _link_to(self, name: str, joined: int) -> Link | None:
        """The link that this member may open; waits a moment where the view that it came in with is on its way."""
        until = time.monotonic() + VIEW_S
        with self._linked:
            while not self._closed.is_set():
                link = self.links.get(name)
                if link is not None and link.peer.joined == joined:
                    return link if link.dial is None else None
                left = until - time.monotonic()
                if left <= 0 or joined <= self._generation:
                    return None
                self._linked.wait(left)
        return None

    @property
    def _generation(self) -> int:
        """Of the view that we know."""
        assert self.sink is not None
        return self.sink.stamp(-1, -1, []).generation

    def _write_control(self, sock: socket.socket, kind: int, plain: list[Any]) -> None:
        assert self.sink is not None
        write_all(sock, wire.encode(kind, self.sink.stamp(-1, -1, plain)))

    def _plain_if_off(self, sock: ssl.SSLSocket) -> socket.socket:
        return sock if self.config.encryption == "on" else sock.unwrap()

    def _count(self, reason: str, detail: str) -> None:
        assert self.sink is not None
        self.sink.refused("", reason, detail)


def _tune(sock: socket.socket) -> None:
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)


def read_control(sock: socket.socket, until: float) -> tuple[int, Envelope]:
    """One control frame without payload, before a link exists; all of it before the time ``until``."""
    header = wire.parse_header(_exactly(sock, wire.HEADER.size, until), 0)
    return header.kind, wire.parse_meta(_exactly(sock, header.meta_bytes, until), 0)


def _exactly(sock: socket.socket, size: int, until: float) -> bytes:
    """A timeout of the socket would begin anew with each byte."""
    data = bytearray()
    while len(data) < size:
        left = until - time.monotonic()
        if left <= 0:
            raise TimeoutError(f"the handshake was not over within {HANDSHAKE_S:g} s")
        sock.settimeout(left)
        part = sock.recv(size - len(data))
        if not part:
            raise EOFError("the connection ended in the handshake")
        data += part
    return bytes(data)


def _number(envelope: Envelope) -> int:
    number = envelope.plain[1] if len(envelope.plain) == 2 else None
    if type(number) is not int or number < 0:
        raise PeerProtocolError("malformed", "hello and welcome end with a sequence number", fatal=True)
    return number

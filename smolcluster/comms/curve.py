"""ZeroMQ sockets that only members of this run can talk to, and the form of what goes over them.

CURVE keys are on the credentials of members; whose connection may pass is asked of :class:`Gate` during the
handshake (ZAP), and its answer stays attached to every message as ``User-Id``.
"""

from __future__ import annotations

import errno
import math
import socket
import struct
import threading
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import zmq
from zmq.utils import z85
from zmq.utils.garbage import gc as zero_copy_collector

from smolcluster.comms import wire
from smolcluster.comms.chunks import CHUNK_BYTES, WINDOW
from smolcluster.errors import PeerProtocolError

if TYPE_CHECKING:
    from smolcluster.comms.security import Credentials

PREFIX = struct.Struct("!4sBBHQQ")
"""The first part of each message: magic, version, kind, flags (0), a chunk number, and how many chunks are used."""
MAGIC = b"SMZQ"
HEAD, BODY = 6, 7
"""Kinds of message besides the control frames of comms/wire.py: the first chunk of a frame, and the others."""
MAX_PARTS = 12
"""Parts of one message: prefix, header with meta, and the tensors of a frame."""
VIEW_S = 2.0
"""The key of a member that dials before the view that names it has reached us is let wait so long."""
MAX_QUESTIONS = 32
"""Unknown keys that wait at one time; further ones are turned away at once."""
HANDSHAKE_S = 10.0
"""A connection that is not there and welcomed after that time is given up."""
REFUSED_AT_HANDSHAKE = int(
    zmq.EVENT_HANDSHAKE_FAILED_AUTH | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
)
BROKEN = int(zmq.EVENT_CLOSED | zmq.EVENT_DISCONNECTED) | REFUSED_AT_HANDSHAKE


class Prefix(NamedTuple):
    """What a message is: its kind, a chunk number (HEAD, BODY: its own; HELLO, WELCOME: the one expected next), and
    how many chunks of the other direction its sender has used."""

    kind: int
    number: int
    used: int

    def pack(self) -> bytes:
        return PREFIX.pack(MAGIC, wire.VERSION, self.kind, 0, self.number, self.used)


def parse_prefix(parts: Sequence[Any]) -> Prefix:
    """The prefix of a message in ``parts``; every fault is fatal."""
    if not 0 < len(parts) <= MAX_PARTS or len(parts[0]) != PREFIX.size:
        raise PeerProtocolError("malformed", f"a message of {len(parts)} parts", fatal=True)
    magic, version, kind, flags, number, used = PREFIX.unpack(parts[0].buffer)
    if magic != MAGIC:
        raise PeerProtocolError("malformed", f"a message starts with {magic!r}, not {MAGIC!r}", fatal=True)
    if version != wire.VERSION or flags:
        detail = f"version {version}, flags {flags} (we speak {wire.VERSION})"
        raise PeerProtocolError("wrong version", detail, fatal=True)
    return Prefix(kind, number, used)


def size_on_wire(parts: Sequence[Any]) -> int:
    """Bytes of a message with its framing: CURVE adds 33 to each part, ZMTP 2, or 9 beyond 255 bytes."""
    return sum(len(part) + 33 + (9 if len(part) + 33 > 255 else 2) for part in parts)


def open_socket(context: zmq.Context[Any], kind: int, me: Credentials) -> Any:
    """A socket with our keys and limits; neither waits nor holds anything back when it is closed."""
    made: Any = context.socket(kind)
    made.linger = 0
    made.sndhwm, made.rcvhwm = 4 * WINDOW, WINDOW
    made.setsockopt(zmq.MAXMSGSIZE, CHUNK_BYTES + wire.MAX_META_BYTES)
    made.setsockopt(zmq.HANDSHAKE_IVL, int(1000 * HANDSHAKE_S))
    made.setsockopt(zmq.TCP_KEEPALIVE, 1)
    made.curve_publickey, made.curve_secretkey = me.curve_public.encode(), me.curve_secret.encode()
    return made


def open_router(context: zmq.Context[Any], me: Credentials, host: str, port: int) -> tuple[Any, tuple[str, int]]:
    """The socket that others dial, and where; OSError where it cannot be opened there."""
    family, *_, where = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    router = open_socket(context, zmq.ROUTER, me)
    router.curve_server = 1
    router.setsockopt(zmq.ZAP_DOMAIN, b"smolcluster")
    router.setsockopt(zmq.ROUTER_MANDATORY, 1)
    router.setsockopt(zmq.BACKLOG, 128)
    router.setsockopt(zmq.IPV6, int(family == socket.AF_INET6))
    try:
        router.bind(_endpoint(str(where[0]), int(where[1])))
    except zmq.ZMQError as error:
        router.close(0)
        raise OSError(error.errno, error.strerror) from None
    return router, (str(where[0]), int(router.last_endpoint.rsplit(b":", 1)[1]))


def open_dealer(
    context: zmq.Context[Any], me: Credentials, address: tuple[str, int], server_key: bytes
) -> tuple[Any, Any]:
    """One connection, and the monitor that says how it ended; without ZeroMQ's own attempts to mend it: they would
    go on in the middle of a frame."""
    dealer = open_socket(context, zmq.DEALER, me)
    dealer.curve_serverkey = server_key
    dealer.setsockopt(zmq.IPV6, int(":" in address[0]))
    dealer.setsockopt(zmq.RECONNECT_IVL, -1)
    dealer.setsockopt(zmq.CONNECT_TIMEOUT, int(1000 * HANDSHAKE_S))
    monitor = dealer.get_monitor_socket(BROKEN)  # before it is dialled: a refusal may come at once
    dealer.connect(_endpoint(*address))
    return dealer, monitor


def _endpoint(host: str, port: int) -> str:
    return f"tcp://[{host}]:{port}" if ":" in host else f"tcp://{host}:{port}"


def unreachable(error: zmq.ZMQError) -> bool:
    """The ROUTER has no such connection any more."""
    return bool(error.errno == errno.EHOSTUNREACH)


class Question(NamedTuple):
    """A key that wants in: how to answer, whose key it is said to be, from where, and until when it may wait."""

    reply_to: list[bytes]
    key: bytes | None
    where: str
    until: float


class Gate:
    """Answers libzmq's question whether a key may pass (ZAP, rfc.zeromq.org/spec/27). Opened before a ROUTER is.

    A key that nobody knows waits :data:`VIEW_S` for the view that it may be in; at most :data:`MAX_QUESTIONS` wait.
    """

    def __init__(self, context: zmq.Context[Any]) -> None:
        self.socket: Any = context.socket(zmq.ROUTER)  # answers in any order, as a REP would not
        self.socket.linger = 0
        self.socket.bind("inproc://zeromq.zap.01")
        self._questions: list[Question] = []

    @property
    def due_at(self) -> float:
        return min((question.until for question in self._questions), default=math.inf)

    def hear(self, now: float) -> None:
        """Take in one question."""
        route, empty, version, request, _, where, _, mechanism, *shown = self.socket.recv_multipart()
        key = z85.encode(shown[0]) if mechanism == b"CURVE" and shown else None
        room = key is not None and len(self._questions) < MAX_QUESTIONS
        until = now + VIEW_S if room else now
        self._questions.append(Question([route, empty, version, request], key, where.decode(errors="replace"), until))

    def answer(self, users: Mapping[bytes, str], now: float) -> list[str]:
        """Let in the keys of ``users``, and turn away who has waited long enough: where those came from."""
        waiting, refused = [], []
        for question in self._questions:
            user = users.get(question.key) if question.key else None
            if user is not None:
                self.socket.send_multipart([*question.reply_to, b"200", b"", user.encode(), b""])
            elif now >= question.until:
                self.socket.send_multipart([*question.reply_to, b"400", b"not a member (yet)", b"", b""])
                refused.append(question.where)
            else:
                waiting.append(question)
        self._questions = waiting
        return refused


class ZeroCopy:
    """pyzmq has a thread that lets go of sent memory; it ends when the last transport of a process is closed."""

    def __init__(self) -> None:
        self._lock, self._users = threading.Lock(), 0

    def enter(self) -> None:
        with self._lock:
            self._users += 1

    def leave(self) -> None:
        with self._lock:
            self._users -= 1
            if self._users == 0:
                zero_copy_collector.stop()


ZERO_COPY = ZeroCopy()

"""A member that lies: it has a valid certificate and speaks the wire format. And a live node to lie to."""

from __future__ import annotations

import asyncio
import hashlib
import math
import random
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import msgpack
import torch
import zmq

from smolcluster.aggregator.mean import Mean
from smolcluster.algo import edp, syncps
from smolcluster.comms import wire
from smolcluster.comms.curve import HEAD, PREFIX, Prefix
from smolcluster.comms.link import shut
from smolcluster.comms.peers import NodePeers
from smolcluster.comms.security import Credentials, Identity
from smolcluster.comms.transport.tcp import read_control
from smolcluster.data.order import Course
from smolcluster.messages import Busy, Finish, Grant, Join, Params, Pull, Push, Rendezvous, Report, Update, Work
from smolcluster.ports import AlgorithmState, Applied, Gradient, Journal, Span, Step, Weights

BATCH = 16
COURSE = Course(num_samples=4 * BATCH, global_batch=BATCH, epochs=2)
HOLD_AT = 3
"""The honest worker's batch that waits until the attack is over."""
HUGE = 2**53
EDGES = (-1, 0, 1, HOLD_AT - 1, HOLD_AT, HOLD_AT + 1, BATCH, HUGE)
"""Whole numbers that a lie may be made of."""
FLOATS = (0.5, 0.0, -1.0, 1e308, math.nan, math.inf, -math.inf)
WITHIN_S = 20.0


class Lie(NamedTuple):
    """A frame, what it is counted as by who judges it, and what becomes of the connection and its number."""

    what: str
    head: bytes
    payload: bytes = b""
    number: int = 0
    takes_number: bool = True
    cuts: bool = False
    ends_early: bool = False


class Liar:
    """Makes frames, at random but always the same ones for a seed."""

    def __init__(self, seed: int, *, numel: int, run: str, joined: int, generation: int) -> None:
        self.rng, self.numel, self.run = random.Random(seed), numel, run
        self.name, self.joined, self.generation = "worker1", joined, generation
        self.earlier: list[bytes] = []
        numbers = torch.randn(numel, generator=torch.Generator().manual_seed(seed))
        broken = numbers.clone()
        broken[numel // 2] = math.nan
        self.payloads = [bytes(each.numpy().tobytes()) for each in (numbers, broken, torch.full((numel,), math.inf))]
        self.kinds: Sequence[tuple[int, Callable[[int, int], Lie]]] = (
            (30, self.update), (20, self.push), (6, self.other_message), (3, self.wrong_fingerprint),
            (8, self.wrong_shape), (6, self.wrong_tensors), (6, self.servers_message), (6, self.wrong_plain),
            (4, self.unknown_type), (4, self.wrong_run), (6, self.wrong_generation), (6, self.broken_meta),
            (5, self.wrong_size), (4, self.control), (6, self.replayed),
            (1, self.noise), (1, self.bad_header), (1, self.oversized), (1, self.truncated), (1, self.gap),
            (1, self.wrong_identity),
        )  # fmt: skip

    def next(self, number: int, ack: int) -> Lie:
        (make,) = self.rng.choices([kind for _, kind in self.kinds], [weight for weight, _ in self.kinds])
        return make(number, ack)

    # --- building ------------------------------------------------------------------------------------------

    def meta(self, number: int, ack: int, plain: Any, tensors: Any = (), **changes: Any) -> list[Any]:
        fields = {"run": self.run, "generation": self.generation, "sender": self.name, "joined": self.joined}
        fields |= {"seq": number, "ack": ack, "plain": plain, "tensors": [list(each) for each in tensors]}
        return list({**fields, **changes}.values())

    @staticmethod
    def head(kind: int, meta: Any, payload_bytes: int = 0) -> bytes:
        packed = msgpack.packb(meta)
        return wire.HEADER.pack(wire.MAGIC, wire.VERSION, kind, 0, len(packed), payload_bytes) + packed

    def frame(
        self, what: str, kind: int, number: int, ack: int, plain: Any, payload: bytes = b"", **changes: Any
    ) -> Lie:
        """A well-formed frame, with a gradient as agreed where there is a payload."""
        tensors = [("gradient", "float32", self.numel)] if payload else []
        head = self.head(kind, self.meta(number, ack, plain, tensors, **changes), len(payload))
        return Lie(what, head, payload, number)

    def spans(self) -> list[int]:
        honest = [0, HOLD_AT * BATCH, (HOLD_AT + 1) * BATCH]
        return self.rng.choice(
            [[], honest, honest * 2, honest[:2], [*honest, 7], [0, 0, BATCH], [0, BATCH, 0], [HUGE] * 3, [-1] * 4096]
        )

    # --- lies ----------------------------------------------------------------------------------------------

    def update(self, number: int, ack: int) -> Lie:
        """Well-formed, for a step and spans that were never asked of it."""
        pick = self.rng.choice
        plain = [pick(EDGES), pick(EDGES), self.spans(), pick(EDGES), pick(EDGES), *(pick(FLOATS) for _ in range(3))]
        lie = self.frame("role", Update.code, number, ack, plain, pick(self.payloads))
        if len(self.earlier) < 50:
            self.earlier.append(lie.head + lie.payload)
        return lie

    def push(self, number: int, ack: int) -> Lie:
        """Well-formed, for a lease that is another's, or nobody's."""
        pick = self.rng.choice
        plain = [*(pick(EDGES) for _ in range(4)), *(pick(FLOATS) for _ in range(3))]
        return self.frame("role", Push.code, number, ack, plain, pick(self.payloads))

    def other_message(self, number: int, ack: int) -> Lie:
        """What a worker may send, but to nobody who is a parameter server."""
        report = [self.rng.choice(EDGES) for _ in range(3)] + [self.rng.choice(FLOATS) for _ in range(3)]
        code, plain = self.rng.choice([(Rendezvous.code, ["x" * 4096, HUGE]), (Report.code, report)])
        return self.frame("role", code, number, ack, plain)

    def wrong_fingerprint(self, number: int, ack: int) -> Lie:
        return self.frame("role", Join.code, number, ack, [self.rng.choice(["", "another", "x" * 4096])])

    def wrong_shape(self, number: int, ack: int) -> Lie:
        dtype, numel = self.rng.choice(
            [("float64", self.numel), ("uint8", self.numel), ("float32", self.numel - 1), ("float32", 0)]
        )
        payload = bytes(numel * wire.DTYPE_BYTES[dtype])
        meta = self.meta(number, ack, [0, 0, [], 1, 1, 0.5, 0.1, 0.1], [("gradient", dtype, numel)])
        return Lie("wrong shape", self.head(Update.code, meta, len(payload)), payload, number)

    def wrong_tensors(self, number: int, ack: int) -> Lie:
        what, tensors = self.rng.choice([
            ("wrong tensors", []), ("wrong tensors", [("wieghts", "uint8", 3)]),
            ("wrong tensors", [("parameters", "float32", self.numel)]),
            ("wrong tensors", [("gradient", "float32", 1)] * 2), ("wrong tensors", [("gradient", "uint8", 0)] * 8),
            ("unknown layout", [("gradient", "float32", self.numel), ("buffers", "float64", 1)]),
        ])  # fmt: skip
        payload = bytes(sum(numel * wire.DTYPE_BYTES[dtype] for _, dtype, numel in tensors))
        meta = self.meta(number, ack, [0, 0, [], 1, 1, 0.5, 0.1, 0.1], tensors)
        return Lie(what, self.head(Update.code, meta, len(payload)), payload, number)

    def servers_message(self, number: int, ack: int) -> Lie:
        weights = [("parameters", "float32", self.numel)]
        code, plain, tensors = self.rng.choice([
            (Work.code, [0, 0, 1.0, []], weights), (Params.code, [9, "better ones"], weights),
            (Grant.code, [[0, 0, 0, 16]], []), (Finish.code, ["done"], []), (Busy.code, ["wait"], []),
        ])  # fmt: skip
        payload = self.payloads[0] if tensors else b""
        return Lie(
            "wrong sender", self.head(code, self.meta(number, ack, plain, tensors), len(payload)), payload, number
        )

    def wrong_plain(self, number: int, ack: int) -> Lie:
        """Too few fields, too many, of another type, or out of bounds."""
        good = [0, 0, [], 1, 1, 0.5, 0.1, 0.1]
        bad = [None, "text", True, -2, HUGE + 1, 0.5, [0.5], [[0]], {}, [-2], b"\x00", [HUGE + 1]]
        index = self.rng.randrange(5)
        plain = self.rng.choice([[], good[:-1], [*good, 0], [*good[:index], self.rng.choice(bad), *good[index + 1 :]]])
        what = "malformed early" if b"\x00" in plain else "malformed"
        return self.frame(what, Update.code, number, ack, plain, self.payloads[0])._replace(
            takes_number=what == "malformed"
        )

    def unknown_type(self, number: int, ack: int) -> Lie:
        return self.frame("unknown type", self.rng.choice([0, 6, 15, 200, 255]), number, ack, [], self.payloads[0])

    def wrong_run(self, number: int, ack: int) -> Lie:
        run = self.rng.choice(["", "another", "x" * 256])
        return self.frame("wrong run", Pull.code, number, ack, [0], run=run)

    def wrong_generation(self, number: int, ack: int) -> Lie:
        waits = self.rng.random() < 0.05
        generation = self.generation + 3 if waits else self.rng.choice([-1, 0, self.joined - 1, 10**6, 2**62 - 1])
        what = "future generation" if generation > self.generation else "old generation"
        return self.frame(what, Pull.code, number, ack, [0], generation=generation)

    def broken_meta(self, number: int, ack: int) -> Lie:
        good = self.meta(number, ack, [0])
        index = self.rng.randrange(8)
        other = self.rng.choice([None, 1.5, "x" * 300, {}, 2**63])
        meta = self.rng.choice([
            self.rng.randbytes(self.rng.randrange(300)), msgpack.packb(good)[:-1], msgpack.packb(good[:7]),
            b"\xdd\xff\xff\xff\xff", b"\x91" * 5000, msgpack.packb([*good[:index], other, *good[index + 1 :]]),
        ])  # fmt: skip
        head = wire.HEADER.pack(wire.MAGIC, wire.VERSION, Pull.code, 0, len(meta), 0) + meta
        return Lie("malformed", head, b"", number, takes_number=False)

    def wrong_size(self, number: int, ack: int) -> Lie:
        """The payload is not as long as its tensors are."""
        payload = bytes(self.rng.choice([0, 1, 4 * self.numel - 1, 4 * self.numel + 1]))
        numel = self.rng.choice([self.numel, 2**48 - 1])
        meta = self.meta(number, ack, [0, 0, [], 1, 1, 0.5, 0.1, 0.1], [("gradient", "float32", numel)])
        return Lie("wrong size", self.head(Update.code, meta, len(payload)), payload, number, takes_number=False)

    def control(self, number: int, ack: int) -> Lie:
        """A frame of a handshake, behind it."""
        kind = self.rng.choice([wire.HELLO, wire.WELCOME, wire.REFUSED])
        return Lie("malformed", self.head(kind, self.meta(number, ack, ["out", 0])), b"", number, takes_number=False)

    def replayed(self, number: int, ack: int) -> Lie:
        """One of its own frames once more: the number is an old one, all else was good."""
        if not self.earlier:
            return self.update(number, ack)
        data = self.rng.choice(self.earlier)
        head_bytes = wire.HEADER.size + wire.parse_header(data[: wire.HEADER.size], 1 << 40).meta_bytes
        old = msgpack.unpackb(data[wire.HEADER.size : head_bytes])[4]
        return Lie("duplicate", data[:head_bytes], data[head_bytes:], old, takes_number=False)

    # --- lies that end a connection --------------------------------------------------------------------------

    def noise(self, number: int, ack: int) -> Lie:
        return Lie("malformed", b"\x00" + self.rng.randbytes(100), b"", number, takes_number=False, cuts=True)

    def bad_header(self, number: int, ack: int) -> Lie:
        good = self.head(Pull.code, self.meta(number, ack, [0]))
        offset, value, what = self.rng.choice(
            [(0, b"HTTP", "malformed"), (4, b"\x02", "wrong version"), (7, b"\x01", "wrong version")]
        )
        head = good[:offset] + value + good[offset + len(value) :]
        return Lie(what, head, b"", number, takes_number=False, cuts=True)

    def oversized(self, number: int, ack: int) -> Lie:
        meta_bytes, payload_bytes = self.rng.choice(
            [(0, 8 * self.numel + 1), (0, 2**63), (64 * 1024 + 1, 0), (2**32 - 1, 2**64 - 1)]
        )
        head = wire.HEADER.pack(wire.MAGIC, wire.VERSION, Update.code, 0, meta_bytes, payload_bytes)
        return Lie("oversized", head, b"", number, takes_number=False, cuts=True)

    def truncated(self, number: int, ack: int) -> Lie:
        """The connection ends somewhere in the frame."""
        whole = self.frame("truncated", Update.code, number, ack, [0, 0, [], 1, 1, 0.5, 0.1, 0.1], self.payloads[0])
        data = whole.head + whole.payload
        part = data[: self.rng.choice([1, 19, 20, 25, len(whole.head), len(whole.head) + 1, len(data) - 1])]
        return Lie("truncated", part, b"", number, takes_number=False, cuts=True, ends_early=True)

    def gap(self, number: int, ack: int) -> Lie:
        ahead = number + self.rng.choice([1, 2, 1000, 2**61])
        lie = self.frame("wrong sequence", Pull.code, ahead, ack, [0])
        return lie._replace(takes_number=False, cuts=True)

    def wrong_identity(self, number: int, ack: int) -> Lie:
        change = self.rng.choice(
            [{"sender": "worker0"}, {"sender": "server"}, {"joined": self.joined - 1}, {"joined": 99}]
        )
        lie = self.frame("wrong identity", Pull.code, number, ack, [0], **change)
        return lie._replace(takes_number=False, cuts=True)


# --- the wires that it speaks on ------------------------------------------------------------------------------


class Wire:
    """To be closed whatever happens."""

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class TcpWire(Wire):
    """Two TLS connections to a node, as a dialling member has them. What the node says is read and acknowledged."""

    def __init__(self, address: tuple[str, int], me: Credentials, generation: int, *, deaf: bool = False) -> None:
        self.address, self.me, self.generation = address, me, generation
        self.identity = Identity(me)
        self.ack = 0
        self.incoming, _ = self._dial("in")
        self.reader = threading.Thread(target=(lambda: None) if deaf else self._read)
        self.reader.start()
        self.outgoing, self.number = self._dial("out")
        self.cuts = 0

    def _dial(self, direction: str) -> tuple[Any, int]:
        raw = socket.create_connection(self.address, timeout=WITHIN_S)
        raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock = self.identity.wrap(raw, dialled=True)
        envelope = wire.Envelope(
            self.me.run, self.generation, self.me.name, self.me.joined, -1, -1, [direction, self.ack]
        )
        sock.sendall(wire.encode(wire.HELLO, envelope))
        kind, answer = read_control(sock, time.monotonic() + WITHIN_S)
        assert kind == wire.WELCOME, answer
        sock.settimeout(WITHIN_S)
        return sock, answer.plain[1]

    def _read(self) -> None:
        """Take frames in and count them, until the end."""
        with self.incoming.makefile("rb") as stream:
            try:
                while len(head := stream.read(wire.HEADER.size)) == wire.HEADER.size:
                    header = wire.parse_header(head, 1 << 40)
                    envelope = wire.parse_meta(stream.read(header.meta_bytes), header.payload_bytes)
                    stream.read(header.payload_bytes)
                    self.ack = max(self.ack, envelope.seq + 1)
            except OSError:
                return  # the node has hung up

    def say(self, lie: Lie) -> None:
        self.outgoing.sendall(lie.head + lie.payload)
        self.number += lie.takes_number
        if lie.ends_early:
            socket.socket.shutdown(self.outgoing, socket.SHUT_WR)
        if lie.cuts:
            self.cuts += 1
            self._await_cut()
            self.outgoing, expected = self._dial("out")
            assert expected == self.number, f"after {lie.what}: the node expects {expected}, not {self.number}"

    def _await_cut(self) -> None:
        try:
            while self.outgoing.recv(1 << 16):
                pass
        except OSError:
            pass  # a reset is a cut as well
        self.outgoing.close()

    def close(self) -> None:
        for sock in (self.incoming, self.outgoing):
            shut(sock)
            sock.close()
        self.reader.join()


class ZmqWire(Wire):
    """One CURVE connection. Whatever a frame is, its chunk is taken; lies about the chunk's number are told there."""

    def __init__(self, address: tuple[str, int], server_key: str, me: Credentials, generation: int) -> None:
        self.me, self.generation = me, generation
        self.context: zmq.Context[Any] = zmq.Context()
        self.socket: Any = self.context.socket(zmq.DEALER)
        self.socket.linger, self.socket.rcvtimeo = 0, int(1000 * WITHIN_S)
        self.socket.curve_serverkey = server_key.encode()
        self.socket.curve_publickey, self.socket.curve_secretkey = me.curve_public.encode(), me.curve_secret.encode()
        self.socket.connect(f"tcp://{address[0]}:{address[1]}")
        self.used = self.number = self.ack = self.cuts = 0
        self._hello()

    def _hello(self) -> None:
        envelope = wire.Envelope(self.me.run, self.generation, self.me.name, self.me.joined, -1, -1, [])
        self.socket.send_multipart([Prefix(wire.HELLO, self.ack, 0).pack(), wire.encode(wire.HELLO, envelope)])
        while True:
            kind, number = self._hear()
            if kind == wire.WELCOME:
                assert number == self.number
                return

    def _hear(self) -> tuple[int, int]:
        prefix, *_ = self.socket.recv_multipart()
        *_, kind, _flags, number, used = PREFIX.unpack(prefix)
        self.used = max(self.used, used)
        if kind == HEAD:
            self.ack = number + 1
        return kind, number

    def say(self, lie: Lie) -> None:
        replay, gap = lie.what == "duplicate", lie.what == "wrong sequence"
        number = lie.number if replay or gap else self.number
        while number < 2**61 and number - self.used >= 8 and not (replay or gap):
            self._hear()
        parts = [lie.head, lie.payload] if lie.payload else [lie.head]
        self.socket.send_multipart([Prefix(HEAD, number, self.ack).pack(), *parts])
        self.number += not (replay or gap)
        if gap:
            self.cuts += 1
            while self._hear()[0] != wire.REFUSED:
                pass
            self._hello()

    def close(self) -> None:
        self.context.destroy(0)


# --- the node that is lied to -----------------------------------------------------------------------------------


@dataclass
class Toy:
    """A learner whose arithmetic is exact: gradient w / 2 + mean(position mod 16), learning rate 1/2."""

    numel: int
    num_steps: int = 0
    version: int = 0
    num_samples: int = COURSE.num_samples
    fingerprint: str = "toy"
    weights: Any = None
    holding: asyncio.Event = field(default_factory=asyncio.Event)
    gate: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self.num_params, self.max_items = self.numel, 1
        self.weights = torch.zeros(self.numel)

    async def gradient(self, spans: Sequence[Span], *, step: int, rank: int) -> Gradient:
        if step == HOLD_AT:
            self.holding.set()
            await self.gate.wait()
        positions = [position % 16 for span in spans for position in range(span.start, span.stop)]
        count = len(positions)
        flat = self.weights / 2 + sum(positions) / count
        return Gradient(flat=flat, buffers=None, loss=0.5, num_samples=count, num_items=count, seconds=0.01)

    async def apply(self, gradient: Any, *, buffers: Any = None, lr_scale: float = 1.0) -> Applied:
        self.weights = self.weights - gradient * (lr_scale / 2)
        self.version += 1
        return Applied(1.0, 1.0, False, 0.5, {})

    async def load(self, weights: Weights, *, blend: float = 1.0) -> None:
        self.weights = blend * weights.parameters + (1 - blend) * self.weights

    async def snapshot(self) -> Weights:
        return Weights(self.weights.clone(), None)

    async def load_buffers(self, buffers: Any) -> None:
        raise AssertionError("it has none")

    async def compute(self, work: Callable[[], Any], passes: float = 1.0) -> Any:
        return work()

    def digest(self) -> str:
        return hashlib.sha256(self.weights.numpy().tobytes()).hexdigest()


class Notes(Journal):
    """Counts what roles write down."""

    def __init__(self) -> None:
        self.commits: list[Step] = []
        self.events: Counter[tuple[str, str]] = Counter()

    async def commit(self, step: Step, state: AlgorithmState) -> None:
        self.commits.append(step)

    def event(self, kind: str, **fields: Any) -> None:
        self.events[kind, fields["peer"]] += 1


class LoopClock:
    """Implements :class:`smolcluster.ports.Clock` on the event loop's time."""

    def now(self) -> float:
        return asyncio.get_running_loop().time()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


@dataclass
class Live:
    """A parameter server and an honest worker that train, on ``peers`` that are connected."""

    algo: str
    server: NodePeers
    worker: NodePeers
    numel: int
    notes: Notes = field(default_factory=Notes)

    def start(self) -> None:
        self.theta, self.local = Toy(self.numel), Toy(self.numel)
        if self.algo == "syncps":
            self.role: Any = syncps.Server(syncps.SyncPS(sync_max_wait_s=60.0), COURSE, Mean(), None)
            honest: Any = syncps.Worker(patience_s=60.0)
        else:
            self.role = edp.Server(edp.EDP(max_wait_s=60.0), COURSE, Mean(), None)
            honest = edp.Worker(edp.EDP(), 0, patience_s=60.0)
        clock = LoopClock()
        self.tasks = [
            asyncio.create_task(self.role.run(self.server, self.theta, clock, self.notes)),
            asyncio.create_task(honest.run(self.worker, self.local, clock, Notes())),
        ]

    @property
    def state(self) -> tuple[int, str, int]:
        """What no lie may change: version, weights, and how many steps were written down."""
        return self.theta.version, self.theta.digest(), len(self.notes.commits)

    def counted(self, peer: str) -> Counter[str]:
        """Frames of ``peer`` by who refused them and why; each is in exactly one of these."""
        by_comms = {reason: n for (name, reason), n in self.server.refusals.items() if name == peer}
        counts: Mapping[str, int] = self.role.counts
        by_role = sum(counts[f"{kind}/{peer}"] for kind in ("refused", "late"))
        return Counter(by_comms) + Counter({"role": by_role})

    async def finish(self) -> Any:
        """Let the honest worker go on to the end; the weights."""
        self.local.gate.set()
        await asyncio.gather(*self.tasks)
        return self.theta.weights

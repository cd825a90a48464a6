"""``comms=memory``: all nodes in one process, no sockets. For tests of exactness and for trying things out."""

from __future__ import annotations

import random
import threading
import time
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar

from smolcluster.comms import wire
from smolcluster.comms.frames import Frame, Sink
from smolcluster.comms.session import Backlog
from smolcluster.errors import PeerProtocolError, Problem
from smolcluster.ports import Member
from smolcluster.spec.schema import Range

if TYPE_CHECKING:
    from smolcluster.comms.security import Credentials
    from smolcluster.spec.run import RunSpec

JOIN_S = 2.0
"""How long a reader is waited for; it may be in the middle of a message."""


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Frames are encoded, judged and copied as on a wire, but never leave the process."""

    separate_processes: ClassVar[bool] = False

    connect_timeout_s: Annotated[float, Range(gt=0, le=3600, unit="seconds")] = 30.0
    """Has no effect here: everybody is there from the start."""
    timeout_s: Annotated[float, Range(gt=0, le=3600, unit="seconds")] = 30.0
    """A peer that takes nothing for so long has failed."""
    lost_after_s: Annotated[float, Range(gt=0, le=600, unit="seconds")] = 4.0
    """Has no effect here: nobody is lost alone."""
    chaos_delay_s: Annotated[float, Range(ge=0, le=60, unit="seconds")] = 0.0
    """Rehearsal: each message arrives a random time of at most so long late."""

    def problems(self, spec: RunSpec) -> Iterable[Problem]:
        if not spec.cluster.is_local:
            rule = "holds all nodes in one process: use comms=tcp for machines"
            yield Problem(key="comms", value="memory", rule=rule, nearest="tcp")

    def transports(self, credentials: Sequence[Credentials], host: str, port: int) -> list[MemoryTransport]:
        """One transport for each node of this process."""
        hub = Hub()
        return [MemoryTransport(each.name, hub, self.chaos_delay_s) for each in credentials]


class Pipe:
    """What one node has sent to another and is not taken yet: (header and meta, frame), oldest first."""

    def __init__(self) -> None:
        self.frames: deque[tuple[bytes, Frame]] = deque()
        self.backlog = Backlog()
        self.changed = threading.Condition()
        self.closed = False
        self.received_bytes = 0

    def put(self, head: bytes, frame: Frame, to: str, max_payload_bytes: int) -> None:
        with self.changed:
            self.backlog.add(frame.payload_bytes, to, max_payload_bytes)
            self.frames.append((head, frame))
            self.changed.notify_all()

    def oldest(self) -> tuple[bytes, Frame] | None:
        """Wait for a frame, and leave it there until it is :meth:`taken`; None when the pipe is closed."""
        with self.changed:
            self.changed.wait_for(lambda: self.frames or self.closed)
            return None if self.closed else self.frames[0]

    def taken(self) -> None:
        with self.changed:
            _, frame = self.frames.popleft()
            self.backlog.done(frame.payload_bytes)
            self.changed.notify_all()
        frame.done()

    def flush(self, within: float) -> None:
        with self.changed:
            self.changed.wait_for(lambda: not self.frames or self.closed, within)

    def close(self) -> None:
        with self.changed:
            self.closed = True
            self.changed.notify_all()


class Hub:
    """The pipes of all nodes, by (sender, receiver), made when first needed: nobody must be there first."""

    def __init__(self) -> None:
        self._pipes: dict[tuple[str, str], Pipe] = {}
        self._lock = threading.Lock()

    def pipe(self, sender: str, receiver: str) -> Pipe:
        with self._lock:
            return self._pipes.setdefault((sender, receiver), Pipe())

    def drop(self, sender: str, receiver: str) -> None:
        """What is sent from now on goes into a fresh pipe."""
        with self._lock:
            self._pipes.pop((sender, receiver), None)

    def sent_by(self, sender: str) -> list[Pipe]:
        with self._lock:
            return [pipe for (start, _), pipe in self._pipes.items() if start == sender]


class MemoryTransport:
    """One node's end. A thread for each peer takes in what it has sent."""

    def __init__(self, name: str, hub: Hub, chaos_delay_s: float) -> None:
        self.name, self.hub, self.chaos_delay_s = name, hub, chaos_delay_s
        self.address = ("memory", 0)
        self.sent_bytes = 0
        self._seq = 0
        self._incoming: dict[str, Pipe] = {}
        self._read_from: list[tuple[Pipe, threading.Thread]] = []

    def start(self, sink: Sink) -> None:
        self.sink = sink

    def connect(self, peer: Member, address: tuple[str, int] | None, curve_key: str = "") -> None:
        pipe = self.hub.pipe(peer.name, self.name)
        thread = threading.Thread(target=self._read, args=(peer, pipe), name=f"reader from {peer.name}", daemon=True)
        self._incoming[peer.name] = pipe
        self._read_from.append((pipe, thread))
        thread.start()
        self.sink.link_changed(peer, True, "connected")

    def disconnect(self, name: str) -> None:
        self._incoming.pop(name).close()
        self.hub.drop(name, self.name)
        self.hub.drop(self.name, name)

    def send(self, to: str, frame: Frame) -> None:
        head = wire.encode(frame.kind, self.sink.stamp(self._seq, 0, frame.plain, frame.tensors))
        self.hub.pipe(self.name, to).put(head, frame, to, self.sink.max_payload_bytes)
        self._seq += 1
        self.sent_bytes += len(head) + wire.total(frame.tensors)

    def is_up(self, name: str) -> bool:
        return name in self._incoming

    def silent_for(self, name: str) -> tuple[float, str]:
        return 0.0, ""

    def has_left(self, name: str) -> bool:
        return False  # all end together

    def traffic(self) -> tuple[int, int]:
        return self.sent_bytes, sum(pipe.received_bytes for pipe, _ in self._read_from)

    def close(self, flush_within: float) -> None:
        until = time.monotonic() + flush_within
        for pipe in self.hub.sent_by(self.name):
            pipe.flush(until - time.monotonic())
        for pipe, thread in self._read_from:
            pipe.close()
            thread.join(JOIN_S)

    def _read(self, peer: Member, pipe: Pipe) -> None:
        while (item := pipe.oldest()) is not None:
            if self.chaos_delay_s:
                time.sleep(random.uniform(0, self.chaos_delay_s))
            try:
                self._take(peer, pipe, *item)
            except PeerProtocolError as error:
                self.sink.refused(peer.name, error.reason, str(error))
            pipe.taken()

    def _take(self, peer: Member, pipe: Pipe, head: bytes, frame: Frame) -> None:
        view = memoryview(head)
        header = wire.parse_header(view[: wire.HEADER.size], self.sink.max_payload_bytes)
        envelope = wire.parse_meta(view[wire.HEADER.size :], header.payload_bytes)
        pipe.received_bytes += len(head) + header.payload_bytes
        landing = self.sink.admit(peer, header.kind, envelope)
        for target, source in zip(landing.payload, frame.payload, strict=True):
            target[:] = source
        self.sink.deliver(peer, landing)

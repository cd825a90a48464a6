"""``comms=memory``: all nodes in one process, no sockets. For tests of exactness and for trying things out."""

from __future__ import annotations

import queue
import random
import threading
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar

from smolcluster.comms import wire
from smolcluster.comms.link import Frame, Sink
from smolcluster.errors import PeerProtocolError, Problem
from smolcluster.ports import Member
from smolcluster.spec.schema import Range

if TYPE_CHECKING:
    from smolcluster.comms.security import Credentials
    from smolcluster.spec.run import RunSpec


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
        hub: dict[str, MemoryTransport] = {}
        for each in credentials:
            hub[each.name] = MemoryTransport(each.name, hub, self.chaos_delay_s)
        return list(hub.values())


class MemoryTransport:
    """One node's end. A thread delivers what the others send, in order of sending."""

    def __init__(self, name: str, hub: dict[str, MemoryTransport], chaos_delay_s: float) -> None:
        self.name, self.hub, self.chaos_delay_s = name, hub, chaos_delay_s
        self.address = ("memory", 0)
        self.sent_bytes = self.received_bytes = 0
        self._peers: dict[str, Member] = {}
        self._inbox: queue.SimpleQueue[tuple[str, bytes, Frame] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._deliver, name=f"memory of {name}", daemon=True)
        self._seq = 0

    def start(self, sink: Sink) -> None:
        self.sink = sink
        self._thread.start()

    def connect(self, peer: Member, address: tuple[str, int] | None) -> None:
        self._peers[peer.name] = peer
        self.sink.link_changed(peer, True, "connected")

    def disconnect(self, name: str) -> None:
        self._peers.pop(name, None)

    def send(self, to: str, frame: Frame) -> None:
        head = wire.encode(frame.kind, self.sink.stamp(self._seq, 0, frame.plain, frame.tensors))
        self._seq += 1
        self.sent_bytes += len(head) + wire.total(frame.tensors)
        self.hub[to]._inbox.put((self.name, head, frame))

    def is_up(self, name: str) -> bool:
        return name in self._peers

    def silent_for(self, name: str) -> tuple[float, str]:
        return 0.0, ""

    def traffic(self) -> tuple[int, int]:
        return self.sent_bytes, self.received_bytes

    def close(self, flush_within: float) -> None:
        self._inbox.put(None)
        self._thread.join(flush_within + 1.0)

    def _deliver(self) -> None:
        while (item := self._inbox.get()) is not None:
            sender, head, frame = item
            if self.chaos_delay_s:
                time.sleep(random.uniform(0, self.chaos_delay_s))
            try:
                self._take(sender, memoryview(head), frame)
            except PeerProtocolError as error:
                self.sink.refused(sender, error.reason, str(error))
            frame.done()

    def _take(self, sender: str, head: memoryview, frame: Frame) -> None:
        header = wire.parse_header(head[: wire.HEADER.size], self.sink.max_payload_bytes)
        envelope = wire.parse_meta(head[wire.HEADER.size :], header.payload_bytes)
        self.received_bytes += len(head) + header.payload_bytes
        peer = self._peers.get(sender)
        if peer is None:
            raise PeerProtocolError("not a member", f"{sender} is not connected to {self.name}")
        landing = self.sink.admit(peer, header.kind, envelope)
        for target, source in zip(landing.payload, frame.payload, strict=True):
            target[:] = source
        self.sink.deliver(peer, landing)

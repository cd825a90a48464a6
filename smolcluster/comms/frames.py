"""What every transport is made for: frames out, frames in, and who judges them. The words they share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from smolcluster.ports import Member

if TYPE_CHECKING:
    from smolcluster.comms.wire import Envelope, TensorSpec

ACK_DELAY_S = 0.002
"""How long an acknowledgement waits for a frame that it can travel on."""


@dataclass
class Frame:
    """An outgoing message: what stands in its meta part, and the memory its tensors lie in."""

    kind: int
    plain: list[Any]
    tensors: tuple[TensorSpec, ...] = ()
    payload: list[memoryview] = field(default_factory=list)
    done: Callable[[], None] = lambda: None

    @property
    def payload_bytes(self) -> int:
        return sum(view.nbytes for view in self.payload)


class Landing(Protocol):
    """An incoming message that may come in: where its payload goes."""

    payload: list[memoryview]


class Sink(Protocol):
    """What a transport hands frames to. Called from the transport's threads."""

    max_payload_bytes: int

    def stamp(self, seq: int, ack: int, plain: list[Any], tensors: tuple[TensorSpec, ...] = ()) -> Envelope:
        """The meta part of a frame that leaves now."""

    def admit(self, peer: Member, kind: int, envelope: Envelope) -> Landing:
        """Judge a frame before its payload is received; raises PeerProtocolError. May block: back-pressure."""

    def deliver(self, peer: Member, landing: Any) -> None:
        """The payload of what :meth:`admit` returned is complete. May block: back-pressure."""

    def abandon(self, peer: Member, landing: Any) -> None:
        """The rest of what :meth:`admit` returned will not come; it may come again as another frame."""

    def link_changed(self, peer: Member, up: bool, reason: str) -> None: ...

    def refused(self, peer: str, reason: str, detail: str) -> None:
        """Something that came from ``peer`` was refused; to be counted under ``reason``."""


@dataclass(frozen=True, kw_only=True)
class Timing:
    """Deadlines of a link, in seconds."""

    heartbeat_s: float
    lost_after_s: float
    timeout_s: float
    chaos_delay_s: float = 0.0


class Transport(Protocol):
    """Moves frames between members: in order, each once, over connections that may break and be reopened."""

    address: tuple[str, int]

    def start(self, sink: Sink) -> None: ...
    def connect(self, peer: Member, address: tuple[str, int] | None, curve_key: str = "") -> None: ...
    def disconnect(self, name: str) -> None: ...
    def send(self, to: str, frame: Frame) -> None: ...
    def is_up(self, name: str) -> bool: ...
    def silent_for(self, name: str) -> tuple[float, str]: ...
    def has_left(self, name: str) -> bool: ...
    def traffic(self) -> tuple[int, int]: ...
    def close(self, flush_within: float) -> None: ...

"""The other nodes, as an algorithm sees them: messages in order, changes of membership, deadlines, counts.

Frames come in on a transport's threads. Each is judged here (run, membership, generation, type, sizes) before
a byte of its payload is received; what passes is handed to the role in the event loop, and what does not is
counted under its reason. Memory is bounded per peer: a few buffers per kind of tensor, and
:data:`MAX_WAITING` messages that the role has not taken yet.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from smolcluster.comms.buffers import BufferPool, Layout, as_bytes, as_tensor, verify
from smolcluster.comms.frames import Frame, Transport
from smolcluster.comms.mailbox import Mailbox, OnItsWay
from smolcluster.comms.membership import Admission, admit, changes
from smolcluster.comms.wire import Envelope, TensorSpec
from smolcluster.errors import LocalProtocolError, PeerLost, PeerProtocolError
from smolcluster.messages import ANYBODY, Message, parse, plain_fields, tensor_fields, with_tensors
from smolcluster.ports import Member, Received, Reporter, View, ViewChanged

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

T = TypeVar("T")

MAX_WAITING = 64
"""Messages of one peer that the role has not taken yet; more are not read from the socket."""
BUFFERS_PER_PEER = 2
"""Receive buffers per peer and layout: one in use, one to receive into meanwhile."""
ROOM_S = 0.25
"""Who waits for room looks that often whether the peer is still a member."""
WATCH_S = 0.25
"""How often silence is looked for."""


@dataclass(frozen=True, kw_only=True)
class Patience:
    """Deadlines, in seconds; ``silent`` peers are reported, a lost server ends the run.

    A frame of a newer generation waits ``lost_s`` for the view to reach us.
    """

    connect_s: float
    silent_s: float
    lost_s: float


@dataclass
class Landing:
    """A message whose payload is being received."""

    sender: Member
    cls: type[Message]
    plain: dict[str, Any]
    arrays: dict[str, NDArray[np.generic]]
    payload: list[memoryview] = field(default_factory=list)


@dataclass
class _Linked:
    """What is kept for one member that we hold a link to."""

    member: Member
    since: float
    slots: threading.BoundedSemaphore = field(default_factory=lambda: threading.BoundedSemaphore(MAX_WAITING))
    pools: dict[str, BufferPool] = field(default_factory=dict)
    pending: set[OnItsWay] = field(default_factory=set)
    ever_up: bool = False
    reported_silent: bool = False
    gone: bool = False
    overflow: LocalProtocolError | None = None


class NodePeers:
    """Implements :class:`smolcluster.ports.Peers` over a transport, and is the sink of that transport."""

    def __init__(self, run: str, me: Member, transport: Transport, patience: Patience, report: Reporter) -> None:
        self.run, self.me, self.transport, self.patience, self.report = run, me, transport, patience, report
        self.layouts: dict[str, Layout] = {}
        self.max_payload_bytes = 0
        self.refusals: Counter[tuple[str, str]] = Counter()
        self._view = View(generation=0, members=(me,))
        self._view_changed = threading.Condition()
        self._loop = asyncio.get_running_loop()
        self._mailbox = Mailbox(self._loop)
        self._linked: dict[str, _Linked] = {}
        self._counting = threading.Lock()
        self._lost: PeerLost | None = None
        self._waited_s = 0.0
        self._saved_bytes = 0
        self._closing = False
        self._watcher = self._loop.create_task(self._watch(), name="silence watcher")
        transport.start(self)

    # --- the port ----------------------------------------------------------------------------------------

    @property
    def view(self) -> View:
        return self._view

    @property
    def waited_s(self) -> float:
        return self._waited_s

    def send(self, to: str, message: Message) -> OnItsWay:
        delivery = OnItsWay(self._loop, to, type(message).__name__)
        if to == self.me.name:
            self._mailbox.put(Received(self.me, message))
            delivery.complete()
            return delivery
        linked = self._linked.get(to)
        if self._view.get(to) is None or linked is None:
            self.refused(to, "not sent: no member", type(message).__name__)
            delivery.complete()
            return delivery
        tensors = tensor_fields(message)
        specs = tuple(self._spec(layout_name, tensor) for layout_name, tensor in tensors)
        delivery.keep = tensors

        def done() -> None:
            linked.pending.discard(delivery)
            delivery.complete()

        linked.pending.add(delivery)
        payload = [as_bytes(tensor) for _, tensor in tensors]
        try:
            if linked.overflow:
                raise linked.overflow
            self.transport.send(to, Frame(message.code, plain_fields(message), specs, payload, done))
        except LocalProtocolError as error:  # it takes nothing: not the role's fault, and nothing it could mend
            linked.overflow = error  # nothing of what follows may be sent, or there would be a gap
            self.refused(to, "not sent: queue full", str(error))
            self._report_silence(linked, f"takes nothing: {error}", 0.0)
            done()
        else:
            self._saved_bytes += sum(self.layouts[layout_name].saved_bytes for layout_name, _ in tensors)
        return delivery

    def _spec(self, layout_name: str, tensor: Tensor) -> TensorSpec:
        layout = self.layouts[layout_name]
        dtype = str(tensor.dtype).removeprefix("torch.")
        if (dtype, tensor.numel()) != (layout.dtype, layout.numel):
            agreed = f"{layout.dtype}[{layout.numel}]"
            raise LocalProtocolError(f"{layout_name} must be {agreed}, got {dtype}[{tensor.numel()}]")
        return TensorSpec(layout_name, layout.dtype, layout.numel)

    async def next(self, until: float, waiting_for: str) -> Received | ViewChanged | None:
        started = time.monotonic()
        try:
            event = await self._mailbox.get(until)
        finally:
            self._waited_s += time.monotonic() - started
        if isinstance(event, PeerLost):
            raise PeerLost(event.peer, f"waiting for {waiting_for}", event.reason)
        if isinstance(event, Received):
            linked = self._linked.get(event.sender.name)
            if linked is not None and linked.member == event.sender:
                linked.slots.release()
        return event

    def traffic(self) -> Mapping[str, int]:
        sent, received = self.transport.traffic()
        return {"sent": sent, "received": received, "uncompressed": sent + self._saved_bytes}

    # --- for the node ------------------------------------------------------------------------------------

    def agree(self, layouts: Mapping[str, Layout]) -> None:
        """The kinds of tensor that may travel from now on; known once the model is built."""
        self.layouts = dict(layouts)
        self.max_payload_bytes = sum(layout.num_bytes for layout in layouts.values())

    def change_view(
        self,
        view: View,
        links: Iterable[tuple[Member, tuple[str, int] | None]],
        reason: str,
        curve_keys: Mapping[str, str] | None = None,
    ) -> None:
        """The controller's word on who takes part. ``links``: to whom we hold links, and where to dial (or not)."""
        lost, joined = changes(self._view, view)
        wanted = {member.name: (member, address) for member, address in links}
        for name in lost:
            self._drop_link(name)
        for name, (member, address) in wanted.items():  # before the view: who is in it and has no link is refused
            if name not in self._linked:
                self._linked[name] = _Linked(member, time.monotonic())
                self.transport.connect(member, address, (curve_keys or {}).get(name, ""))
        with self._view_changed:
            self._view = view
            self._view_changed.notify_all()
        self._mailbox.put(ViewChanged(view, lost, joined, reason))

    async def close(self, flush_within: float) -> None:
        """Send what is queued, say goodbye and end all threads."""
        self._closing = True
        self._watcher.cancel()
        with self._view_changed:
            self._view_changed.notify_all()
        await self._loop.run_in_executor(None, self.transport.close, flush_within)
        for linked in self._linked.values():
            for delivery in list(linked.pending):
                delivery.complete()

    def _drop_link(self, name: str) -> None:
        linked = self._linked.pop(name, None)
        if linked is not None:
            linked.gone = True
            self.transport.disconnect(name)
            for delivery in list(linked.pending):
                delivery.complete()

    async def _watch(self) -> None:
        """Report peers that give no sign of life; give up when it is the server that is gone."""
        while True:
            await asyncio.sleep(WATCH_S)
            now = time.monotonic()
            for name, linked in self._linked.items():
                linked.ever_up = linked.ever_up or self.transport.is_up(name)
                if linked.member.role == "worker" and self.transport.has_left(name):
                    continue  # it has said goodbye: whether that was right is the controller's to judge
                silence, cause = self.transport.silent_for(name)
                if linked.ever_up:
                    limit, what = self.patience.silent_s, "gives no sign of life"
                else:
                    silence = now - linked.since
                    limit, what = self.patience.connect_s, "could not be connected to"
                self._judge_silence(linked, silence, limit, f"{what} for {silence:.1f} s ({cause})")

    def _judge_silence(self, linked: _Linked, silence: float, limit: float, reason: str) -> None:
        if silence < limit and not linked.overflow:
            linked.reported_silent = False
            return
        if linked.overflow:
            reason = f"takes nothing: {linked.overflow}"
        self._report_silence(linked, reason, silence)
        lost_after = max(limit, self.patience.lost_s) if linked.ever_up else limit
        hopeless = silence >= lost_after or linked.overflow is not None
        if linked.member.role == "server" and hopeless and self._lost is None:
            self._lost = PeerLost(linked.member.name, "the run", reason)
            self._mailbox.put(self._lost)

    def _report_silence(self, linked: _Linked, reason: str, seconds: float) -> None:
        """Once, until it shows a sign of life again."""
        if not linked.reported_silent:
            linked.reported_silent = True
            self.report("silent", peer=linked.member.name, reason=reason, seconds=seconds)

    # --- the sink: called from the transport's threads -----------------------------------------------------

    def stamp(self, seq: int, ack: int, plain: list[Any], tensors: tuple[TensorSpec, ...] = ()) -> Envelope:
        return Envelope(self.run, self._view.generation, self.me.name, self.me.joined, seq, ack, plain, tensors)

    def admit(self, peer: Member, kind: int, envelope: Envelope) -> Landing:
        if envelope.run != self.run:
            raise PeerProtocolError("wrong run", f"frame is of run {envelope.run!r}")
        self._judge_membership(envelope)
        names = [spec.layout for spec in envelope.tensors]
        cls, plain = parse(kind, envelope.plain, names)
        if cls.sender not in (peer.role, ANYBODY):
            raise PeerProtocolError("wrong sender", f"{cls.__name__} is a {cls.sender}'s to send, not a {peer.role}'s")
        for spec in envelope.tensors:
            verify(spec, self.layouts)
        linked = self._linked.get(peer.name)
        if linked is None or linked.member != peer:
            raise PeerProtocolError("not a member", f"{peer.name} has just been removed")
        self._wait_for_room(linked, lambda: linked.slots.acquire(timeout=ROOM_S) or None)
        try:
            arrays = {name: self._buffer(linked, name) for name in names}
        except PeerProtocolError:
            linked.slots.release()
            raise
        payload = [memoryview(array).cast("B") for array in arrays.values()]  # type: ignore[arg-type]
        return Landing(peer, cls, plain, arrays, payload)

    def _judge_membership(self, envelope: Envelope) -> None:
        until = time.monotonic() + self.patience.lost_s
        with self._view_changed:
            while True:
                verdict, reason = admit(self._view, envelope.sender, envelope.joined, envelope.generation)
                left = until - time.monotonic()
                hopeless = left <= 0 or self._closing or envelope.generation > self._view.generation + 1000
                if verdict is not Admission.WAIT or hopeless:
                    break
                self._view_changed.wait(left)
        if verdict is not Admission.ACCEPT:
            raise PeerProtocolError(reason, f"generation {envelope.generation}, ours {self._view.generation}")

    def _buffer(self, linked: _Linked, layout: str) -> NDArray[np.generic]:
        pool = linked.pools.get(layout)
        if pool is None:
            pool = linked.pools[layout] = BufferPool(self.layouts[layout], BUFFERS_PER_PEER)
        return self._wait_for_room(linked, lambda: pool.take(ROOM_S))

    def _wait_for_room(self, linked: _Linked, attempt: Callable[[], T | None]) -> T:
        """Back-pressure: the sender waits for as long as the role does not read, and nothing is lost."""
        while not (linked.gone or self._closing):
            got = attempt()
            if got is not None:
                return got
        raise PeerProtocolError("not a member", f"{linked.member.name} was removed while its message waited for room")

    def deliver(self, peer: Member, landing: Landing) -> None:
        tensors = {name: as_tensor(array) for name, array in landing.arrays.items()}
        landing.arrays.clear()
        landing.payload.clear()
        message = with_tensors(landing.cls, landing.plain, tensors)
        self._in_loop(lambda: self._arrive(peer, message))

    def _arrive(self, peer: Member, message: Message) -> None:
        """In the event loop: the view may have changed since the frame was admitted."""
        linked = self._linked.get(peer.name)
        if linked is not None and linked.member == peer:
            self._mailbox.put(Received(peer, message))
        else:
            self.refused(peer.name, "not a member", f"{type(message).__name__} came in while it was removed")

    def abandon(self, peer: Member, landing: Landing) -> None:
        landing.arrays.clear()
        landing.payload.clear()
        linked = self._linked.get(peer.name)
        if linked is not None and linked.member == peer:
            linked.slots.release()

    def link_changed(self, peer: Member, up: bool, reason: str) -> None:
        self._in_loop(lambda: self.report("link", peer=peer.name, up=up, reason=reason))

    def refused(self, peer: str, reason: str, detail: str) -> None:
        """Count, and tell the controller of the first of each kind and then of every hundredth."""
        with self._counting:  # += is not atomic, and each peer has a thread
            self.refusals[peer, reason] += 1
            count = self.refusals[peer, reason]
        if count == 1 or count % 100 == 0:
            fields = {"kind": "refused", "peer": peer or "a stranger", "reason": reason, "detail": detail[:200]}
            self._in_loop(lambda: self.report("journal", count=count, step=None, **fields))

    def _in_loop(self, call: Callable[[], None]) -> None:
        try:
            self._loop.call_soon_threadsafe(call)
        except RuntimeError:
            if not self._closing:
                raise  # otherwise the loop has ended before this thread; nobody listens any more

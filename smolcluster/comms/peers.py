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
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from smolcluster.comms.buffers import BufferPool, Layout, as_bytes, as_tensor, verify
from smolcluster.comms.link import Frame, Sink
from smolcluster.comms.membership import Admission, admit, changes
from smolcluster.comms.wire import Envelope, TensorSpec
from smolcluster.errors import PeerLost, PeerProtocolError
from smolcluster.messages import Message, parse, plain_fields, tensor_fields, with_tensors
from smolcluster.ports import Member, Received, Reporter, View, ViewChanged

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

MAX_WAITING = 64
"""Messages of one peer that the role has not taken yet; more are not read from the socket."""
BUFFERS_PER_PEER = 2
"""Receive buffers per peer and layout: one in use, one to receive into meanwhile."""
WAIT_FOR_VIEW_S = 5.0
"""How long a frame of a newer generation waits for the view to reach us."""
WATCH_S = 0.25
"""How often silence is looked for."""


class Transport(Protocol):
    """Moves frames between members: in order, each once, over connections that may break and be reopened."""

    address: tuple[str, int]

    def start(self, sink: Sink) -> None: ...
    def connect(self, peer: Member, address: tuple[str, int] | None) -> None: ...
    def disconnect(self, name: str) -> None: ...
    def send(self, to: str, frame: Frame) -> None: ...
    def is_up(self, name: str) -> bool: ...
    def silent_for(self, name: str) -> tuple[float, str]: ...
    def traffic(self) -> tuple[int, int]: ...
    def close(self, flush_within: float) -> None: ...


@dataclass(frozen=True, kw_only=True)
class Patience:
    """Deadlines, in seconds; ``silent`` peers are reported, a lost server ends the run."""

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
        self._mailbox = _Mailbox(self._loop)
        self._pools: dict[tuple[str, str], BufferPool] = {}
        self._slots: dict[str, threading.BoundedSemaphore] = {}
        self._pending: dict[str, set[_Delivery]] = {}
        self._linked_at: dict[str, float] = {}
        self._ever_up: set[str] = set()
        self._reported_silent: set[str] = set()
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

    def send(self, to: str, message: Message) -> _Delivery:
        delivery = _Delivery(self._loop, to, type(message).__name__)
        if to == self.me.name:
            self._mailbox.put(Received(self.me, message))
            delivery.complete()
            return delivery
        if self._view.get(to) is None or to not in self._slots:
            self.refused(to, "not sent: no member", type(message).__name__)
            delivery.complete()
            return delivery
        tensors = tensor_fields(message)
        specs, payload = [], []
        for layout_name, tensor in tensors:
            layout = self.layouts[layout_name]
            specs.append(TensorSpec(layout_name, layout.dtype, layout.numel))
            payload.append(as_bytes(tensor))
            self._saved_bytes += layout.saved_bytes
        pending = self._pending[to]
        pending.add(delivery)
        delivery.keep = tensors

        def done() -> None:
            pending.discard(delivery)
            delivery.complete()

        self.transport.send(to, Frame(message.code, plain_fields(message), tuple(specs), payload, done))
        return delivery

    async def next(self, until: float, waiting_for: str) -> Received | ViewChanged | None:
        started = time.monotonic()
        try:
            event = await self._mailbox.get(until)
        finally:
            self._waited_s += time.monotonic() - started
        if isinstance(event, PeerLost):
            raise PeerLost(event.peer, f"waiting for {waiting_for}", event.reason)
        if isinstance(event, Received) and event.sender.name in self._slots:
            self._slots[event.sender.name].release()
        return event

    def traffic(self) -> Mapping[str, int]:
        sent, received = self.transport.traffic()
        return {"sent": sent, "received": received, "uncompressed": sent + self._saved_bytes}

    # --- for the node ------------------------------------------------------------------------------------

    def agree(self, layouts: Mapping[str, Layout]) -> None:
        """The kinds of tensor that may travel from now on; known once the model is built."""
        self.layouts = dict(layouts)
        self.max_payload_bytes = sum(layout.num_bytes for layout in layouts.values())

    def change_view(self, view: View, links: Iterable[tuple[Member, tuple[str, int] | None]], reason: str) -> None:
        """The controller's word on who takes part. ``links``: to whom we hold links, and where to dial (or not)."""
        lost, joined = changes(self._view, view)
        wanted = {member.name: (member, address) for member, address in links}
        for name in lost:
            self._drop_link(name)
        with self._view_changed:
            self._view = view
            self._view_changed.notify_all()
        for name, (member, address) in wanted.items():
            if name not in self._slots:
                self._slots[name] = threading.BoundedSemaphore(MAX_WAITING)
                self._pending[name] = set()
                self._linked_at[name] = time.monotonic()
                self.transport.connect(member, address)
        self._mailbox.put(ViewChanged(view, lost, joined, reason))

    async def close(self, flush_within: float) -> None:
        """Send what is queued, say goodbye and end all threads."""
        self._closing = True
        self._watcher.cancel()
        await self._loop.run_in_executor(None, self.transport.close, flush_within)
        for pending in self._pending.values():
            for delivery in list(pending):
                delivery.complete()

    def _drop_link(self, name: str) -> None:
        self._slots.pop(name, None)
        self._ever_up.discard(name)
        self._reported_silent.discard(name)
        self._pools = {key: pool for key, pool in self._pools.items() if key[0] != name}
        for delivery in list(self._pending.pop(name, ())):
            delivery.complete()
        threading.Thread(target=self.transport.disconnect, args=(name,), name=f"closing {name}", daemon=True).start()

    async def _watch(self) -> None:
        """Report peers that give no sign of life; give up when it is the server that is gone."""
        while True:
            await asyncio.sleep(WATCH_S)
            now = time.monotonic()
            for name in list(self._slots):
                if self.transport.is_up(name):
                    self._ever_up.add(name)
                silence, cause = self.transport.silent_for(name)
                if name not in self._ever_up:
                    silence = now - self._linked_at[name]
                    limit, what = self.patience.connect_s, "could not be connected to"
                else:
                    limit, what = self.patience.silent_s, "gives no sign of life"
                self._judge_silence(name, silence, limit, f"{what} for {silence:.1f} s ({cause})")

    def _judge_silence(self, name: str, silence: float, limit: float, reason: str) -> None:
        if silence < limit:
            self._reported_silent.discard(name)
            return
        if name not in self._reported_silent:
            self._reported_silent.add(name)
            self.report("silent", peer=name, reason=reason, seconds=silence)
        member = self._view.get(name)
        lost_after = max(limit, self.patience.lost_s) if name in self._ever_up else limit
        if member is not None and member.role == "server" and silence >= lost_after and self._lost is None:
            self._lost = PeerLost(name, "the run", reason)
            self._mailbox.put(self._lost)

    # --- the sink: called from the transport's threads -----------------------------------------------------

    def stamp(self, seq: int, ack: int, plain: list[Any], tensors: tuple[TensorSpec, ...] = ()) -> Envelope:
        return Envelope(self.run, self._view.generation, self.me.name, self.me.joined, seq, ack, plain, tensors)

    def admit(self, peer: Member, kind: int, envelope: Envelope) -> Landing:
        if envelope.run != self.run:
            raise PeerProtocolError("wrong run", f"frame is of run {envelope.run!r}")
        self._judge_membership(envelope)
        names = [spec.layout for spec in envelope.tensors]
        cls, plain = parse(kind, envelope.plain, names)
        if cls.sender != peer.role:
            raise PeerProtocolError("wrong sender", f"{cls.__name__} is a {cls.sender}'s to send, not a {peer.role}'s")
        for spec in envelope.tensors:
            verify(spec, self.layouts)
        slots = self._slots.get(peer.name)
        if slots is None or not slots.acquire(timeout=self.patience.lost_s):
            raise PeerProtocolError("flood", f"{MAX_WAITING} messages of {peer.name} wait to be read")
        try:
            arrays = {name: self._pool(peer.name, name).take(self.patience.lost_s) for name in names}
        except PeerProtocolError:
            slots.release()
            raise
        payload = [memoryview(array).cast("B") for array in arrays.values()]  # type: ignore[arg-type]
        return Landing(peer, cls, plain, arrays, payload)

    def _judge_membership(self, envelope: Envelope) -> None:
        until = time.monotonic() + WAIT_FOR_VIEW_S
        with self._view_changed:
            while True:
                verdict, reason = admit(self._view, envelope.sender, envelope.joined, envelope.generation)
                left = until - time.monotonic()
                if verdict is not Admission.WAIT or left <= 0 or envelope.generation > self._view.generation + 1000:
                    break
                self._view_changed.wait(left)
        if verdict is not Admission.ACCEPT:
            raise PeerProtocolError(reason, f"generation {envelope.generation}, ours {self._view.generation}")

    def _pool(self, peer: str, layout: str) -> BufferPool:
        key = (peer, layout)
        pool = self._pools.get(key)
        if pool is None:
            pool = self._pools[key] = BufferPool(self.layouts[layout], BUFFERS_PER_PEER)
        return pool

    def deliver(self, peer: Member, landing: Landing) -> None:
        tensors = {name: as_tensor(array) for name, array in landing.arrays.items()}
        landing.arrays.clear()
        landing.payload.clear()
        message = with_tensors(landing.cls, landing.plain, tensors)
        self._in_loop(lambda: self._mailbox.put(Received(peer, message)))

    def link_changed(self, peer: Member, up: bool, reason: str) -> None:
        self._in_loop(lambda: self.report("link", peer=peer.name, up=up, reason=reason))

    def refused(self, peer: str, reason: str, detail: str) -> None:
        """Count, and tell the controller of the first of each kind and then of every hundredth."""
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


class _Delivery:
    """A message on its way; completed from a transport's thread."""

    def __init__(self, loop: asyncio.AbstractEventLoop, peer: str, what: str) -> None:
        self.done = False
        self.keep: Any = None
        self._loop, self._peer, self._what = loop, peer, what
        self._waiter: asyncio.Future[None] | None = None

    def complete(self) -> None:
        self.done, self.keep = True, None
        if self._waiter is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._wake)

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def wait(self, within: float) -> None:
        self._waiter = self._loop.create_future()
        if self.done:  # looked at after the waiter stands there, so that no completion is missed
            return
        try:
            async with asyncio.timeout(within):
                await self._waiter
        except TimeoutError:
            raise PeerLost(self._peer, f"sending {self._what}", f"not taken within {within:g} s") from None


Event = Received | ViewChanged | PeerLost


class _Mailbox:
    """What the role has not taken yet. One reader, in the event loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._events: deque[Event] = deque()
        self._waiter: asyncio.Future[None] | None = None

    def put(self, event: Event) -> None:
        self._events.append(event)
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def get(self, until: float) -> Event | None:
        """The oldest event; None when the loop's clock passes ``until`` first."""
        if not self._events:
            self._waiter = self._loop.create_future()
            timer = self._loop.call_at(until, self._wake) if until != float("inf") else None
            try:
                await self._waiter
            finally:
                self._waiter = None
                if timer is not None:
                    timer.cancel()
        return self._events.popleft() if self._events else None

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

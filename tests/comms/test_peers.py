"""What NodePeers makes of frames and messages, without a wire."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch

from smolcluster.comms.buffers import Layout
from smolcluster.comms.frames import Frame
from smolcluster.comms.peers import BUFFERS_PER_PEER, MAX_WAITING, NodePeers, Patience
from smolcluster.comms.wire import Envelope, TensorSpec
from smolcluster.errors import LocalProtocolError, PeerLost, PeerProtocolError
from smolcluster.messages import MAX_TEXT, Join, Params, Pull, Push, Update, Work, plain_fields
from smolcluster.ports import Member, Received, View, ViewChanged
from tests.comms.cluster import SERVER, until, worker

pytestmark = pytest.mark.usefixtures("no_thread_left")
W0 = worker(0, joined=2)
PUSH = Push(
    lease=3, version=1, num_samples=2, num_items=2, loss=0.5, compute_s=0.1, wait_s=0.0, gradient=torch.zeros(4)
)
GRADIENT = TensorSpec("gradient", "float32", 4)
GOOD = Envelope("run", 5, "worker0", 2, 0, 0, plain_fields(PUSH), (GRADIENT,))


class Nowhere:
    """A transport that keeps what is sent."""

    address = ("nowhere", 0)

    def __init__(self) -> None:
        self.sent: list[tuple[str, Frame]] = []
        self.up = True
        self.silence = 0.0
        self.left: set[str] = set()
        self.looks = 0

    def start(self, sink: Any) -> None: ...
    def connect(self, peer: Member, address: tuple[str, int] | None, curve_key: str = "") -> None: ...
    def disconnect(self, name: str) -> None: ...
    def close(self, flush_within: float) -> None: ...

    def send(self, to: str, frame: Frame) -> None:
        self.sent.append((to, frame))

    def is_up(self, name: str) -> bool:
        return self.up

    def has_left(self, name: str) -> bool:
        self.looks += 1
        return name in self.left

    def silent_for(self, name: str) -> tuple[float, str]:
        return self.silence, "cable cut"

    def traffic(self) -> tuple[int, int]:
        return 100, 50


class Setting:
    """A node at generation 5 with one peer, on no transport."""

    def __init__(self, me: Member = SERVER, other: Member = W0, patience: Patience | None = None) -> None:
        self.events: list[dict[str, Any]] = []
        self.transport, self.other = Nowhere(), other
        patience = patience or Patience(connect_s=5, silent_s=0.3, lost_s=0.6)
        self.node = NodePeers("run", me, self.transport, patience, self.report)
        self.node.agree({"gradient": Layout("float32", 4), "parameters": Layout("uint8", 9, dense_bytes=36)})
        self.node.change_view(View(generation=5, members=(me, other)), [(other, None)], "start")

    def report(self, event: str, **fields: Any) -> None:
        self.events.append({"event": event, **fields})

    def take(self, envelope: Envelope = GOOD, kind: int = Push.code) -> None:
        """Like a transport: admit, receive, deliver."""
        landing = self.node.admit(self.other, kind, envelope)
        self.node.deliver(self.other, landing)


def go(test: Callable[[], Any]) -> None:
    async def limited() -> None:
        async with asyncio.timeout(20):
            await test()

    asyncio.run(limited())


async def next_message(node: NodePeers) -> Any:
    while True:
        event = await node.next(asyncio.get_running_loop().time() + 5, "a message")
        assert event is not None
        if isinstance(event, Received):
            return event.message


BAD: dict[str, tuple[int, Envelope, str]] = {
    "another run": (Push.code, GOOD._replace(run="other"), "wrong run"),
    "an unknown sender": (Push.code, GOOD._replace(sender="worker7"), "not a member"),
    "the sender's former life": (Push.code, GOOD._replace(joined=1), "old generation"),
    "older than its sender": (Push.code, GOOD._replace(generation=1), "old generation"),
    "from the far future": (Push.code, GOOD._replace(generation=5000), "future generation"),
    "an unknown type": (200, GOOD, "unknown type"),
    "a control frame": (3, GOOD, "unknown type"),
    "too few fields": (Push.code, GOOD._replace(plain=GOOD.plain[:-1]), "malformed"),
    "too many fields": (Push.code, GOOD._replace(plain=[*GOOD.plain, 1]), "malformed"),
    "a text for a number": (Push.code, GOOD._replace(plain=["3", *GOOD.plain[1:]]), "malformed"),
    "a truth value for a number": (Push.code, GOOD._replace(plain=[True, *GOOD.plain[1:]]), "malformed"),
    "a float for a whole number": (Push.code, GOOD._replace(plain=[3.0, *GOOD.plain[1:]]), "malformed"),
    "a number below -1": (Push.code, GOOD._replace(plain=[-2, *GOOD.plain[1:]]), "malformed"),
    "a number above 2^53": (Push.code, GOOD._replace(plain=[2**53 + 1, *GOOD.plain[1:]]), "malformed"),
    "nil for a float": (Push.code, GOOD._replace(plain=[*GOOD.plain[:-1], None]), "malformed"),
    "a text that is too long": (
        Join.code,
        GOOD._replace(plain=["x" * (MAX_TEXT + 1)], tensors=()),
        "malformed",
    ),
    "a list with a text in it": (
        Update.code,
        GOOD._replace(plain=[1, 1, [0, 0, "1"], 1, 1, 0.5, 0.0, 0.0]),
        "malformed",
    ),
    "no tensor": (Push.code, GOOD._replace(tensors=()), "wrong tensors"),
    "a tensor too many": (Push.code, GOOD._replace(tensors=(GRADIENT, GRADIENT)), "wrong tensors"),
    "another's tensor": (Push.code, GOOD._replace(tensors=(TensorSpec("parameters", "uint8", 9),)), "wrong tensors"),
    "tensors in another order": (
        Push.code,
        GOOD._replace(tensors=(TensorSpec("buffers", "float64", 1), GRADIENT)),
        "wrong tensors",
    ),
    "a tensor for a message without": (Pull.code, GOOD._replace(plain=[1]), "wrong tensors"),
    "a server's message": (Params.code, GOOD._replace(plain=[1, ""], tensors=(TensorSpec("parameters", "uint8", 9),)),
                           "wrong sender"),
    "a layout that was not agreed": (
        Push.code,
        GOOD._replace(tensors=(GRADIENT, TensorSpec("buffers", "float64", 1))),
        "unknown layout",
    ),
    "another size": (Push.code, GOOD._replace(tensors=(TensorSpec("gradient", "float32", 5),)), "wrong shape"),
    "another type": (Push.code, GOOD._replace(tensors=(TensorSpec("gradient", "float64", 4),)), "wrong shape"),
}  # fmt: skip


def test_every_fault_has_its_reason_and_takes_no_room() -> None:
    async def test() -> None:
        setting = Setting()
        for _ in range(5):  # more often than there are buffers, as often as there are places in the mailbox
            for what, (kind, envelope, reason) in BAD.items():
                with pytest.raises(PeerProtocolError) as caught:
                    setting.node.admit(W0, kind, envelope)
                assert (caught.value.reason, caught.value.fatal) == (reason, False), what
        setting.take()
        assert isinstance(await next_message(setting.node), Push)
        await setting.node.close(0.0)

    go(test)


def test_an_abandoned_frame_gives_its_room_back() -> None:
    async def test() -> None:
        setting = Setting()
        for _ in range(2 * MAX_WAITING):
            landing = setting.node.admit(W0, Push.code, GOOD)
            setting.node.abandon(W0, landing)
        for _ in range(BUFFERS_PER_PEER):
            setting.take()
        await setting.node.close(0.0)

    go(test)


def test_room_for_messages_and_for_tensors_is_bounded_and_comes_back() -> None:
    async def test() -> None:
        setting = Setting()
        pull = GOOD._replace(plain=[1], tensors=())
        with ThreadPoolExecutor(1) as thread:
            for _ in range(MAX_WAITING):
                setting.take(pull, Pull.code)
            blocked = thread.submit(setting.take, pull, Pull.code)
            await next_message(setting.node)
            await asyncio.wrap_future(blocked)
            for _ in range(MAX_WAITING):
                await next_message(setting.node)
            for _ in range(BUFFERS_PER_PEER):
                setting.take()
            blocked = thread.submit(setting.take)
            kept = await next_message(setting.node)
            assert not blocked.done()
            del kept
            await asyncio.wrap_future(blocked)
        await setting.node.close(0.0)

    go(test)


def test_messages_of_a_member_that_was_replaced_are_still_read_and_give_no_room_to_the_new_one() -> None:
    async def test() -> None:
        setting = Setting()
        setting.take()
        await asyncio.sleep(0)
        again = worker(0, joined=6)
        setting.node.change_view(View(generation=6, members=(SERVER, again)), [(again, None)], "it is back")
        assert isinstance(await next_message(setting.node), Push)
        with pytest.raises(PeerProtocolError, match="old generation"):
            setting.take()
        await setting.node.close(0.0)

    go(test)


def test_a_message_that_was_admitted_before_its_sender_was_removed_does_not_come_behind_the_news() -> None:
    async def test() -> None:
        setting = Setting()
        setting.take()  # on its way to the event loop
        setting.node.change_view(View(generation=6, members=(SERVER,)), [], "it is gone")
        events = [await setting.node.next(asyncio.get_running_loop().time() + 0.05, "") for _ in range(3)]
        assert [type(event) for event in events] == [ViewChanged, ViewChanged, type(None)]
        assert setting.node.refusals == {("worker0", "not a member"): 1}
        await setting.node.close(0.0)

    go(test)


def test_who_waits_for_room_is_let_go_when_the_peer_is_removed() -> None:
    async def test() -> None:
        setting = Setting()
        for _ in range(BUFFERS_PER_PEER):
            setting.take()
        await asyncio.sleep(0)  # they are in the mailbox now
        with ThreadPoolExecutor(1) as thread:
            blocked = thread.submit(setting.take)
            setting.node.change_view(View(generation=6, members=(SERVER,)), [], "it is gone")
            with pytest.raises(PeerProtocolError, match="not a member"):
                await asyncio.wrap_future(blocked)
        await setting.node.close(0.0)

    go(test)


def test_refusals_are_counted_from_all_threads_and_told_now_and_then() -> None:
    async def test() -> None:
        setting = Setting()

        def refuse(_: int) -> None:
            for _ in range(500):
                setting.node.refused("worker0", "duplicate", "again")

        with ThreadPoolExecutor(8) as threads:
            list(threads.map(refuse, range(8)))
        await asyncio.sleep(0)
        assert setting.node.refusals == {("worker0", "duplicate"): 4000}
        told = [event["count"] for event in setting.events if event["event"] == "journal"]
        assert sorted(told) == [1, *range(100, 4001, 100)]
        await setting.node.close(0.0)

    go(test)


@pytest.mark.parametrize(
    ("tensor", "text"),
    [
        (torch.zeros(5), r"gradient must be float32\[4\], got float32\[5\]"),
        (torch.zeros(4, dtype=torch.float64), r"gradient must be float32\[4\], got float64\[4\]"),
    ],
)
def test_a_tensor_that_was_not_agreed_on_is_our_own_fault(tensor: torch.Tensor, text: str) -> None:
    async def test() -> None:
        setting = Setting(me=W0, other=SERVER)
        with pytest.raises(LocalProtocolError, match=text):
            setting.node.send("server", Push(**{**vars(PUSH), "gradient": tensor}))
        assert not setting.transport.sent
        await setting.node.close(0.0)

    go(test)


def test_traffic_says_what_compression_has_saved() -> None:
    async def test() -> None:
        setting = Setting()
        for _ in range(3):
            parameters = torch.zeros(9, dtype=torch.uint8)
            setting.node.send("worker0", Work(step=0, version=0, blend=1.0, spans=(), parameters=parameters))
        setting.node.send("worker0", Work(step=0, version=0, blend=1.0, spans=()))
        assert setting.node.traffic() == {"sent": 100, "received": 50, "uncompressed": 100 + 3 * 27}
        await setting.node.close(0.0)

    go(test)


def test_a_delivery_holds_on_to_its_tensors_until_it_is_done() -> None:
    async def test() -> None:
        setting = Setting()
        parameters = torch.zeros(9, dtype=torch.uint8)
        work = Work(step=0, version=0, blend=1.0, spans=(), parameters=parameters)
        delivery = setting.node.send("worker0", work)
        ((_, frame),) = setting.transport.sent
        assert (frame.kind, frame.plain) == (17, [0, 0, 1.0, ()])
        assert frame.tensors == (TensorSpec("parameters", "uint8", 9),)
        assert delivery.keep is not None
        threading.Timer(0.05, frame.done).start()
        await delivery.wait(5.0)
        assert (delivery.done, delivery.keep) == (True, None)
        await setting.node.close(0.0)

    go(test)


def test_a_silent_worker_is_reported_once_until_it_speaks_again() -> None:
    async def test() -> None:
        setting = Setting()

        def reports() -> list[Any]:
            return [event for event in setting.events if event["event"] == "silent"]

        setting.transport.silence = 0.5
        await until(lambda: len(reports()) == 1, "it is reported")
        assert reports()[0]["reason"] == "gives no sign of life for 0.5 s (cable cut)"
        setting.transport.silence = 0.0
        linked = setting.node._linked["worker0"]
        await until(lambda: not linked.reported_silent, "it is well again")
        setting.transport.silence = 0.7
        await until(lambda: len(reports()) == 2, "it is reported again")
        setting.transport.silence = 0.0
        await until(lambda: not linked.reported_silent, "it is well again")
        setting.transport.left.add("worker0")
        setting.transport.silence = 9.0
        seen = setting.transport.looks
        await until(lambda: setting.transport.looks >= seen + 2, "it is looked at again")
        assert len(reports()) == 2, "who has said goodbye may be silent"
        await setting.node.close(0.0)

    go(test)


@pytest.mark.parametrize("up", [True, False], ids=["silent", "never there"])
def test_without_the_server_there_is_nothing_to_wait_for(up: bool) -> None:
    async def test() -> None:
        patience = Patience(connect_s=0.3, silent_s=0.3, lost_s=0.6)
        setting = Setting(me=W0, other=SERVER, patience=patience)
        setting.transport.up, setting.transport.silence = up, 2.0
        what = "gives no sign of life for 2.0 s" if up else "could not be connected to for 0"
        with pytest.raises(PeerLost, match=f"lost server during waiting for weights: {what}"):
            while True:
                await setting.node.next(asyncio.get_running_loop().time() + 10, "weights")
        await setting.node.close(0.0)

    go(test)


def test_next_returns_in_time_and_counts_the_waiting() -> None:
    async def test() -> None:
        setting = Setting()
        assert isinstance(await setting.node.next(float("inf"), ""), ViewChanged)
        now = asyncio.get_running_loop().time()
        assert await setting.node.next(now + 0.1, "") is None
        assert asyncio.get_running_loop().time() - now >= 0.1
        assert 0.09 < setting.node.waited_s < 2.0
        assert await setting.node.next(now, "") is None, "the time is over already"
        await setting.node.close(0.0)

    go(test)

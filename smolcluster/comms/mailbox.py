"""Between a role in the event loop and the transport's threads: what came in, and what is on its way out."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Any

from smolcluster.errors import PeerLost
from smolcluster.ports import Received, ViewChanged

Event = Received | ViewChanged | PeerLost


class OnItsWay:
    """Implements :class:`smolcluster.ports.Delivery`; completed from a transport's thread."""

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


class Mailbox:
    """What the role has not taken yet. One reader, in the event loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._events: deque[Event] = deque()
        self._waiter: asyncio.Future[None] | None = None

    def put(self, event: Event) -> None:
        self._events.append(event)
        self._wake()

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

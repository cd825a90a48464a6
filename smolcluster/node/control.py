"""The control plane at the node's end: commands come in on standard input, events go out on standard output.

Both are newline-delimited JSON. The real descriptor 1 is kept for events and 1 is pointed at 2 before anything
else runs, so that no library's print can spoil the stream. The end of standard input, or silence for too long,
means that the controller is gone: the node stops, and leaves within the stop timeout whatever it is doing.
"""

from __future__ import annotations

import asyncio
import json
import math
import os
import queue
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

MAX_LINE_BYTES = 16 << 20
"""Longest command line; a spec with certificates has some 20 kB."""
MAX_QUEUED_EVENTS = 10_000
"""Events that the controller has not read yet. Beyond, those of :data:`DISPENSABLE` are dropped and counted."""
DISPENSABLE = frozenset({"log", "metrics", "node"})
"""Nothing is decided by them; all others are always delivered."""


def split_streams() -> tuple[int, int]:
    """(commands, events): private copies of descriptors 0 and 1; 0 becomes empty and 1 becomes 2."""
    commands, events = os.dup(0), os.dup(1)
    empty = os.open(os.devnull, os.O_RDONLY)
    os.dup2(empty, 0)
    os.close(empty)
    os.dup2(2, 1)
    return commands, events


class Events:
    """Writes events from a thread of its own, so that a slow controller never holds up the node."""

    def __init__(self, descriptor: int) -> None:
        self._file = os.fdopen(descriptor, "wb", buffering=0)
        self._queue: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self.dropped = 0
        self._thread = threading.Thread(target=self._write, name="events", daemon=True)
        self._thread.start()

    def __call__(self, event: str, **fields: Any) -> None:
        """Queue an event; implements :class:`smolcluster.ports.Reporter`."""
        if event in DISPENSABLE and self._queue.qsize() >= MAX_QUEUED_EVENTS:
            self.dropped += 1
            return
        if self.dropped:
            count, self.dropped = self.dropped, 0
            message = f"{count} log lines or metrics were dropped: the controller does not read them fast enough"
            self._put("log", {"level": "WARNING", "logger": "smolcluster.node", "message": message, "step": None})
        self._put(event, fields)

    def _put(self, event: str, fields: Mapping[str, Any]) -> None:
        line = json.dumps(_finite({"event": event, **fields}), separators=(",", ":"), default=str)
        self._queue.put(line.encode() + b"\n")

    def close(self, within: float = 2.0) -> None:
        """Write what is queued, if the controller reads it in time."""
        self._queue.put(None)
        self._thread.join(within)
        if not self._thread.is_alive():
            self._file.close()

    def _write(self) -> None:
        while (line := self._queue.get()) is not None:
            try:
                self._file.write(line)
            except OSError:
                return  # the controller is gone; the command reader notices and ends the node


class Commands:
    """Reads commands in a thread and hands them to the event loop as they come.

    A thread that blocks in ``read`` is the one way that pipes can be waited for on every system.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._pieces: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        self._pending = bytearray()
        threading.Thread(target=self._read, name="standard input", daemon=True).start()

    def _read(self) -> None:
        data = b"x"
        while data:
            try:
                data = os.read(self._descriptor, 1 << 16)
            except OSError:
                data = b""
            self._pieces.put(data)

    def read_one(self, silence_limit_s: float) -> dict[str, Any] | None:
        """The next command; None at the end of the stream or after ``silence_limit_s`` without a byte."""
        while b"\n" not in self._pending:
            try:
                data = self._pieces.get(timeout=silence_limit_s)
            except queue.Empty:
                return None
            if not data or len(self._pending) + len(data) > MAX_LINE_BYTES:
                return None
            self._pending += data
        line, _, rest = self._pending.partition(b"\n")
        self._pending = bytearray(rest)
        command = json.loads(line)
        return command if isinstance(command, dict) else None

    def listen(
        self, loop: asyncio.AbstractEventLoop, take: Callable[[Mapping[str, Any]], None], silence_limit_s: float
    ) -> None:
        """Hand over every command. After the last one ``{"op": "gone"}`` is handed over."""

        def work() -> None:
            while True:
                command = self.read_one(silence_limit_s) or {"op": "gone"}
                try:
                    loop.call_soon_threadsafe(take, command)
                except RuntimeError:
                    return  # the loop has ended: the node is leaving anyway
                if command["op"] == "gone":
                    return

        threading.Thread(target=work, name="commands", daemon=True).start()


def leave_after(seconds: float, code: int) -> None:
    """End this process after ``seconds``, whatever it is doing then (a kernel may run for minutes)."""

    def leave() -> None:
        time.sleep(seconds)
        os._exit(code)

    threading.Thread(target=leave, name="last resort", daemon=True).start()


def _finite(value: Any) -> Any:
    """JSON knows no NaN and no infinity: null stands for them."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _finite(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(inner) for inner in value]
    return value

"""Node processes and the pipes to them. A session is one running node process: its stdin, its stdout, its end."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol

from smolcluster.cluster.pipes import MAX_BUFFERED_BYTES

if TYPE_CHECKING:
    from smolcluster.cluster.inventory import Node
    from smolcluster.spec.needs import Needs
    from smolcluster.spec.run import RunSpec

MAX_EVENT_BYTES = MAX_BUFFERED_BYTES
"""Longest line that a node may send."""


def ending(code: int) -> str:
    """An exit code in words.

    >>> ending(-9)
    'killed by signal 9 (SIGKILL)'
    """
    if code < 0:
        try:
            return f"killed by signal {-code} ({signal.Signals(-code).name})"
        except ValueError:
            return f"killed by signal {-code}"
    return f"ended with exit code {code}"


class Session(Protocol):
    """A node process that has been started."""

    pid: int

    def send(self, command: Mapping[str, Any]) -> None:
        """Queue one command; never blocks."""

    def events(self) -> AsyncIterator[dict[str, Any]]:
        """What the node says, until its end of the pipe is closed."""

    def errors(self) -> AsyncIterator[str]:
        """The lines on its standard error."""

    async def wait(self) -> int:
        """The exit code (negative: the signal that killed it), once it has ended."""

    def how(self, code: int) -> str:
        """How it has ended, in words."""

    def kill(self) -> None: ...

    def close(self) -> None:
        """Close our ends of its pipes. To be called after :meth:`wait`."""


@dataclass(frozen=True, kw_only=True)
class Whereabouts:
    """Where a node on another machine works. ``paths``: key of the spec -> where its file lies over there."""

    folder: str
    cache: str
    threads: int
    paths: Mapping[str, str]
    uses: Sequence[str] | None = None
    """What must stay on that machine while the node runs; it then leaves a pid file. None: it leaves none."""


class Check(NamedTuple):
    """One thing that was looked at on a machine. ``remedy``: what to do where it is not well."""

    what: str
    verdict: Literal["ok", "warn", "bad"]
    found: str
    remedy: str = ""


class Sessions(Protocol):
    """Starts the node processes of a run, on this machine or on others."""

    async def examine(self, names: Sequence[str]) -> Mapping[str, Sequence[Check]]:
        """Look at the machines of these nodes, and start nothing there. Never raises for what a machine is like."""

    async def open(self, names: Sequence[str], run: str, needs: Needs, say: Say) -> None:
        """Make ready for these nodes, before any is started; ``say`` is told what was done for which of them.

        RunFailed says what is in the way, with a line for each node.
        """

    async def start(self, name: str) -> Session: ...

    def place(self, name: str) -> Whereabouts | None:
        """Where that node works; None: on this machine, where everything is as the controller has it."""

    async def collect(self, name: str, folder: Path, *, everything: bool) -> None:
        """Bring the checkpoints of a node on another machine into ``folder``; with ``everything``, its export too."""

    def guests(self) -> AsyncIterator[tuple[str, Node]]:
        """Machines that join while the run is under way, ready for a node to be started there."""

    async def close(self) -> None:
        """End what is shared by the sessions."""


Say = Callable[[str, str], None]
"""Takes a node's name, and what there is to tell of it."""
Opener = Callable[["RunSpec", int], Sessions]
"""Makes the sessions of a run with so many threads for each node of this machine."""


def node_settings(threads: int) -> dict[str, str]:
    """What every node's environment has: one thread count for all libraries."""
    count = str(threads)
    return {
        "OMP_NUM_THREADS": count,
        "MKL_NUM_THREADS": count,
        "OPENBLAS_NUM_THREADS": "1",
        "PYTHONUNBUFFERED": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }


class Pipes:
    """Our ends of a node's three pipes, in the event loop."""

    def __init__(self, stdin: asyncio.StreamWriter, stdout: asyncio.StreamReader, stderr: asyncio.StreamReader) -> None:
        self._stdin, self._stdout, self._stderr = stdin, stdout, stderr

    def send(self, command: Mapping[str, Any]) -> None:
        if not self._stdin.is_closing():
            self._stdin.write(json.dumps(command, separators=(",", ":")).encode() + b"\n")

    async def first_line(self) -> bytes:
        """What the process says first; empty where it has ended without a word."""
        return await self._stdout.readline()

    async def events(self) -> AsyncIterator[dict[str, Any]]:
        async for line in lines_of(self._stdout):
            with contextlib.suppress(ValueError):  # cut off in mid-line by a kill: the exit code tells the rest
                event = json.loads(line)
                if isinstance(event, dict) and isinstance(event.get("event"), str):
                    yield event

    async def errors(self) -> AsyncIterator[str]:
        async for line in lines_of(self._stderr):
            yield line.decode(errors="replace").rstrip()

    def how(self, code: int) -> str:
        return ending(code)

    def close(self) -> None:
        self._stdin.close()
        for reader in (self._stdout, self._stderr):
            transport = getattr(reader, "_transport", None)  # it closes itself at the end of the stream, and only there
            if transport is not None:
                transport.close()


async def lines_of(stream: asyncio.StreamReader) -> AsyncIterator[bytes]:
    """The lines of a stream; one that is longer than the stream's limit ends it."""
    while True:
        try:
            line = await stream.readline()
        except ValueError:  # longer than the limit; what follows cannot be trusted to be a line of its own
            return
        if not line:
            return
        yield line


opener: ContextVar[Opener | None] = ContextVar("opener", default=None)
"""Set by a launcher that can start nodes on other machines."""

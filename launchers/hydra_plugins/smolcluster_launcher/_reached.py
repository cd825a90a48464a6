"""What all machines have in common, however they are reached."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

from smolcluster.errors import RunFailed

OnEnd: TypeAlias = Callable[[int, str], None]
"""Takes a process's exit code (negative: a signal, or nobody knows), and how it ended where more is known."""


class HostFailed(RunFailed):
    """A machine cannot be used; the message names it and says what to do."""


@dataclass(frozen=True, kw_only=True)
class Target:
    """Where a machine is, as the cluster's file says it; what is None is taken from ``~/.ssh/config``."""

    name: str
    """What messages call it."""
    host: str
    user: str | None = None
    port: int | None = None
    identity: str | None = None
    jump: str | None = None

    @classmethod
    def parse(cls, text: str) -> Target:
        """From ``[user@]host[:port]``.

        >>> Target.parse("me@mini1:2222").port
        2222
        """
        user, _, place = text.rpartition("@")
        host, _, port = place.partition(":") if place.count(":") == 1 else (place, "", "")
        return cls(name=host, host=host, user=user or None, port=int(port) if port else None)


@dataclass(frozen=True, kw_only=True)
class Done:
    """What a command came to. ``code`` -1: it was ended by a signal, or the connection was lost."""

    code: int
    out: bytes
    err: bytes

    @property
    def words(self) -> str:
        """The last line of what it said, for messages."""
        said = (self.err or self.out).decode(errors="replace").strip().splitlines()
        return said[-1] if said else f"exit code {self.code}"


class Ending(Protocol):
    """A process elsewhere that can be ended."""

    pid: int

    def kill(self) -> None: ...

    def close(self) -> None: ...


class Reached(Protocol):
    """A machine that commands can be run on, however it is reached."""

    @property
    def name(self) -> str: ...

    @property
    def shell(self) -> str: ...

    @property
    def connected(self) -> bool: ...

    async def open(self) -> None:
        """See to it that it can be used. HostFailed says why it cannot."""

    async def run(
        self,
        argv: Sequence[str],
        *,
        stdin: Iterable[bytes] = (),
        out: Callable[[bytes], object] | None = None,
        silent_s: float = 60.0,
    ) -> Done:
        """Run a command to its end."""

    async def start(
        self,
        argv: Sequence[str],
        descriptors: tuple[int, int, int],
        on_end: OnEnd,
        *,
        directory: str | None,
        environment: Mapping[str, str],
    ) -> Ending:
        """Start a process whose standard streams end in these descriptors."""

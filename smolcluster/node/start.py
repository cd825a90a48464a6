"""What a node process is told first."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from smolcluster.comms.security import Credentials
from smolcluster.ports import Member
from smolcluster.spec.build import build
from smolcluster.spec.run import RunSpec


@dataclass(frozen=True, kw_only=True)
class Start:
    """The first command: everything that a node process needs."""

    run: str
    spec: RunSpec
    members: tuple[Member, ...]
    """The nodes that live in this process."""
    credentials: tuple[Credentials, ...]
    roster: tuple[Member, ...]
    """All nodes of the run."""
    host: str
    """Address that the other nodes connect to."""
    listens_on: str
    links: str
    """Who talks to whom: ``star``, ``full`` or ``none``."""
    relays: tuple[str, ...]
    """Nodes that others reach through this one only."""
    folder: Path
    cache: Path
    threads: int
    resume: str | None
    purpose: str
    uses: tuple[str, ...] | None = None
    """What it uses of its machine's working folder, for its pid file; None: there shall be none."""

    @classmethod
    def from_command(cls, command: Mapping[str, Any]) -> Start:
        return cls(
            run=command["run"],
            spec=build(command["spec"]),
            members=tuple(Member(**each) for each in command["members"]),
            credentials=tuple(Credentials(**each) for each in command["credentials"]),
            roster=tuple(Member(**each) for each in command["roster"]),
            host=command["host"],
            listens_on=command["listens_on"],
            links=command["links"],
            relays=tuple(command["relays"]),
            folder=Path(command["folder"]),
            cache=Path(command["cache"]),
            threads=command["threads"],
            resume=command["resume"],
            purpose=command["purpose"],
            uses=None if command["uses"] is None else tuple(command["uses"]),
        )

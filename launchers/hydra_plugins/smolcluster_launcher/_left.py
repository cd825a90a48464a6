"""``detached.json``: where a run goes on that has been left, in the directory that it has on the person's machine."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hydra_plugins.smolcluster_launcher._here import Here
from hydra_plugins.smolcluster_launcher._reached import Reached, Target
from hydra_plugins.smolcluster_launcher._ssh import Machines

from smolcluster.errors import ConfigError, Problem
from smolcluster.pipeline.jobs import DETACHED
from smolcluster.tracking.jsonl import read_whole, write_whole


@dataclass(frozen=True, kw_only=True)
class Left:
    """A run that goes on without the command that has started it."""

    run: str
    node: str
    """The node that the run is conducted beside."""
    folder: str
    """The run's directory over there."""
    python: str
    """An interpreter over there."""
    target: Target | None
    """How its machine is reached; None: it is this one, and ``folder`` is the run's directory itself."""
    connect_timeout_s: float

    @property
    def where(self) -> str:
        """For people: the node, and the directory over there."""
        return f"{self.node} (on this machine)" if self.target is None else f"{self.node}:{self.folder}"

    def reach(self, machines: Machines) -> Reached:
        return Here() if self.target is None else machines.at(self.target)

    def write(self, folder: Path) -> None:
        write_whole(folder / DETACHED, asdict(self))

    @classmethod
    def read(cls, folder: Path, key: str) -> Left:
        """ConfigError where there is no such run; ``key`` is the word that asks for it."""
        if problems := list(_problems(folder, key)):
            raise ConfigError(problems)
        found: dict[str, Any] = read_whole(folder / DETACHED) or {}
        try:
            target = found.pop("target")
            return cls(**found, target=None if target is None else Target(**target))
        except (KeyError, TypeError):
            rule = f"cannot be understood: its {DETACHED} is damaged, or of another version"
            raise ConfigError([Problem(key=key, value=folder, rule=rule)]) from None


def _problems(folder: Path, key: str) -> Iterable[Problem]:
    nearest = f"{key}=outputs/<date>/<time>/<n>"
    if not (folder / ".hydra").is_dir() and not (folder / DETACHED).is_file():
        yield Problem(key=key, value=folder, rule="must be the directory of a run", nearest=nearest)
    elif not (folder / DETACHED).is_file():
        rule = f"was not detached (it has no {DETACHED}): it has run, or runs, where its command was typed"
        yield Problem(key=key, value=folder, rule=rule)

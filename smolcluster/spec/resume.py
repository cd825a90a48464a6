"""Where a run goes on from: the checkpoint that ``resume=`` means, and whether it can be gone on from at all.

What a checkpoint says of itself in state.json can be read without torch, so a mistake is found before any
process starts.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from smolcluster.errors import ConfigError, Problem

STATE = "state.json"
POINTERS = ("latest", "best")


def checkpoint_of(resume: str | Path) -> Path:
    """The folder of one step: that of a run's latest checkpoint, or the one that is named; ConfigError otherwise.

    A pointer whose step is gone (its run was killed just then) means the newest step that is whole.
    """
    path = Path(resume).expanduser().absolute()
    if (path / "checkpoints").is_dir():
        path = path / "checkpoints" / "latest"
    found = target_of(path)
    if path.name in POINTERS and not (found / STATE).is_file():
        found = newest(path.parent) or found
    if not (found / STATE).is_file():
        rule = "must be the directory of a run that has saved a checkpoint, or one of its checkpoints/step-<n>"
        there = newest(path.parent)
        raise ConfigError([Problem(key="resume", value=str(resume), rule=rule, nearest=str(there or ""))])
    return found.resolve()


def target_of(pointer: Path) -> Path:
    """What ``latest`` or ``best`` points at, as a link or (on a file system without links) as a text; else itself."""
    if pointer.name not in POINTERS:
        return pointer
    if pointer.is_symlink():
        return pointer.parent / pointer.readlink()
    return pointer.parent / pointer.read_text().strip() if pointer.is_file() else pointer


def point_at(link: Path, target: str) -> None:
    """Make ``link`` point at ``target`` in one step: as a link, or as a text where there are none."""
    beside = link.with_name(f".{link.name}-{os.getpid()}")
    beside.unlink(missing_ok=True)
    try:
        try:
            beside.symlink_to(target, target_is_directory=True)
        except OSError:
            beside.write_text(target)
        beside.replace(link)
    finally:
        beside.unlink(missing_ok=True)


def newest(root: Path) -> Path | None:
    """The checkpoint of the highest step in ``root``."""
    steps = [folder for folder in root.glob("step-*") if (folder / STATE).is_file()]
    return max(steps, key=lambda folder: int(folder.name.removeprefix("step-")), default=None)


def state_of(checkpoint: Path) -> Mapping[str, Any]:
    """What a checkpoint says of itself; empty where that cannot be read (loading it will say why)."""
    try:
        state = json.loads((checkpoint / STATE).read_text())
    except (OSError, ValueError):
        return {}
    return state if isinstance(state, dict) else {}

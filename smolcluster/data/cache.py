"""Work that is done once: folders of files, named by a hash of everything that decides their content.

An entry appears under its name only when it is complete (written beside, flushed to disk, renamed), so a
reader never sees half of one. Processes that start at once wait for the one that builds; an entry, once
there, is never changed.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from smolcluster.data.dataset import Context
from smolcluster.errors import DataError

if TYPE_CHECKING:
    from filelock import BaseFileLock

FORMAT = 1
"""Raised whenever the content of entries changes for the same key."""
WAIT_S = 1800.0
"""Longest time that a process waits for another one that builds the same entry."""
SAY_S = 1.0
"""How often it says that it waits."""


def entry(name: str, key: Sequence[Any], context: Context, build: Callable[[Path], None]) -> Path:
    """The folder of the entry ``name`` for ``key`` (plain values); ``build(folder)`` fills it where it is missing."""
    import filelock

    text = json.dumps([FORMAT, *key], sort_keys=True, default=str)
    path = context.cache / f"{name}-{hashlib.sha256(text.encode()).hexdigest()[:24]}"
    if path.is_dir():
        return path
    try:
        context.cache.mkdir(parents=True, exist_ok=True)
        with _turn(filelock.FileLock(f"{path}.lock"), path, context):
            if not path.is_dir():
                _build(path, build)
    except OSError as error:
        raise DataError(f"cannot write to the data cache {context.cache} ({error})") from error
    return path


def _turn(lock: BaseFileLock, path: Path, context: Context) -> AbstractContextManager[Any]:
    """Wait for whoever builds ``path``, and say so again and again: a wait that is told of is no standstill."""
    import filelock

    for _ in range(round(WAIT_S / SAY_S)):
        try:
            return lock.acquire(timeout=SAY_S)
        except filelock.Timeout:
            context.say(f"waiting for another process, which prepares {path.name}")
    raise DataError(f"{path}: another process has been building it for {WAIT_S:g} s; end it and retry")


def _build(path: Path, build: Callable[[Path], None]) -> None:
    """Fill a folder beside ``path`` and rename it; what a process that died here has left is removed first."""
    beside = path.with_name(f"{path.name}.part")
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir()
    try:
        build(beside)
        for file in beside.iterdir():
            _flush(file)
        beside.rename(path)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def _flush(file: Path) -> None:
    descriptor = os.open(file, os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def identity(path: Path, files: Sequence[Path] | None = None) -> list[Any]:
    """What tells one state of ``files`` in ``path`` (null: all files) from another: names, sizes, times of change."""
    if files is None:
        files = [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())
    stats = [(file, file.stat()) for file in files]
    return [
        str(path.resolve()),
        [[file.relative_to(path).as_posix(), stat.st_size, stat.st_mtime_ns] for file, stat in stats],
    ]

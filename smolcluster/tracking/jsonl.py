"""JSON on disk: files of one object per line, and single objects that are there whole or not at all.

A line is with the operating system when :meth:`JsonLines.write` returns, so ``kill -9`` loses nothing; a power
cut loses what the system had not yet put on the disk. Numbers that JSON cannot say (NaN, infinity) become null.
"""

from __future__ import annotations

import io
import json
import logging
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)


def dumps(value: Any) -> str:
    """``value`` as one line of strict JSON, whatever it holds.

    >>> dumps({"loss": float("nan"), "path": Path("a")})
    '{"loss":null,"path":"a"}'
    """
    try:
        return json.dumps(value, allow_nan=False, separators=(",", ":"))
    except (TypeError, ValueError):
        return json.dumps(strict(value), allow_nan=False, separators=(",", ":"))


def strict(value: Any) -> Any:
    """``value`` as JSON can say it: no NaN, texts as keys, lists for sequences, and texts for all else."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, (str, int)):
        return value
    if isinstance(value, Mapping):
        return {str(key): strict(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [strict(inner) for inner in value]
    return str(value)


class JsonLines:
    """A file that lines are added to. A line cut short before (by a crash or a full disk) is ended first."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = io.FileIO(path, "a")
        self._torn = _is_torn(path)
        self.size = self._file.tell()
        """Bytes in the file."""

    def write(self, value: Mapping[str, Any]) -> None:
        line = (b"\n" if self._torn else b"") + dumps(value).encode() + b"\n"
        self._torn = True
        written = self._file.write(line)
        self.size += written
        self._torn = written < len(line)

    def close(self) -> None:
        self._file.close()


def _is_torn(path: Path) -> bool:
    with path.open("rb") as file:
        if file.seek(0, os.SEEK_END) == 0:
            return False
        file.seek(-1, os.SEEK_END)
        return file.read(1) != b"\n"


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The objects in ``path``, none where there is no file. A last line without its end is left out: it was cut short.

    Any other line that is no JSON object is left out too, and said in the log.
    """
    if not path.exists():
        return []
    lines = path.read_bytes().split(b"\n")
    found = []
    for place, line in enumerate(lines[:-1], start=1):
        value = _object(line)
        if value is not None:
            found.append(value)
        elif line.strip():
            logger.warning("%s line %d is left out: it is no JSON object", path, place)
    return found


def _object(line: bytes) -> dict[str, Any] | None:
    try:
        value = json.loads(line)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def write_whole(path: Path, value: Mapping[str, Any]) -> None:
    """Put ``value`` into ``path`` as indented JSON; a reader sees the old file or the new one, never a part."""
    replace_whole(path, json.dumps(strict(value), indent=2, allow_nan=False).encode() + b"\n")


def replace_whole(path: Path, data: bytes) -> None:
    """Put ``data`` into ``path``; where it cannot be written whole, what was there stays."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with beside.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def read_whole(path: Path) -> dict[str, Any] | None:
    """The object in ``path``, None where there is none."""
    return _object(path.read_bytes()) if path.exists() else None

"""Checkpoints and exports of a node on another machine, brought into the run's directory here."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tarfile
import threading
from pathlib import Path
from typing import IO, Any

from smolcluster.spec.resume import POINTERS, STATE, point_at

PACK = """
import io, json, os, sys, tarfile
folder, known, everything = sys.argv[1], set(json.loads(sys.argv[2])), sys.argv[3] == "all"
os.chdir(folder) if os.path.isdir(folder) else sys.exit(0)
archive = tarfile.open(mode="w|", fileobj=sys.stdout.buffer)
root = "checkpoints"
names = os.listdir(root) if os.path.isdir(root) else []
steps = [n for n in names if n.startswith("step-") and os.path.isfile(os.path.join(root, n, "state.json"))]
about = {"steps": steps, "pointers": {}}
for name in ("latest", "best"):
    path = os.path.join(root, name)
    if os.path.islink(path):
        about["pointers"][name] = os.readlink(path)
    elif os.path.isfile(path):
        about["pointers"][name] = open(path).read().strip()
data = json.dumps(about).encode()
entry = tarfile.TarInfo("about.json")
entry.size = len(data)
archive.addfile(entry, io.BytesIO(data))
for step in sorted(set(steps) - known):
    archive.add(os.path.join(root, step), step)
if everything and os.path.isdir("export"):
    archive.add("export", "export")
archive.close()
"""


def known_steps(folder: Path) -> list[str]:
    """The checkpoints that are here already."""
    return [path.parent.name for path in (folder / "checkpoints").glob(f"step-*/{STATE}")]


class Incoming:
    """Takes the bytes of a tar file as they come, and files what is in it when all of it is there."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.beside = folder, folder / f".incoming-{os.getpid()}"
        read, write = os.pipe()
        self._source: IO[bytes] = os.fdopen(read, "rb")
        self._sink: IO[bytes] = os.fdopen(write, "wb")
        self._failure: Exception | None = None
        self._thread = threading.Thread(target=self._unpack, name="incoming files", daemon=True)
        self._thread.start()

    def take(self, data: bytes) -> None:
        if self._failure is not None:
            raise self._failure
        try:
            self._sink.write(data)
        except BrokenPipeError:
            self._thread.join()
            raise self._failure or RuntimeError("unpacking ended early") from None

    def _unpack(self) -> None:
        try:
            with self._source, tarfile.open(mode="r|", fileobj=self._source) as archive:
                archive.extractall(self.beside, filter="data")
                while self._source.read(1 << 16):
                    pass  # what follows the end of the archive
        except tarfile.ReadError as error:
            self._failure = None if str(error) == "empty file" else error
        except (OSError, tarfile.TarError) as error:
            self._failure = error

    def finish(self, *, whole: bool) -> None:
        """Close the stream; where it was ``whole``, put everything in its place, pointers last."""
        with contextlib.suppress(BrokenPipeError):
            self._sink.close()
        self._thread.join()
        try:
            if self._failure is not None:
                raise self._failure
            if whole and (self.beside / "about.json").is_file():
                self._file(json.loads((self.beside / "about.json").read_text()))
        finally:
            shutil.rmtree(self.beside, ignore_errors=True)

    def _file(self, about: dict[str, Any]) -> None:
        root = self.folder / "checkpoints"
        root.mkdir(exist_ok=True)
        for step in self.beside.glob("step-*"):
            _replace(step, root / step.name)
        export = self.beside / "export"
        if export.is_dir():
            _replace(export, self.folder / "export")
        for name, target in about["pointers"].items():
            if name in POINTERS and (root / target / STATE).is_file():
                point_at(root / name, target)
        kept = {*about["steps"], *about["pointers"].values()}
        for step in root.glob("step-*"):
            if step.name not in kept:
                shutil.rmtree(step)


def _replace(new: Path, place: Path) -> None:
    if place.exists():
        shutil.rmtree(place)
    new.rename(place)

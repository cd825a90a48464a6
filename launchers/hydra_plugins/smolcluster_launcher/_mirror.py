"""What is in a run's directory on another machine, brought into the one here: checkpoints, export, or all of it."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import shutil
import tarfile
import threading
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import IO, Any

from hydra_plugins.smolcluster_launcher._reached import HostFailed, Reached

from smolcluster.spec.resume import POINTERS, STATE, point_at
from smolcluster.tracking.rundir import SUMMARY

ROOT = "checkpoints"

PACK = """
import io, json, os, sys, tarfile
folder, known, what = sys.argv[1], set(json.loads(sys.argv[2])), sys.argv[3]
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
if what == "all" and os.path.isdir("export"):
    archive.add("export", "export")
files = json.load(sys.stdin) if what == "run" else {}
for place, folders, names in os.walk(".") if what == "run" else ():
    folders[:] = sorted(n for n in folders if not n.startswith(".") and (place != "." or n != root))
    for name in sorted(n for n in names if not n.startswith(".")):
        path = os.path.relpath(os.path.join(place, name))
        if files.get(path) != [os.lstat(path).st_size, int(os.lstat(path).st_mtime)]:
            archive.add(path, os.path.join("records", path), recursive=False)
archive.close()
"""
"""Packs the checkpoints that are not known yet, and the export (``all``), or all files that are not known by size and
time (``run``; these come on standard input). Names with a dot in front are nobody's business."""
FETCHING = ".fetching"
"""Locked while somebody fetches the run that this is the directory of."""
FETCH_WAITS_S = 600.0
"""Who fetches a run that somebody else is fetching at the moment waits so long at most."""


def known_steps(folder: Path) -> list[str]:
    """The checkpoints that are here already."""
    return [path.parent.name for path in (folder / "checkpoints").glob(f"step-*/{STATE}")]


def known_files(folder: Path) -> dict[str, list[int]]:
    """Size and time of what is here already besides checkpoints, by path."""
    found = {}
    for place, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".") and (place != str(folder) or name != ROOT)]
        for name in names:
            path = Path(place, name)
            about = path.lstat()
            found[path.relative_to(folder).as_posix()] = [about.st_size, int(about.st_mtime)]
    return found


@asynccontextmanager
async def turn(folder: Path) -> AsyncIterator[None]:
    """Nobody else fetches this run's directory, or takes it away over there, at the same time. OSError where somebody
    else does for too long."""
    import filelock

    lock = filelock.FileLock(folder / FETCHING, timeout=FETCH_WAITS_S, thread_local=False)
    await asyncio.to_thread(lock.acquire)
    try:
        yield
    finally:
        lock.release()


async def fetch_run(machine: Reached, python: str, there: str, folder: Path) -> None:
    """Bring all of the run's directory ``there`` into ``folder`` that is not in it yet, ``summary.json`` last: where
    that is, all is. To be called in one's ``turn``. HostFailed, or an OSError, says why that is not possible."""
    argv = [python, "-c", PACK, there, json.dumps(known_steps(folder)), "run"]
    await receive(machine, argv, folder, [json.dumps(known_files(folder)).encode()])


async def receive(machine: Reached, argv: Sequence[str], folder: Path, stdin: Iterable[bytes] = ()) -> None:
    """Run what packs on a machine, and file what it packs."""
    incoming = await asyncio.to_thread(Incoming, folder)
    whole = False
    try:
        done = await machine.run(argv, stdin=stdin, out=incoming.take)
        whole = done.code == 0
        if not whole:
            raise HostFailed(f"{machine.name}: what is there could not be fetched: {done.words}")
    finally:
        await asyncio.to_thread(incoming.finish, whole=whole)


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
        root = self.folder / ROOT
        root.mkdir(exist_ok=True)
        for step in self.beside.glob("step-*"):
            verify(step)
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
        records = self.beside / "records"
        for path in sorted(records.rglob("*"), key=lambda path: (path.name == SUMMARY, path)):
            if path.is_symlink() or path.is_file():
                place = self.folder / path.relative_to(records)
                place.parent.mkdir(parents=True, exist_ok=True)
                path.replace(place)


def verify(step: Path) -> None:
    """HostFailed where a checkpoint is not what its ``state.json`` says it is."""
    for name, digest in json.loads((step / STATE).read_text())["sha256"].items():
        with (step / name).open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != digest:
                raise HostFailed(f"{step.name}/{name} has arrived damaged: its sha256 is not the one in {STATE}")


def _replace(new: Path, place: Path) -> None:
    if place.exists():
        shutil.rmtree(place)
    new.rename(place)

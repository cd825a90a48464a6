"""What is sent to a machine: our own code as a wheel, and files of the user's, each named by the hash of its content.

The wheel is written here rather than by a build tool, so that it can be made wherever smolcluster runs (from a checkout
or from an installed package), and so that equal code gives equal bytes and is sent once.
"""

from __future__ import annotations

import base64
import hashlib
import io
import os
import tarfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import smolcluster
from smolcluster.spec.build import conf_dir

MOMENT = (1980, 1, 1, 0, 0, 0)
"""The time of every file in the wheel: the earliest that a zip file can say."""
LEFT_OUT = {"__pycache__", ".DS_Store"}
UNPACK = """
import hashlib, io, os, shutil, sys, zipfile
root, name = sys.argv[1:]
data = sys.stdin.buffer.read()
if hashlib.sha256(data).hexdigest() != name:
    sys.exit("what arrived is not what was sent")
beside, final = os.path.join(root, "%s.part-%d" % (name, os.getpid())), os.path.join(root, name)
try:
    zipfile.ZipFile(io.BytesIO(data)).extractall(beside)
    os.path.isdir(final) or os.rename(beside, final)
except OSError as error:
    os.path.isdir(final) or sys.exit(error.strerror or str(error))
finally:
    shutil.rmtree(beside, ignore_errors=True)
"""


@dataclass(frozen=True, kw_only=True)
class Wheel:
    """``name`` is the sha256 of ``data``; ``filename`` is what pip wants it to be called."""

    name: str
    data: bytes
    filename: str


@cache
def wheel() -> Wheel:
    """Our own code as it is on this machine now."""
    version = smolcluster.__version__
    info = f"smolcluster-{version}.dist-info"
    files = dict(_own_files())
    files[f"{info}/WHEEL"] = b"Wheel-Version: 1.0\nGenerator: smolcluster\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    files[f"{info}/METADATA"] = _metadata(version).encode()
    files[f"{info}/entry_points.txt"] = _entry_points().encode()
    record = "".join(f"{name},sha256={_digest(data)},{len(data)}\n" for name, data in sorted(files.items()))
    files[f"{info}/RECORD"] = f"{record}{info}/RECORD,,\n".encode()
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in sorted(files.items()):
            entry = zipfile.ZipInfo(name, MOMENT)
            entry.compress_type, entry.external_attr = zipfile.ZIP_DEFLATED, 0o644 << 16
            archive.writestr(entry, data)
    data = stream.getvalue()
    return Wheel(name=hashlib.sha256(data).hexdigest(), data=data, filename=f"smolcluster-{version}-py3-none-any.whl")


def _own_files() -> Iterator[tuple[str, bytes]]:
    package = Path(smolcluster.__file__).parent
    plugin = Path(__file__).parent
    for folder, prefix in (
        (package, "smolcluster"),
        (plugin, "hydra_plugins/smolcluster_launcher"),
        (conf_dir(), "smolcluster/conf"),
    ):
        for path in walk(folder):
            yield f"{prefix}/{path.relative_to(folder).as_posix()}", path.read_bytes()


def walk(folder: Path) -> Iterator[Path]:
    """The files in a folder, in the order of their names."""
    for root, folders, files in os.walk(folder):
        folders[:] = sorted(set(folders) - LEFT_OUT)
        yield from (Path(root, name) for name in sorted(set(files) - LEFT_OUT) if not name.endswith(".pyc"))


def _digest(data: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()


def _metadata(version: str) -> str:
    found = metadata.distribution("smolcluster").read_text("METADATA")
    return found or f"Metadata-Version: 2.1\nName: smolcluster\nVersion: {version}\n"


def _entry_points() -> str:
    return metadata.distribution("smolcluster").read_text("entry_points.txt") or ""


@dataclass(frozen=True, kw_only=True)
class Parcel:
    """A file or a folder of the user's, to be unpacked as ``files/<name>/<its own name>``."""

    name: str
    path: Path

    @classmethod
    def of(cls, path: Path) -> Parcel:
        """Named by the content: the names, sizes and bytes of all files."""
        digest = hashlib.sha256()
        for file in [path] if path.is_file() else walk(path):
            inside = file.relative_to(path.parent).as_posix()
            digest.update(f"{inside}\0{file.stat().st_size}\0".encode())
            with file.open("rb") as stream:
                while data := stream.read(1 << 20):
                    digest.update(data)
        return cls(name=digest.hexdigest(), path=path)

    def stream(self) -> Iterator[bytes]:
        """The bytes of a tar file, made while they are sent."""
        pieces = _Pieces()
        with tarfile.open(mode="w|", fileobj=pieces, bufsize=1 << 20) as archive:
            for file in [self.path] if self.path.is_file() else walk(self.path):
                archive.add(file, file.relative_to(self.path.parent).as_posix(), recursive=False)
                yield from pieces.taken()
        yield from pieces.taken()


class _Pieces(io.RawIOBase):
    """A file that is written to and emptied."""

    def __init__(self) -> None:
        self._pieces: list[bytes] = []

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self._pieces.append(bytes(data))
        return len(data)

    def taken(self) -> list[bytes]:
        pieces, self._pieces = self._pieces, []
        return pieces


UNPACK_FILES = """
import os, shutil, sys, tarfile
root, name = sys.argv[1:]
beside, final = os.path.join(root, "%s.part-%d" % (name, os.getpid())), os.path.join(root, name)
try:
    with tarfile.open(mode="r|", fileobj=sys.stdin.buffer) as archive:
        archive.extractall(beside, filter="data")
    os.path.isdir(final) or os.rename(beside, final)
except (OSError, tarfile.TarError) as error:
    os.path.isdir(final) or sys.exit(getattr(error, "strerror", "") or str(error))
finally:
    shutil.rmtree(beside, ignore_errors=True)
"""

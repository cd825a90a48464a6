"""An environment with all packages on another machine, made there once and found again by what is in it."""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata

from hydra_plugins.smolcluster_launcher._preflight import Report
from hydra_plugins.smolcluster_launcher._reached import HostFailed, Reached

SILENT_S = 900.0
"""The longest that an installer may say nothing: it may be fetching a package of gigabytes."""
TELL_S = 3.0
MAKE = """
import json, os, shutil, subprocess, sys, time
order = json.loads(sys.argv[1])
final, tool = order["path"], order["tool"]
beside = "%s.part-%d" % (final, os.getpid())
python = os.path.join(beside, "Scripts" if os.name == "nt" else "bin", "python")
shutil.rmtree(beside, ignore_errors=True)
os.makedirs(os.path.dirname(final), exist_ok=True)
pins = beside + ".txt"
with open(pins, "w") as file:
    file.write("\\n".join(order["pins"]) + "\\n")
places = ["--no-index", "--find-links", order["wheelhouse"]] if order["wheelhouse"] else []
if tool == "uv":
    make = ["uv", "venv", "--relocatable", "--python", sys.executable, beside]
    install = ["uv", "pip", "install", "--python", python]
else:
    make = [sys.executable, "-m", "venv", beside]
    install = [python, "-m", "pip", "install", "--progress-bar", "off", "--disable-pip-version-check"]
try:
    for command in (make, install + ["-c", pins] + places + order["requirements"]):
        try:
            done = subprocess.run(command, stdin=subprocess.DEVNULL, stderr=subprocess.STDOUT)
        except FileNotFoundError:
            sys.exit("%s is not installed there" % command[0])
        if done.returncode:
            sys.exit("%s has failed (exit code %d)" % (" ".join(command[:3]), done.returncode))
    os.rename(beside, final)
    with open(os.path.join(final, "complete"), "w") as file:
        file.write("yes")
finally:
    shutil.rmtree(beside, ignore_errors=True)
    os.remove(pins)
"""
"""Makes the environment beside its place and moves it there when it is whole. What it runs writes to its output."""


@dataclass(frozen=True, kw_only=True)
class Environment:
    """What shall be installed. ``pins`` are the versions of this machine, so that all nodes have the same."""

    tool: str
    requirements: tuple[str, ...]
    pins: tuple[str, ...]

    @classmethod
    def like_here(cls, tool: str) -> Environment:
        """All that smolcluster needs, in the versions that are installed here."""
        own = [each for each in metadata.requires("smolcluster") or () if "extra ==" not in each]
        pins = {_canonical(each.name): each.version.split("+")[0] for each in metadata.distributions() if each.name}
        pins.pop("smolcluster", None)
        return cls(
            tool=tool,
            requirements=tuple(sorted(own)),
            pins=tuple(f"{name}=={version}" for name, version in sorted(pins.items())),
        )

    def name(self, report: Report) -> str:
        """Folder of the environment below the machine's working folder: by what is in it, and for which Python."""
        parts = [self.tool, *self.requirements, *self.pins, *map(str, report.python), report.system, report.machine]
        return f"env/{hashlib.sha256(chr(0).join(parts).encode()).hexdigest()[:16]}"


def _canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def python_of(workdir: str, name: str, system: str) -> str:
    """The interpreter of an environment."""
    return f"{workdir}/{name}/Scripts/python.exe" if system == "Windows" else f"{workdir}/{name}/bin/python"


def marker(name: str) -> str:
    """What is there when an environment is whole."""
    return f"{name}/complete"


async def make(
    machine: Reached,
    report: Report,
    environment: Environment,
    wheelhouse: str | None,
    say: Callable[[str], None],
) -> str:
    """Make the environment on a machine; returns its interpreter. ``say`` is told what the installer tells.

    HostFailed says what went wrong, with the installer's last words.
    """
    name = environment.name(report)
    order: Mapping[str, object] = {
        "path": f"{report.workdir}/{name}",
        "tool": environment.tool,
        "requirements": list(environment.requirements),
        "pins": list(environment.pins),
        "wheelhouse": wheelhouse,
    }
    lines = _Lines(say)
    argv: Sequence[str] = [report.executable, "-c", MAKE, json.dumps(order)]
    done = await machine.run(argv, out=lines.take, silent_s=SILENT_S)
    if done.code != 0:
        told = f" ({lines.last})" if lines.last else ""
        raise HostFailed(f"{report.name}: no environment could be made in {report.workdir}/{name}: {done.words}{told}")
    return python_of(report.workdir, name, report.system)


class _Lines:
    """Output as it comes. A line is told now and then, so that one sees it get on; what looks like an error is kept."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say, self._pending, self.last = say, b"", ""
        self._told = time.monotonic()

    def take(self, data: bytes) -> None:
        *lines, self._pending = (self._pending + data).split(b"\n")
        for words in filter(None, (line.decode(errors="replace").strip() for line in lines)):
            self.last = words if "error" in words.lower() or not self.last else self.last
            if time.monotonic() - self._told >= TELL_S:
                self._told = time.monotonic()
                self._say(f"installing: {words}")

"""What must be so on a machine before a node is started there. Pure: from what machines say to what is wrong."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from typing import Any

from smolcluster.cluster.session import Check
from smolcluster.panes.tmux import absence

MIN_PYTHON = (3, 11)
MIN_FREE_BYTES = 200 << 20
"""Less room than that on the disk of the working folder is too little to begin with."""
REQUIRED = ("torch", "lightning-fabric", "numpy", "safetensors", "cryptography", "msgpack", "pyzmq", "omegaconf")
"""Packages without which no node runs."""
USED = ("tokenizers", "transformers", "datasets", "scikit-learn")
"""Packages that some models or data sets need."""
CLOCK_S = 60.0
"""Clocks that are further apart make records hard to read, and certificates not yet valid."""


@dataclass(frozen=True, kw_only=True)
class Report:
    """What a machine has said of itself; see ``_probe.py``."""

    name: str
    python: tuple[int, int, int]
    executable: str
    system: str
    machine: str
    cores: int
    memory_bytes: int | None
    free_bytes: int
    workdir: str
    clock_offset_s: float
    packages: Mapping[str, str | None]
    there: frozenset[str]
    error: str
    tmux: str | None = None
    """Where tmux is; None where there is none."""

    @classmethod
    def of(cls, name: str, answer: Mapping[str, Any], *, sent: float, received: float) -> Report:
        """``sent`` and ``received`` are this machine's clock around the question."""
        return cls(
            name=name,
            python=tuple(answer["python"]),
            executable=answer["executable"],
            system=answer["system"],
            machine=answer["machine"],
            cores=int(answer["cores"]),
            memory_bytes=answer["memory_bytes"],
            free_bytes=int(answer.get("free_bytes", 0)),
            workdir=answer["workdir"],
            clock_offset_s=answer["time"] - (sent + received) / 2,
            packages=answer["packages"],
            there=frozenset(answer.get("there", ())),
            error=answer["error"],
            tmux=answer["tmux"],
        )


def here() -> dict[str, str | None]:
    """The packages of this machine."""
    return {name: _version(name) for name in (*REQUIRED, *USED)}


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def obstacles(report: Report, *, environment: bool, tmux: bool = False) -> Iterable[str]:
    """Why no node can run there, each with what to do. ``environment``: packages are about to be installed; ``tmux``:
    nodes are to run in tmux sessions."""
    key = f"cluster.nodes.{report.name}"
    if report.error:
        yield f"cannot write to {report.error}; set {key}.workdir"
    elif report.free_bytes < MIN_FREE_BYTES:
        yield f"only {report.free_bytes >> 20} MB are free in {report.workdir}; set {key}.workdir, or make room"
    if report.python < MIN_PYTHON:
        found = ".".join(map(str, report.python))
        yield f"{report.executable} is Python {found}, 3.11 is needed; set {key}.python"
    elif not environment:
        lacking = [name for name in REQUIRED if not report.packages.get(name)]
        if lacking:
            yield (
                f"{report.executable} has no {', '.join(lacking)}; install them there, set {key}.python, or let "
                "hydra.launcher.env=venv make an environment"
            )
        elif (ours := _version("torch")) and _series(report.packages["torch"]) != _series(ours):
            theirs = report.packages["torch"]
            yield f"has torch {theirs}, this machine {ours}: nodes must have the same up to the second number"
    if tmux and (report.tmux is None or report.system == "Windows"):
        yield absence(report.system)


def checks(report: Report, *, environment: bool, tmux: bool) -> list[Check]:
    """What a person wants to know of a machine, with what is wrong with it. The words are those of ``obstacles``."""
    found = ".".join(map(str, report.python))
    system = f"{report.system} {report.machine}, {report.cores} cores"
    lines = [
        Check("machine", "ok", system),
        Check("Python", "ok", found),
        Check("packages", "ok", f"torch {report.packages.get('torch') or '–'}"),
        Check("memory", "ok", f"{report.memory_bytes / 1e9:.1f} GB" if report.memory_bytes else "–"),
        Check("disk", "ok", f"{report.free_bytes / 1e9:.1f} GB free"),
        Check("clock", "ok", f"{report.clock_offset_s:+.1f} s"),
    ]
    if abs(report.clock_offset_s) > CLOCK_S:
        words = "records are hard to compare: let it set its clock from the network (NTP)"
        lines[-1] = lines[-1]._replace(verdict="warn", remedy=words)
    wrong = obstacles(report, environment=environment, tmux=tmux)
    return [*lines, *(Check("fit", "bad", "", words) for words in wrong)]


def _series(version: str | None) -> tuple[str, ...]:
    """``2.13.0+cpu`` -> ``('2', '13')``."""
    return tuple((version or "").split("+")[0].split(".")[:2])


def differences(reports: Sequence[Report], ours: Mapping[str, str | None]) -> list[str]:
    """Package versions that are not the same everywhere, one line each: worth a look, and no reason to stop."""
    lines = []
    for package in (*REQUIRED, *USED):
        by_version: dict[str, list[str]] = {}
        by_version.setdefault(ours.get(package) or "none", []).append("here")
        for report in reports:
            by_version.setdefault(report.packages.get(package) or "none", []).append(report.name)
        if len(by_version) > 1:
            told = ", ".join(f"{version} ({', '.join(names)})" for version, names in by_version.items())
            lines.append(f"{package}: {told}")
    pythons: dict[str, list[str]] = {}
    for report in reports:
        pythons.setdefault(".".join(map(str, report.python[:2])), []).append(report.name)
    if len(pythons) > 1:
        lines.append("Python: " + ", ".join(f"{number} ({', '.join(names)})" for number, names in pythons.items()))
    lines += [
        f"clock of {report.name}: {report.clock_offset_s:+.0f} s"
        for report in reports
        if abs(report.clock_offset_s) > CLOCK_S
    ]
    return lines

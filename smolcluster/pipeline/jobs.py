"""The jobs of one command: what each of them came to, wherever it ran."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

DETACHED = "detached.json"
"""Where a run goes on that has been left; in the directory that it has here."""
EXIT_CODES = {"done": 0, "failed": 1, "interrupted": 130, "detached": 0}
"""By status; a detached run has been left going, as it was asked for."""


@dataclass(frozen=True, kw_only=True)
class Finished:
    """A job that has ended. ``summary`` is its ``summary.json``, empty where it did not get that far.

    ``reason`` says why it failed, where that has not been told yet.
    """

    number: int
    folder: Path
    overrides: Sequence[str]
    summary: Mapping[str, Any]
    reason: str = ""

    @classmethod
    def read(cls, *, number: int, folder: Path, overrides: Sequence[str], reason: str = "") -> Finished:
        """What its directory says of it."""
        try:
            summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            summary = {"status": "failed", "reason": reason} if reason else {}
        return cls(number=number, folder=folder, overrides=overrides, summary=summary, reason=reason)

    @property
    def exit_code(self) -> int:
        return EXIT_CODES.get(str(self.summary.get("status")), 1 if self.reason else 0)

    @property
    def row(self) -> dict[str, Any]:
        """Its line in a comparison."""
        return {**self.summary, "run": self.number, "overrides": list(self.overrides)}


@dataclass
class Jobs:
    """``total`` is how many there will be; None where a sweeper decides that as it goes."""

    total: int | None
    finished: list[Finished] = field(default_factory=list)

    def add(self, job: Finished) -> None:
        """Note a job, once: in the process that it ran in, or in the one that heard of it."""
        if all(known.folder != job.folder for known in self.finished):
            self.finished.append(job)

    @property
    def in_order(self) -> list[Finished]:
        return sorted(self.finished, key=lambda job: job.number)


current: ContextVar[Jobs | None] = ContextVar("jobs", default=None)


@contextmanager
def gathered(total: int | None) -> Iterator[Jobs]:
    """While it lasts, jobs that end are noted."""
    jobs = Jobs(total)
    token = current.set(jobs)
    try:
        yield jobs
    finally:
        current.reset(token)


def note(job: Finished) -> None:
    """Note a job with whoever gathers them, if anybody does."""
    jobs = current.get()
    if jobs is not None:
        jobs.add(job)

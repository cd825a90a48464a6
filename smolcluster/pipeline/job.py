"""One run from its spec to its result: directory, tracking, controller, and what comes of it."""

from __future__ import annotations

import asyncio
import os
import platform
import secrets
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import smolcluster
from smolcluster.cluster.controller import Controller, Job, Outcome, roster
from smolcluster.cluster.local import sessions_for
from smolcluster.data.order import Walk, course_for
from smolcluster.errors import ConfigError, Problem
from smolcluster.spec.needs import Needs, needs_of
from smolcluster.spec.rerun import digest_of
from smolcluster.spec.resume import checkpoint_of, state_of
from smolcluster.spec.validate import missing
from smolcluster.tracking.console import Console, console_for
from smolcluster.tracking.hub import Tracking
from smolcluster.tracking.tracker import NodeInfo, RunInfo

if TYPE_CHECKING:
    from smolcluster.spec.run import RunSpec


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a run leaves its records, and how it was asked for."""

    folder: Path
    overrides: Sequence[str] = ()
    number: int = 0
    home: Path | None = None
    """What the person knows ``folder`` as, where that is on another machine."""

    @property
    def known_as(self) -> Path:
        return self.home or self.folder


@dataclass(frozen=True, kw_only=True)
class Origin:
    """What is known of a run only where it was asked for, which may be on another machine than it is conducted on."""

    revision: str | None
    """The commit of the checkout."""
    digest_before: str | None
    """Of the final weights of the run that this one is a rerun of."""

    @classmethod
    def here(cls, spec: RunSpec) -> Origin:
        return cls(revision=git_revision(), digest_before=None if spec.rerun is None else digest_of(spec.rerun))


@dataclass(frozen=True, kw_only=True)
class Result:
    """What a run hands back. ``metric`` is what a sweeper minimises: the final validation loss.

    Of a run that has been left going, ``summary`` has the status ``detached`` and nothing of what it may come to.
    """

    outcome: Outcome
    folder: Path
    summary: Mapping[str, Any] = field(default_factory=dict)
    overrides: Sequence[str] = ()
    number: int = 0

    @property
    def metric(self) -> float | None:
        value = (self.summary.get("final") or {}).get("loss")
        return float(value) if isinstance(value, (int, float)) else None


class Leave(Protocol):
    """Starts a run somewhere and leaves it going there."""

    def __call__(self, spec: RunSpec, place: Place, job: Job) -> Result: ...


leaver: ContextVar[Leave | None] = ContextVar("leaver", default=None)
"""Set by a launcher that conducts runs elsewhere."""


def conduct(
    spec: RunSpec,
    place: Place,
    *,
    purpose: str = "train",
    console: Console | None = None,
) -> Result:
    """Run ``spec`` on its nodes and wait for the end. Ctrl-C stops it politely, a second one at once."""
    preflight(spec)
    resume = str(checkpoint_of(spec.resume)) if spec.resume else None
    job = Job(
        run=f"{place.folder.name}-{secrets.token_hex(4)}",
        folder=place.folder,
        cache=cache_folder(),
        threads=threads_here(spec, purpose),
        resume=resume,
        purpose=purpose,
        needs=Needs() if spec.cluster.is_local else needs_of(spec, cache_folder(), resume),
    )
    leave = leaver.get()
    if leave is not None:
        return leave(spec, place, job)
    return see_through(spec, place, job, Origin.here(spec), console)


def threads_here(spec: RunSpec, purpose: str) -> int:
    """Compute threads for each node of this machine."""
    return spec.cluster.threads_per_node or max(1, (os.cpu_count() or 1) // processes(spec, purpose))


def infos(spec: RunSpec, purpose: str) -> list[NodeInfo]:
    """The nodes of a run as people know them."""
    return [
        NodeInfo(
            name=member.name,
            role=member.role,
            rank=member.rank,
            host=platform.node() if spec.cluster.nodes is None else member.name,
            device=spec.cluster.node(member.name).device,
        )
        for member in roster(spec, purpose)
    ]


def see_through(
    spec: RunSpec,
    place: Place,
    job: Job,
    origin: Origin,
    console: Console | None = None,
    until: Callable[[], Awaitable[None]] | None = None,
) -> Result:
    """Conduct a run from this process. When ``until`` comes back, it is stopped politely."""
    purpose = job.purpose
    run = RunInfo.of(spec, path=place.folder, run_id=job.run, nodes=infos(spec, purpose), purpose=purpose)
    try:
        tracking = Tracking.of(spec, run, console or console_for(sys.stdout), plot=purpose == "train")
    except OSError as error:
        raise unwritable(place.folder, error) from error
    record = Record(spec, place, job, origin)
    tracking.start(record.plain())
    if job.resume is not None:
        resumed = {"event": "journal", "kind": "resumed", "peer": job.resume, "step": None}
        tracking.on_event({**resumed, "node": "controller", "role": "controller", "rank": 0})
    facts: dict[str, Any] = {}

    def on_event(event: dict[str, Any]) -> None:
        tracking.on_event(event)
        if event["event"] == "result":
            facts["digest"] = event["digest"]
        elif event["event"] == "ready":
            record.nodes[event["node"]] = event.get("hardware")
            tracking.rewrite(record.plain())

    outcome = Outcome(status="failed", reason="the controller failed")
    try:
        outcome = asyncio.run(_control(spec, job, on_event, until))
    finally:
        digest = facts.get("digest")
        rerun = compared_with(spec.rerun, origin.digest_before, digest) if spec.rerun is not None else {}
        reason = reason_with_checkpoint(outcome, place) if purpose == "train" else outcome.reason
        summary = tracking.finish(outcome.status, reason, digest=digest, also=rerun)
    return Result(
        outcome=replace(outcome, reason=summary["reason"]),
        folder=place.folder,
        summary=summary,
        overrides=place.overrides,
        number=place.number,
    )


async def _control(
    spec: RunSpec, job: Job, on_event: Any, until: Callable[[], Awaitable[None]] | None = None
) -> Outcome:
    controller = Controller(spec, job, sessions_for(spec, job.threads), on_event)

    async def wait_for_a_wish() -> None:
        if until is not None:
            await until()
            controller.interrupt()

    waiting = asyncio.create_task(wait_for_a_wish(), name="wish to stop")
    try:
        with heeded(controller.interrupt):
            return await controller.run()
    finally:
        waiting.cancel()


@contextmanager
def heeded(interrupt: Callable[[], None]) -> Iterator[None]:
    """While it lasts, Ctrl-C and SIGTERM call ``interrupt`` in the event loop."""
    loop, numbers = asyncio.get_running_loop(), (signal.SIGINT, signal.SIGTERM)
    try:
        for number in numbers:
            loop.add_signal_handler(number, interrupt)
    except NotImplementedError:  # on Windows
        before = [signal.signal(number, lambda *_: loop.call_soon_threadsafe(interrupt)) for number in numbers]
        try:
            yield
        finally:
            for number, handler in zip(numbers, before, strict=True):
                signal.signal(number, handler)
        return
    try:
        yield
    finally:
        for number in numbers:
            loop.remove_signal_handler(number)


def processes(spec: RunSpec, purpose: str = "train") -> int:
    """Node processes on this machine that compute at the same time; they share its cores.

    A pure server computes while the workers wait for it, so it does not count.
    """
    if not spec.comms.separate_processes or not spec.cluster.is_local:
        return 1
    computing = [m for m in roster(spec, purpose) if m.role == "worker" or spec.algo.server_trains]
    return max(1, len(computing))


def cache_folder() -> Path:
    """Where prepared data is kept between runs."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "smolcluster"


def compared_with(source: str, before: str | None, digest: str | None) -> dict[str, Any]:
    """Whether a rerun has come to the same weights; None where one of the two has no final weights."""
    return {"rerun": {"of": source, "identical": None if before is None or digest is None else before == digest}}


def reason_with_checkpoint(outcome: Outcome, place: Place) -> str:
    """Why a run ended; where it can go on, with the words that make it."""
    if outcome.status == "done":
        return outcome.reason
    latest = place.folder / "checkpoints" / "latest"
    if latest.exists():
        return f"{outcome.reason}; {latest.resolve().name} is saved: go on with resume={place.known_as}"
    return f"{outcome.reason}; no checkpoint was saved yet"


def preflight(spec: RunSpec) -> None:
    """What has to be so before a node is started: what the run needs is here. ConfigError with all that is not."""
    problems = missing(spec) if spec.cluster.is_local else []
    if problems:
        raise ConfigError(problems)
    if spec.resume is not None:
        problems = list(unresumable(spec, state_of(checkpoint_of(spec.resume))))
    if problems:
        raise ConfigError(problems)


def unresumable(spec: RunSpec, state: Mapping[str, Any]) -> Iterable[Problem]:
    """Why training cannot go on from a checkpoint that says ``state`` of itself."""
    if spec.choices.get("pipeline") != "train" or "algorithm" not in state:
        return
    for group in ("model", "data"):
        before, now = state.get(f"{group}_option"), spec.choices.get(group)
        if before is not None and before != now:
            yield Problem(key=group, value=now, rule=f"must be {before}, as before", nearest=f"{group}={before}")
    if state.get("seed") != spec.seed:
        rule = f"must be {state.get('seed')}, as before: the order of the samples that are still to come depends on it"
        yield Problem(key="seed", value=spec.seed, rule=rule, nearest=str(state.get("seed")))
    at, num_samples = state["algorithm"], state.get("num_samples")
    if state.get("data_option") != spec.choices.get("data"):
        return
    if num_samples is not None and Walk.resume(course_for(spec, num_samples), at).remaining(at["step"]) == 0:
        rule = f"is at its end (step {state['step']}): raise train.epochs or train.max_steps to go on"
        yield Problem(key="resume", value=spec.resume, rule=rule)


def unwritable(folder: Path | str, error: OSError) -> ConfigError:
    """The directory that a run was to leave its records in cannot be made, or written to."""
    rule = f"cannot be written: {error.strerror or error}"
    nearest = "hydra.sweep.dir=<a folder of yours>"
    return ConfigError([Problem(key="hydra.sweep.dir", value=folder, rule=rule, nearest=nearest)])


class Record:
    """``run_spec.json``: what was asked for, by whom it was run, and on what."""

    def __init__(self, spec: RunSpec, place: Place, job: Job, origin: Origin) -> None:
        self.spec, self.place, self.job, self.origin = spec, place, job, origin
        self.nodes: dict[str, Any] = {}

    def plain(self) -> dict[str, Any]:
        return {
            "run_id": self.job.run,
            "version": smolcluster.__version__,
            "git": self.origin.revision,
            "digest": self.spec.digest(),
            "overrides": list(self.place.overrides),
            "resumed_from": self.job.resume,
            "purpose": self.job.purpose,
            "seed": self.spec.seed,
            "threads_per_node": self.job.threads,
            "batch_size": self.spec.batch_size,
            "global_batch": self.spec.global_batch,
            "epochs": self.spec.epochs,
            "nodes": self.nodes,
            "spec": self.spec.plain(),
        }


def git_revision() -> str | None:
    """The commit of the checkout that this code is run from; None outside of one."""
    root = Path(smolcluster.__file__).parent.parent
    if not (root / ".git").exists():
        return None
    try:
        done = subprocess.run(
            ["git", "-C", str(root), "rev-parse", "HEAD"], capture_output=True, text=True, timeout=5, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None

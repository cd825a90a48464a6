"""A batch of jobs, as Hydra's sweeper hands it over: composed here, run here or in processes of their own.

A job that runs alone on this machine runs in this process, so that its live view has the terminal. Jobs side by side,
and jobs on another machine, run in a *lead* each (``_lead.py``), which is given what it needs over its stdin and gives
back a ``JobReturn``. Pickle crosses that pipe only, between two processes of the same person, as in Hydra's own
launchers; nodes never see it.
"""

from __future__ import annotations

import asyncio
import base64
import logging
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cloudpickle
from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn, JobStatus, configure_log, filter_overrides, run_job, setup_globals
from hydra.types import HydraContext, TaskFunction
from hydra_plugins.smolcluster_launcher import NO_DESK, _detach, _leavable
from hydra_plugins.smolcluster_launcher._allot import Allotment, allot, never
from hydra_plugins.smolcluster_launcher._desk import Desk
from hydra_plugins.smolcluster_launcher._guests import unwelcoming, wrong_guests
from hydra_plugins.smolcluster_launcher._here import importable
from hydra_plugins.smolcluster_launcher._process import SSHSession, first_word
from hydra_plugins.smolcluster_launcher._reached import Target
from hydra_plugins.smolcluster_launcher._session import ClusterSessions, Options
from hydra_plugins.smolcluster_launcher._ssh import Machines
from hydra_plugins.smolcluster_launcher._tmux import nodes_here, unfit, windows, wrong_with_tmux
from omegaconf import DictConfig, OmegaConf, open_dict

from smolcluster.cluster.local import LocalProcesses
from smolcluster.cluster.session import Session, Sessions, opener
from smolcluster.errors import ConfigError, Problem, RunFailed
from smolcluster.pipeline import jobs
from smolcluster.pipeline.job import leaver
from smolcluster.pipeline.jobs import Finished

if TYPE_CHECKING:
    from smolcluster.spec.run import RunSpec

log = logging.getLogger(__name__)
LEAD = "hydra_plugins.smolcluster_launcher._lead"
MAX_CONCURRENT = 64
LEAD_STARTS_S = 60.0


@dataclass(frozen=True, kw_only=True)
class Job:
    """One job of a sweep, composed."""

    number: int
    overrides: Sequence[str]
    config: DictConfig


class Sweep:
    """Runs batches of jobs with what Hydra has set up for them."""

    def __init__(self, context: HydraContext, task: TaskFunction, config: DictConfig) -> None:
        self.context, self.task, self.config = context, task, config
        self.options = config.hydra.launcher

    def run(self, job_overrides: Sequence[Sequence[str]], first: int) -> list[JobReturn]:
        """Run one batch; the returns are in the order of ``job_overrides``. A job that fails is its return's business,
        the others run all the same."""
        setup_globals()
        configure_log(self.config.hydra.hydra_logging, self.config.hydra.verbose)
        if problems := list(wrong(self.options)):
            raise ConfigError(problems)
        Path(str(self.config.hydra.sweep.dir)).mkdir(parents=True, exist_ok=True)
        batch = [self.compose(number, overrides) for number, overrides in enumerate(job_overrides, first)]
        if self.options.detach:
            self.refuse_to_detach(batch, first)
        if self.options.tmux and (problems := [problem for job in batch for problem in unfit(job.config)]):
            raise ConfigError(problems)
        log.info("Launching %d jobs", len(batch))
        if self.options.detach or (self.options.max_concurrent == 1 and self.options.host is None):
            with self.machines():
                return [self.run_here(job) for job in batch]
        return asyncio.run(self.run_beside(batch))

    def refuse_to_detach(self, batch: Sequence[Job], first: int) -> None:
        """ConfigError where these are no jobs that can be left going."""
        gathering = jobs.current.get()
        total = max(first + len(batch), (gathering.total or 0) if gathering is not None else 0)
        chosen = batch[0].config.hydra.runtime.choices
        sweeper = str(self.config.hydra.sweeper._target_)
        if problems := list(_leavable.wrong(self.options, str(chosen.get("pipeline")), total, sweeper)):
            raise ConfigError(problems)

    @contextmanager
    def machines(self) -> Iterator[None]:
        """While it lasts, runs can start nodes on other machines, or be left there; each is connected to once."""
        machines, options = Machines(self.options.connect_timeout_s), machine_options(self.options)

        def make(spec: RunSpec, threads: int) -> Sessions:
            if problems := list(unwelcoming(spec, options.guests)):
                raise ConfigError(problems)
            return ClusterSessions(spec, options, machines, nodes_here(threads, in_tmux=options.tmux))

        before = opener.set(make)
        leaving = _detach.Detach(options, machines, self.options.connect_timeout_s) if self.options.detach else None
        stayed = leaver.set(leaving)
        try:
            with windows(wanted=options.tmux):
                yield
        finally:
            opener.reset(before)
            leaver.reset(stayed)
            machines.close()

    def compose(self, number: int, overrides: Sequence[str]) -> Job:
        config = self.context.config_loader.load_sweep_config(self.config, list(overrides))
        with open_dict(config):
            config.hydra.job.id = str(number)
            config.hydra.job.num = number
        return Job(number=number, overrides=overrides, config=config)

    def run_here(self, job: Job) -> JobReturn:
        log.info("\t#%d : %s", job.number, " ".join(filter_overrides(job.overrides)))
        returned = run_job(
            hydra_context=self.context,
            task_function=self.task,
            config=job.config,
            job_dir_key="hydra.sweep.dir",
            job_subdir_key="hydra.sweep.subdir",
        )
        configure_log(self.config.hydra.hydra_logging, self.config.hydra.verbose)
        if returned.status == JobStatus.FAILED:
            note(returned, job)
        return quiet(returned)

    # --- in processes of their own -----------------------------------------------------------------------

    async def run_beside(self, batch: Sequence[Job]) -> list[JobReturn]:
        """So many jobs at a time as may run, on machines of their own; the next starts when one has ended."""
        places, busy, freed = asyncio.Semaphore(self.options.max_concurrent), set[str](), asyncio.Condition()
        machines = Machines(self.options.connect_timeout_s)

        async def one(job: Job) -> JobReturn:
            async with places:
                mine = await self.take_machines(job, busy, freed)
                try:
                    returned = quiet(await self.lead(job, machines))
                finally:
                    async with freed:
                        busy.difference_update(mine)
                        freed.notify_all()
            note(returned, job)
            return returned

        tasks = [asyncio.create_task(one(job), name=f"job {job.number}") for job in batch]
        try:
            return list(await asyncio.gather(*tasks))
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            machines.close()

    async def take_machines(self, job: Job, busy: set[str], freed: asyncio.Condition) -> tuple[str, ...]:
        """Wait until there are machines for the job, and give it those; none for a job of this machine alone."""
        asked = asked_of(job.config)
        if asked is None:
            return ()
        nodes, shared = list(job.config.cluster.nodes), self.options.share_nodes
        if words := never(nodes, asked, self.options.max_concurrent, shared=shared):
            log.warning(words)
        async with freed:
            while (given := allot(nodes, asked, busy, shared=shared).allotment) is None:
                await freed.wait()
            if not shared:
                busy.update(given.names)
        with open_dict(job.config):
            job.config.cluster.server, job.config.cluster.workers = given.server, list(given.workers)
            if shared:
                job.config.cluster.port = 0  # a fixed one could be had by one job only
        return () if shared else given.names

    async def lead(self, job: Job, machines: Machines) -> JobReturn:
        """Run a job in a process of its own: on this machine, or on ``hydra.launcher.host``."""
        if self.options.host is not None:
            return await Lead(await self.lead_elsewhere(machines), job.number).run(self.parcel(job))
        desk = Desk(machine_options(self.options), machines)
        processes = LocalProcesses(dict(os.environ), LEAD, [str(desk.theirs.fileno())], [desk.theirs.fileno()])
        session = await processes.start(f"job {job.number}")
        desk.serve()
        try:
            return await Lead(session, job.number).run(self.parcel(job))
        finally:
            desk.close()

    async def lead_elsewhere(self, machines: Machines) -> Session:
        """A lead on another machine, in the folder of the same name there."""
        machine = machines.at(Target.parse(self.options.host))
        await machine.open()
        argv = [self.options.python or sys.executable, "-m", LEAD, NO_DESK]
        environment = {"PYTHONPATH": os.pathsep.join(importable())}
        directory = os.getcwd()
        session = await SSHSession.begin(
            lambda descriptors, on_end: machine.start(
                argv, descriptors, on_end, directory=directory, environment=environment
            )
        )
        session.pid = await first_word(session, machine.name, LEAD_STARTS_S)
        return session

    def parcel(self, job: Job) -> bytes:
        """What a lead needs, pickled; the places of modules apart, since they must be known before the rest is read."""
        inner = {
            "context": self.context,
            "task": self.task,
            "config": job.config,
            "singletons": Singleton.get_state(),
        }
        return bytes(cloudpickle.dumps({"path": importable(), "job": cloudpickle.dumps(inner)}))


class Lead:
    """The process that one job runs in, seen from here."""

    def __init__(self, session: Session, number: int) -> None:
        self.session, self.number = session, number
        self.returned: JobReturn | None = None
        self.last = ""

    async def run(self, parcel: bytes) -> JobReturn:
        """Hand over the parcel and wait for the return. Cancelled: let the job stop politely, and wait for that."""
        self.session.send({"op": "job", "parcel": base64.b64encode(parcel).decode()})
        work = asyncio.create_task(self._follow())
        try:
            return await asyncio.shield(work)
        except asyncio.CancelledError:
            self.session.send({"op": "interrupt"})
            await work
            raise
        finally:
            self.session.close()

    async def _follow(self) -> JobReturn:
        lines = asyncio.create_task(self._show())
        async for event in self.session.events():
            if event["event"] == "returned":
                self.returned = cloudpickle.loads(base64.b64decode(event["parcel"]))
        code = await self.session.wait()
        await lines
        if self.returned is None:
            said = f", saying: {self.last}" if self.last else ""
            failed = RunFailed(f"job {self.number}: its process {self.session.how(code)}{said}")
            self.returned = JobReturn(status=JobStatus.FAILED)
            self.returned.return_value = failed
        return self.returned

    async def _show(self) -> None:
        """What the job prints, told apart from what the others print."""
        async for line in self.session.errors():
            self.last = line
            sys.stdout.write(f"[run {self.number}] {line}\n")
            sys.stdout.flush()


def machine_options(options: DictConfig) -> Options:
    names = (field.name for field in fields(Options))
    return Options(**{name: options[name] for name in names})


def asked_of(config: DictConfig) -> Allotment | None:
    """The machines that a job names; None where it runs on this one, or is no job of ours."""
    cluster = OmegaConf.select(config, "cluster")
    nodes = OmegaConf.select(config, "cluster.nodes")
    if not nodes or not any(
        OmegaConf.select(nodes[name], "ssh") is not None or OmegaConf.select(nodes[name], "manual") for name in nodes
    ):
        return None
    workers = cluster.workers if cluster.workers is not None else [name for name in nodes if name != cluster.server]
    return Allotment(cluster.server, tuple(workers[: cluster.num_workers]))


class QuietReturn(JobReturn):
    """A return whose failure is raised and not also printed: it has been told by then."""

    @property
    def return_value(self) -> Any:
        assert self.status != JobStatus.UNKNOWN, "return_value not yet available"
        if self.status == JobStatus.FAILED:
            raise self._return_value
        return self._return_value

    @return_value.setter
    def return_value(self, value: Any) -> None:
        self._return_value = value


def quiet(returned: JobReturn) -> QuietReturn:
    return QuietReturn(**vars(returned))


def note(returned: JobReturn, job: Job) -> None:
    """Note a job that ran in a process of its own, or that did not get so far that it would have noted itself."""
    from smolcluster.cli.job import JobFailed

    folder = Path(str(job.config.hydra.sweep.dir), str(job.config.hydra.sweep.subdir)).absolute()
    failure = returned._return_value if returned.status == JobStatus.FAILED else None
    reason = "; ".join(str(failure).splitlines()) if failure is not None else ""
    finished = Finished.read(number=job.number, folder=folder, overrides=job.overrides, reason=reason)
    jobs.note(replace(finished, reason="") if isinstance(failure, JobFailed) else finished)


def wrong(options: DictConfig) -> Iterable[Problem]:
    """What is wrong with ``hydra.launcher.*``."""
    count: Any = options.max_concurrent
    if not 1 <= count <= MAX_CONCURRENT:
        rule = f"must be >= 1 and <= {MAX_CONCURRENT}"
        yield Problem(key="hydra.launcher.max_concurrent", value=count, rule=rule, nearest="1")
    if sys.platform == "win32" and count > 1:
        rule = "must be 1 on Windows: jobs side by side share connections in a way that it does not have"
        yield Problem(key="hydra.launcher.max_concurrent", value=count, rule=rule, nearest="1")
    for name, allowed in (("session", ("ssh", "manual")), ("env", (None, "venv", "uv"))):
        if options[name] not in allowed:
            rule = f"must be one of {', '.join('null' if each is None else each for each in allowed)}"
            yield Problem(key=f"hydra.launcher.{name}", value=options[name], rule=rule)
    yield from wrong_guests(options)
    if not 0 < options.keep_days <= 3650:
        rule = "must be > 0 and <= 3650"
        yield Problem(key="hydra.launcher.keep_days", value=options.keep_days, rule=rule, nearest="30")
    for name, most in (("connect_timeout_s", 600), ("join_timeout_s", 86400)):
        if not 0 < options[name] <= most:
            yield Problem(key=f"hydra.launcher.{name}", value=options[name], rule=f"must be > 0 and <= {most}")
    if not 0 <= options.gate_port <= 65535:
        rule = "must be >= 0 and <= 65535"
        yield Problem(key="hydra.launcher.gate_port", value=options.gate_port, rule=rule, nearest="0")
    yield from wrong_with_tmux(options)

"""The sessions of a run whose nodes are on several machines: here by forking, elsewhere by SSH."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from hydra_plugins.smolcluster_launcher._bundle import UNPACK, UNPACK_FILES, Parcel, wheel
from hydra_plugins.smolcluster_launcher._environment import Environment, make, marker, python_of
from hydra_plugins.smolcluster_launcher._gate import Gate, address_towards
from hydra_plugins.smolcluster_launcher._housekeeping import clear, tidy
from hydra_plugins.smolcluster_launcher._look import look, look_here
from hydra_plugins.smolcluster_launcher._mirror import PACK, known_steps, receive
from hydra_plugins.smolcluster_launcher._preflight import MIN_PYTHON, Report, checks, differences, here, obstacles
from hydra_plugins.smolcluster_launcher._process import SSHSession, first_word
from hydra_plugins.smolcluster_launcher._reached import Ending, HostFailed, OnEnd, Reached, Target
from hydra_plugins.smolcluster_launcher._ssh import Machines
from hydra_plugins.smolcluster_launcher._tmux import BRIDGE

from smolcluster.cluster.inventory import Node
from smolcluster.cluster.session import Check, Say, Session, Sessions, Whereabouts, node_settings
from smolcluster.errors import RunFailed, SmolclusterError
from smolcluster.panes.tmux import session_name

if TYPE_CHECKING:
    from smolcluster.spec.needs import Needs
    from smolcluster.spec.run import RunSpec

WHEELHOUSE = "hydra.launcher.wheelhouse"
DIFFERENT = "not the same everywhere"


@dataclass(frozen=True, kw_only=True)
class Options:
    """What ``hydra.launcher.*`` says about machines."""

    sync: bool = True
    env: str | None = None
    wheelhouse: str | None = None
    session: str = "ssh"
    gate_host: str | None = None
    gate_port: int = 0
    join_timeout_s: float = 600.0
    guests: int = 0
    keep_days: float = 30.0
    tmux: bool = False


def target_of(name: str, node: Node) -> Target:
    """Where the machine of a node is reached."""
    ssh = node.ssh
    assert ssh is not None
    return Target(
        name=name,
        host=ssh.host or node.host,
        user=ssh.user,
        port=ssh.port,
        identity=ssh.identity,
        jump=ssh.jump,
    )


class Counted:
    """Pieces of data, counted as they are taken."""

    def __init__(self, pieces: Iterable[bytes]) -> None:
        self._pieces, self.num_bytes = pieces, 0

    def __iter__(self) -> Iterator[bytes]:
        for piece in self._pieces:
            self.num_bytes += len(piece)
            yield piece


@dataclass
class Remote:
    """A machine that has been looked at and given what it needs."""

    machine: Reached
    report: Report
    python: str
    environment: dict[str, str] = field(default_factory=dict)
    paths: dict[str, str] = field(default_factory=dict)
    uses: list[str] = field(default_factory=list)
    """Entries of its working folder that must stay while the run lasts."""
    fetched: bool = False
    """All that its node has saved is here."""
    told: str = ""
    """What was said of it."""


class ClusterSessions:
    """Implements :class:`smolcluster.cluster.session.Sessions` over machines of any kind.

    ``local`` starts the nodes that are on this machine; None: somebody else does.
    """

    def __init__(self, spec: RunSpec, options: Options, machines: Machines, local: Sessions | None) -> None:
        self.spec, self.options, self.machines, self.local = spec, options, machines, local
        self._remote: dict[str, Remote] = {}
        self._run = ""
        self._gate: Gate | None = None
        self._guests: dict[str, Node] = {}
        self._parcels: dict[str, Parcel] = {}
        self._say: Say = lambda name, words: None

    async def open(self, names: Sequence[str], run: str, needs: Needs, say: Say) -> None:
        """Reach every machine, look at it and send it what it lacks, before any node starts anywhere.

        RunFailed has a line for each machine that cannot be used.
        """
        self._run, self._say = run, say
        far = [name for name in names if self._is_far(name)]
        if self.local is not None:
            await self.local.open([name for name in names if name not in far], run, needs, say)
        manual = [name for name in far if self._is_manual(name)]
        if manual:
            await self._invite(manual)
        parcels = {key: Parcel.of(path) for key, path in needs.paths.items()}
        parcels |= {f"module {path}": Parcel.of(path) for path in needs.modules}
        if self.options.env is not None and self.options.wheelhouse is not None:
            parcels[WHEELHOUSE] = Parcel.of(Path(self.options.wheelhouse).expanduser().absolute())
        self._parcels = parcels
        found = await asyncio.gather(*(self._prepare(name, parcels, say) for name in far), return_exceptions=True)
        failures = [each for each in found if isinstance(each, BaseException)]
        for failure in failures:
            if not isinstance(failure, RunFailed):
                raise failure
        if failures:
            raise RunFailed("\n".join(str(failure) for failure in failures))
        self._remote = {name: self._remote[name] for name in far}  # whichever was quicker
        for line in self._differences():
            say(DIFFERENT, line)

    def _is_far(self, name: str) -> bool:
        """It is no process of this one's machine."""
        return not self.spec.cluster.node(name).is_here

    def _differences(self) -> Sequence[str]:
        return differences([remote.report for remote in self._remote.values()], here())

    async def examine(self, names: Sequence[str]) -> Mapping[str, Sequence[Check]]:
        """Look at every machine; those that join by hand are looked at when they have joined."""
        found = await asyncio.gather(*(self._examine(name) for name in names))
        return dict(zip(names, found, strict=True))

    async def _examine(self, name: str) -> Sequence[Check]:
        node = self.spec.cluster.node(name)
        if node.is_here:
            return [
                Check("reached", "ok", "this machine"),
                *checks(look_here(name), environment=False, tmux=self.options.tmux),
            ]
        if self._is_manual(name):
            return [Check("reached", "ok", "joins by hand")]
        machine = self.machines.at(target_of(name, node))
        try:
            await machine.open()
            report = await look(machine, name, node, [])
        except HostFailed as error:
            return [Check("reached", "bad", "no", str(error).removeprefix(f"{name}: "))]
        return [
            Check("reached", "ok", f"SSH {machine.target.host}"),
            *checks(report, environment=self.options.env is not None, tmux=self.options.tmux),
        ]

    async def guests(self) -> AsyncIterator[tuple[str, Node]]:
        """Invite one after another, as many as may come; one that is not fit is told so, and the next is invited."""
        for number in range(1, self.options.guests + 1):
            name, gate = f"guest{number}", await self._opened()
            self._say(name, typed_there(gate.invite(name, self._guests_gate_host).word, "to join the run"))
            machine = gate.machine(name)
            await machine.open()
            self._guests[name] = Node(host=machine.address, manual=True, dials_only=True)
            try:
                await self._prepare(name, self._parcels, self._say)
            except HostFailed as error:
                self._say(name, str(error))
                machine.close()
            else:
                yield name, self._guests[name]

    def _node(self, name: str) -> Node:
        return self._guests.get(name) or self.spec.cluster.node(name)

    def _is_manual(self, name: str) -> bool:
        return self.options.session == "manual" or self._node(name).manual

    async def _opened(self) -> Gate:
        if self._gate is None:
            self._gate = Gate(self._run)
            await self._gate.open(self.options.gate_port)
        return self._gate

    async def _invite(self, names: Sequence[str]) -> None:
        """Hand out the words that these machines join with, and wait until they have."""
        gate = await self._opened()
        for name in names:
            self._hand_out(name, gate.invite(name, self._gate_host(name)).word, self._say)
        waiting = {asyncio.create_task(gate.machine(name).open(), name=name) for name in names}
        limit, key = self._join_limit
        _, missing = await asyncio.wait(waiting, timeout=limit)
        for task in missing:
            task.cancel()
        if missing:
            who = ", ".join(sorted(task.get_name() for task in missing))
            raise HostFailed(f"{who}: not joined within {limit:g} s ({key})")

    def _gate_host(self, name: str) -> str:
        """The address of this machine that machine ``name`` dials."""
        return self.options.gate_host or address_towards(self.spec.cluster.node(name).host)

    @property
    def _guests_gate_host(self) -> str:
        """The address of this machine that machines dial which nobody knows yet: the one on the way to the server."""
        return self._gate_host(self.spec.cluster.server_name)

    def _hand_out(self, name: str, word: str, say: Say) -> None:
        say(name, typed_there(word))

    @property
    def _join_limit(self) -> tuple[float, str]:
        """Seconds that machines have for joining, and the key that says so."""
        return self.options.join_timeout_s, "hydra.launcher.join_timeout_s"

    def _machine(self, name: str, node: Node) -> Reached:
        if self._is_manual(name):
            assert self._gate is not None
            return self._gate.machine(name)
        return self.machines.at(target_of(name, node))

    async def _prepare(self, name: str, parcels: Mapping[str, Parcel], say: Say) -> None:
        node = self._node(name)
        machine = self._machine(name, node)
        await machine.open()
        code = f"code/{wheel().name}"
        wanted = [code, *(f"files/{parcel.name}" for parcel in parcels.values())]
        report = await look(machine, name, node, wanted)
        if not report.error and report.python >= MIN_PYTHON:
            report = await tidy(machine, report, wanted, self.options.keep_days, partial(say, name))
        equipped = self.options.env is not None
        if problems := list(obstacles(report, environment=equipped, tmux=self.options.tmux)):
            raise HostFailed("\n".join(f"{name}: {problem}" for problem in problems))
        remote = Remote(machine=machine, report=report, python=report.executable, uses=wanted)
        sent = await self._send(remote, code, parcels)
        if self.options.env is not None:
            await self._equip(remote, name, node, self.options.env, partial(say, name))
        remote.told = f"{report.system} {report.machine}, {report.cores} cores, {sent}"
        say(name, remote.told)
        self._remote[name] = remote

    async def _send(self, remote: Remote, code: str, parcels: Mapping[str, Parcel]) -> str:
        """Send what is not there; says what that was."""
        report, count, size = remote.report, 0, 0
        places = []
        if self.options.sync:
            bundle = wheel()
            places.append(f"{report.workdir}/{code}")
            if code not in report.there:
                await self._unpack(remote, UNPACK, "code", bundle.name, [bundle.data])
                count, size = count + 1, size + len(bundle.data)
        for key, parcel in parcels.items():
            folder = f"{report.workdir}/files/{parcel.name}"
            if key.startswith("module "):
                places.append(folder)
            else:
                remote.paths[key] = f"{folder}/{parcel.path.name}"
            if f"files/{parcel.name}" not in report.there:
                sent = Counted(parcel.stream())
                await self._unpack(remote, UNPACK_FILES, "files", parcel.name, sent)
                count, size = count + 1, size + sent.num_bytes
        remote.environment["PYTHONPATH"] = (";" if report.system == "Windows" else ":").join(places)
        return f"sent {count} bundle(s), {size / 1e6:.1f} MB" if count else "nothing to send"

    async def _equip(self, remote: Remote, name: str, node: Node, tool: str, say: Callable[[str], None]) -> None:
        """See to an environment there, and look at what it has."""
        environment = Environment.like_here(tool)
        place = environment.name(remote.report)
        wheelhouse = remote.paths.pop(WHEELHOUSE, None)
        remote.uses.append(place)
        known = await look(remote.machine, name, node, [marker(place)])
        if known.there:
            remote.python = python_of(known.workdir, place, known.system)
        else:
            remote.python = await make(remote.machine, remote.report, environment, wheelhouse, say)
        remote.report = await look(remote.machine, name, replace(node, python=remote.python), [])
        if problems := list(obstacles(remote.report, environment=False)):
            raise HostFailed("\n".join(f"{name}: {problem}" for problem in problems))

    async def _unpack(self, remote: Remote, script: str, folder: str, name: str, data: Iterable[bytes]) -> None:
        root = f"{remote.report.workdir}/{folder}"
        make = f"import os, sys; os.makedirs(sys.argv[1], exist_ok=True)\n{script}"
        done = await remote.machine.run([remote.python, "-c", make, root, name], stdin=data)
        if done.code != 0:
            raise HostFailed(f"{remote.report.name}: {root}/{name} could not be written: {done.words}")

    # --- the run -----------------------------------------------------------------------------------------

    async def start(self, name: str) -> Session:
        if name not in self._remote:
            assert self.local is not None
            return await self.local.start(name)
        session = await SSHSession.begin(partial(self.begin, name))
        try:
            session.pid = await first_word(session, name, self.spec.cluster.start_timeout_s)
        except BaseException:
            session.close()
            raise
        return session

    async def begin(self, name: str, descriptors: tuple[int, int, int], on_end: OnEnd) -> Ending:
        """Start a node with these descriptors as its standard streams."""
        remote = self._remote[name]
        return await remote.machine.start(
            [remote.python, "-m", *self._module(name)],
            descriptors,
            on_end,
            directory=remote.report.workdir,
            environment={**node_settings(self.threads(name, remote)), **remote.environment},
        )

    def _module(self, name: str) -> list[str]:
        """What is started for a node, with its words."""
        return [BRIDGE, session_name(self._run, name), name] if self.options.tmux else ["smolcluster.node"]

    def place(self, name: str) -> Whereabouts | None:
        remote = self._remote.get(name)
        if remote is None:
            return None
        workdir = remote.report.workdir
        return Whereabouts(
            folder=f"{workdir}/runs/{self._run}",
            cache=f"{workdir}/cache",
            threads=self.threads(name, remote),
            paths=remote.paths,
            uses=tuple(remote.uses),
        )

    def threads(self, name: str, remote: Remote) -> int:
        """Compute threads of a node: its share of its machine's cores."""
        return self.spec.cluster.threads_per_node or max(1, remote.report.cores // self._sharing(name))

    def _sharing(self, name: str) -> int:
        """How many of this run's nodes compute on the machine of ``name``."""
        host = self._node(name).host
        return sum(self._node(other).host == host for other in self._remote)

    async def collect(self, name: str, folder: Path, *, everything: bool) -> None:
        """Bring the checkpoints that a node has saved (and its export) into ``folder``."""
        remote = self._remote.get(name)
        if remote is None:
            return
        remote.fetched = False
        argv = [remote.python, "-c", PACK, f"{remote.report.workdir}/runs/{self._run}"]
        argv += [json.dumps(known_steps(folder)), "all" if everything else "checkpoints"]
        await receive(remote.machine, argv, folder)
        remote.fetched = everything

    async def close(self) -> None:
        """Leave nothing of the run on other machines, but for what could not be fetched."""
        await asyncio.gather(*(self._leave(name, remote) for name, remote in self._remote.items()))
        self.release()
        if self.local is not None:
            await self.local.close()

    async def _leave(self, name: str, remote: Remote) -> None:
        try:
            kept = await clear(remote.machine, remote.report, self._run, fetched=remote.fetched)
        except SmolclusterError as error:
            kept = str(error).removeprefix(f"{name}: ")
        if kept:
            self._say(name, f"{remote.report.workdir}/runs/{self._run} is left there: {kept}")

    def release(self) -> None:
        """Close what machines have dialled in to."""
        if self._gate is not None:
            self._gate.close()


def typed_there(word: str, what: str = "type there") -> str:
    """What a person types on a machine that joins by hand."""
    return f"{what}: python -m smolcluster join={word}"

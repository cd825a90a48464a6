"""The sessions of a run whose nodes are on several machines: here by forking, elsewhere by SSH."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from hydra_plugins.smolcluster_launcher._bundle import UNPACK, UNPACK_FILES, Parcel, wheel
from hydra_plugins.smolcluster_launcher._environment import Environment, make, marker, python_of
from hydra_plugins.smolcluster_launcher._gate import DialedIn, DialedProcess, Gate, address_towards
from hydra_plugins.smolcluster_launcher._mirror import PACK, Incoming, known_steps
from hydra_plugins.smolcluster_launcher._preflight import Report, differences, here, obstacles
from hydra_plugins.smolcluster_launcher._ssh import (
    HostFailed,
    Machine,
    OnEnd,
    RemoteProcess,
    SSHSession,
    Target,
    first_word,
)
from hydra_plugins.smolcluster_launcher._tmux import BRIDGE

from smolcluster.cluster.session import Say, Session, Sessions, Whereabouts, node_settings
from smolcluster.errors import RunFailed
from smolcluster.panes.tmux import PLACES, session_name

if TYPE_CHECKING:
    from smolcluster.cluster.inventory import Node
    from smolcluster.spec.needs import Needs
    from smolcluster.spec.run import RunSpec

WHEELHOUSE = "hydra.launcher.wheelhouse"
DEFAULT_WORKDIR = "~/.cache/smolcluster"
CHOOSE = """
for p in "$@"; do command -v "$p" >/dev/null && exec "$p" - "$0"; done
echo "there is no Python: tried $*" >&2; exit 127
"""
"""Runs the script on its stdin with the first interpreter that is there."""


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


class Machines:
    """The SSH connections of a sweep: one for each machine, whoever asks."""

    def __init__(self, connect_timeout_s: float) -> None:
        self._connect_timeout_s = connect_timeout_s
        self._known: dict[Target, Machine] = {}

    def at(self, target: Target) -> Machine:
        if target not in self._known:
            self._known[target] = Machine(target, connect_timeout_s=self._connect_timeout_s)
        return self._known[target]

    def close(self) -> None:
        for machine in self._known.values():
            machine.close()
        self._known.clear()


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

    machine: Machine | DialedIn
    report: Report
    python: str
    environment: dict[str, str] = field(default_factory=dict)
    paths: dict[str, str] = field(default_factory=dict)


class ClusterSessions:
    """Implements :class:`smolcluster.cluster.session.Sessions` over machines of any kind.

    ``local`` starts the nodes that are on this machine; None: somebody else does.
    """

    def __init__(self, spec: RunSpec, options: Options, machines: Machines, local: Sessions | None) -> None:
        self.spec, self.options, self.machines, self.local = spec, options, machines, local
        self._remote: dict[str, Remote] = {}
        self._run = ""
        self._gate: Gate | None = None

    async def open(self, names: Sequence[str], run: str, needs: Needs, say: Say) -> None:
        """Reach every machine, look at it and send it what it lacks, before any node starts anywhere.

        RunFailed has a line for each machine that cannot be used.
        """
        self._run = run
        if self.local is not None:
            near = [name for name in names if self.spec.cluster.node(name).is_here]
            await self.local.open(near, run, needs, say)
        far = [name for name in names if not self.spec.cluster.node(name).is_here]
        manual = [name for name in far if self._is_manual(name)]
        if manual:
            await self._invite(manual, run, say)
        parcels = {key: Parcel.of(path) for key, path in needs.paths.items()}
        parcels |= {f"module {path}": Parcel.of(path) for path in needs.modules}
        if self.options.env is not None and self.options.wheelhouse is not None:
            parcels[WHEELHOUSE] = Parcel.of(Path(self.options.wheelhouse).expanduser().absolute())
        found = await asyncio.gather(*(self._prepare(name, parcels, say) for name in far), return_exceptions=True)
        failures = [each for each in found if isinstance(each, BaseException)]
        for failure in failures:
            if not isinstance(failure, RunFailed):
                raise failure
        if failures:
            raise RunFailed("\n".join(str(failure) for failure in failures))
        for line in differences([remote.report for remote in self._remote.values()], here()):
            say("not the same everywhere", line)

    def _is_manual(self, name: str) -> bool:
        return self.options.session == "manual" or self.spec.cluster.node(name).manual

    async def _invite(self, names: Sequence[str], run: str, say: Say) -> None:
        """Say what is to be typed on these machines, and wait until that is done."""
        self._gate = gate = Gate(run)
        await gate.open(self.options.gate_port)
        for name in names:
            host = self.options.gate_host or address_towards(self.spec.cluster.node(name).host)
            say(name, f"type there: python -m smolcluster join={gate.invite(name, host).word}")
        waiting = {asyncio.create_task(gate.machine(name).open(), name=name) for name in names}
        _, missing = await asyncio.wait(waiting, timeout=self.options.join_timeout_s)
        for task in missing:
            task.cancel()
        if missing:
            who = ", ".join(sorted(task.get_name() for task in missing))
            raise HostFailed(
                f"{who}: not joined within {self.options.join_timeout_s:g} s (hydra.launcher.join_timeout_s)"
            )

    def _machine(self, name: str, node: Node) -> Machine | DialedIn:
        if self._is_manual(name):
            assert self._gate is not None
            return self._gate.machine(name)
        return self.machines.at(target_of(name, node))

    async def _prepare(self, name: str, parcels: Mapping[str, Parcel], say: Say) -> None:
        node = self.spec.cluster.node(name)
        machine = self._machine(name, node)
        await machine.open()
        code = f"code/{wheel().name}"
        wanted = [code, *(f"files/{parcel.name}" for parcel in parcels.values())]
        report = await look(machine, name, node, wanted)
        equipped = self.options.env is not None
        if problems := list(obstacles(report, environment=equipped, tmux=self.options.tmux)):
            raise HostFailed("\n".join(f"{name}: {problem}" for problem in problems))
        remote = Remote(machine=machine, report=report, python=report.executable)
        sent = await self._send(remote, code, parcels)
        if self.options.env is not None:
            await self._equip(remote, name, node, self.options.env, partial(say, name))
        say(name, f"{report.system} {report.machine}, {report.cores} cores, {sent}")
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
        remote.environment["PYTHONPATH"] = os.pathsep.join(places)
        return f"sent {count} bundle(s), {size / 1e6:.1f} MB" if count else "nothing to send"

    async def _equip(self, remote: Remote, name: str, node: Node, tool: str, say: Callable[[str], None]) -> None:
        """See to an environment there, and look at what it has."""
        environment = Environment.like_here(tool)
        place = environment.name(remote.report)
        wheelhouse = remote.paths.pop(WHEELHOUSE, None)
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

    async def begin(self, name: str, descriptors: tuple[int, int, int], on_end: OnEnd) -> RemoteProcess | DialedProcess:
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
        )

    def threads(self, name: str, remote: Remote) -> int:
        """Compute threads of a node: its share of its machine's cores."""
        return self.spec.cluster.threads_per_node or max(1, remote.report.cores // self._sharing(name))

    def _sharing(self, name: str) -> int:
        """How many of this run's nodes compute on the machine of ``name``."""
        host = self.spec.cluster.node(name).host
        return sum(self.spec.cluster.node(other).host == host for other in self._remote)

    async def collect(self, name: str, folder: Path, *, everything: bool) -> None:
        """Bring the checkpoints that a node has saved (and its export) into ``folder``."""
        remote = self._remote.get(name)
        if remote is None:
            return
        incoming = await asyncio.to_thread(Incoming, folder)
        whole = False
        try:
            argv = [remote.python, "-c", PACK, f"{remote.report.workdir}/runs/{self._run}"]
            argv += [json.dumps(known_steps(folder)), "all" if everything else "checkpoints"]
            done = await remote.machine.run(argv, out=incoming.take)
            whole = done.code == 0
            if not whole:
                raise HostFailed(f"{name}: checkpoints could not be fetched: {done.words}")
        finally:
            await asyncio.to_thread(incoming.finish, whole=whole)

    async def close(self) -> None:
        if self._gate is not None:
            self._gate.close()
        if self.local is not None:
            await self.local.close()


async def look(machine: Machine | DialedIn, name: str, node: Node, wanted: Sequence[str]) -> Report:
    """Ask a machine what it is and has."""
    request = {"workdir": node.workdir or DEFAULT_WORKDIR, "packages": list(here()), "wanted": list(wanted)}
    request["places"] = list(PLACES)
    question = json.dumps(request)
    script = Path(__file__).with_name("_probe.py").read_bytes()
    if machine.shell != "posix":
        own = machine.python if isinstance(machine, DialedIn) else ""
        argv = [node.python or own or "python", "-", question]
    else:
        candidates = [node.python] if node.python else [sys.executable, "python3"]
        argv = ["sh", "-c", CHOOSE, question, *candidates]
    sent = time.time()
    done = await machine.run(argv, stdin=[script])
    received = time.time()
    try:
        answer: Mapping[str, object] = json.loads(done.out)
    except ValueError:
        raise HostFailed(f"{name}: {done.words}; set cluster.nodes.{name}.python") from None
    return Report.of(name, answer, sent=sent, received=received)

"""``cluster=``: the machines of a run, who is server, who are workers. Pure data; nothing is contacted here."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Literal

from smolcluster.cluster import routes
from smolcluster.errors import Problem
from smolcluster.spec.schema import Range, closest

if TYPE_CHECKING:
    from smolcluster.spec.run import RunSpec

LOOPBACK = "127.0.0.1"
DEVICE = re.compile(r"auto|cpu|mps|cuda(:\d+)?")
HOST = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.:_-]{0,253})?")
NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,62}")


@dataclass(frozen=True, kw_only=True)
class SSH:
    """How to reach a machine; null values are taken from ~/.ssh/config and the defaults of ssh."""

    host: str | None = None
    """Address for SSH, where it is not the data-plane address."""
    user: str | None = None
    """Name to log in with."""
    port: Annotated[int | None, Range(ge=1, le=65535)] = None
    """Port of the machine's SSH server."""
    identity: str | None = None
    """Private key file."""
    jump: str | None = None
    """Jump host, as user@host:port."""


@dataclass(frozen=True, kw_only=True)
class Node:
    """One machine (or one process of it)."""

    host: str
    """Address that the other nodes connect to."""
    addresses: Mapping[str, str] = field(default_factory=dict)
    """Its addresses by link, each with its network: {thunderbolt: 10.10.0.1/24}; empty: ``host`` is reached by all."""
    ssh: SSH | None = None
    """null: this machine."""
    manual: bool = False
    """It is not reached by SSH: a person types there the join command that is printed."""
    device: str = "auto"
    """auto, cpu, mps or cuda:<k>."""
    precision: Literal["32", "bf16-mixed", "16-mixed", "64"] | None = None
    """Overrides train.precision on this node."""
    port: Annotated[int | None, Range(ge=0, le=65535)] = None
    """Overrides cluster.port on this node."""
    dials_only: bool = False
    """Nobody can connect to it (a firewall, a NAT): it dials the others."""
    memory_gb: Annotated[float | None, Range(gt=0, unit="GB")] = None
    """Memory that training may use, for placing models; null: not known."""
    flops_per_second: Annotated[float | None, Range(gt=0, unit="FLOP/s")] = None
    """Floating point operations per second that it reaches in training, for placing models; null: not known."""
    bandwidth_mbps: Annotated[float | None, Range(gt=0, unit="Mbit/s")] = None
    """What its link to the others carries, for placing models; null: not known."""
    workdir: str | None = None
    """Folder on that machine; null: ~/.cache/smolcluster."""
    python: str | None = None
    """Python interpreter on that machine; null: the one of this command."""

    @property
    def is_here(self) -> bool:
        """It is a process of this machine."""
        return self.ssh is None and not self.manual


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """Who takes part. ``nodes`` null means this machine alone: a server and ``num_workers`` workers."""

    nodes: Mapping[str, Node] | None = None
    """The machines by name; null: this machine alone."""
    server: str | None = None
    """Which node is the server; null only where ``nodes`` is null."""
    workers: tuple[str, ...] | None = None
    """Which nodes are workers, by rank; null: all nodes but the server."""
    num_workers: Annotated[int | None, Range(ge=1, le=1024, unit="workers")] = None
    """How many workers; with named nodes the first so many."""
    port: Annotated[int, Range(ge=0, le=65535)] = 0
    """TCP port that a node listens on; 0: the system chooses."""
    max_restarts: Annotated[int, Range(ge=0, le=1000)] = 1
    """A worker that dies is started again so many times."""
    start_timeout_s: Annotated[float, Range(gt=0, le=3600, unit="seconds")] = 120.0
    """A node must listen within that time; while it builds its model and data, it must get on at least that often."""
    stop_timeout_s: Annotated[float, Range(gt=0, le=600, unit="seconds")] = 4.0
    """After being asked to stop, a node has that time to save; then it is killed."""
    silence_limit_s: Annotated[float, Range(gt=1, le=3600, unit="seconds")] = 60.0
    """A node that hears nothing from the controller for so long ends itself."""
    threads_per_node: Annotated[int | None, Range(ge=1, le=1024, unit="threads")] = None
    """Compute threads of a node; null: this machine's cores shared out among its nodes."""
    example: str | None = None
    """Set in files that only show how to write one: refused with this text."""

    @property
    def size(self) -> int:
        """Number of workers."""
        named = self.worker_names
        return len(named)

    @property
    def is_local(self) -> bool:
        """Every node is a process of this machine."""
        return self.nodes is None or all(node.is_here for node in self.nodes.values())

    @property
    def server_name(self) -> str:
        return self.server or "server"

    @property
    def worker_names(self) -> tuple[str, ...]:
        """Names of the workers, by rank."""
        if self.nodes is None:
            return tuple(f"worker{rank}" for rank in range(self.num_workers or 2))
        named = self.workers if self.workers is not None else tuple(n for n in self.nodes if n != self.server)
        return named[: self.num_workers]

    def node(self, name: str) -> Node:
        return Node(host=LOOPBACK) if self.nodes is None else self.nodes[name]

    @property
    def scattered(self) -> list[str]:
        """The workers that the other workers do not all reach at one address."""
        try:
            names = [name for name in self.worker_names if self.nodes and name in self.nodes]
            return [name for name in names if routes.common_address(self, name, names) is None]
        except ValueError:  # an address that is none, which is told elsewhere
            return []

    def port_of(self, name: str) -> int:
        own = self.node(name).port
        return self.port if own is None else own

    def problems(self, spec: RunSpec) -> Iterable[Problem]:
        if self.example:
            yield Problem(key="cluster", value=spec.choices.get("cluster", "?"), rule=self.example)
        yield from self._who()
        yield from self._where()
        yield from self._ways(spec)
        for name, node in (self.nodes or {}).items():
            if node.precision is not None and (node.precision == "64") != (spec.train.precision == "64"):
                rule = f"must agree with train.precision={spec.train.precision}: 64 changes what travels"
                yield Problem(key=f"cluster.nodes.{name}.precision", value=node.precision, rule=rule)

    def _who(self) -> Iterable[Problem]:
        if self.nodes is None:
            for key in ("server", "workers"):
                if getattr(self, key) is not None:
                    yield Problem(key=f"cluster.{key}", value=getattr(self, key), rule="needs cluster.nodes")
            return
        known = list(self.nodes)
        if self.server not in self.nodes:
            rule = f"must be one of the nodes ({', '.join(known)})"
            yield Problem(key="cluster.server", value=self.server, rule=rule, nearest=closest(str(self.server), known))
        workers = self.workers or ()
        for index, name in enumerate(workers):
            key = f"cluster.workers.{index}"
            if name not in self.nodes:
                rule = f"must be one of the nodes ({', '.join(known)})"
                yield Problem(key=key, value=name, rule=rule, nearest=closest(name, known))
            elif name == self.server:
                yield Problem(key=key, value=name, rule="is the server already (see algo.server_trains)")
            elif name in workers[:index]:
                yield Problem(key=key, value=name, rule="is named twice")
        available = len(self.workers if self.workers is not None else [n for n in known if n != self.server])
        if self.num_workers is not None and self.num_workers > available:
            rule = f"must be <= {available}: so many workers are named"
            yield Problem(key="cluster.num_workers", value=self.num_workers, rule=rule, nearest=str(available))
        if available == 0:
            yield Problem(key="cluster.workers", value=[], rule="must name at least one worker")

    def _ways(self, spec: RunSpec) -> Iterable[Problem]:
        """Every address must be one, and every link that the algorithm needs must have a way."""
        bad = False
        for name, node in (self.nodes or {}).items():
            for link, text in node.addresses.items():
                try:
                    routes.interface(text)
                except ValueError:
                    bad, rule = True, "must be an address with its network, as 10.10.0.1/24"
                    yield Problem(key=f"cluster.nodes.{name}.addresses.{link}", value=text, rule=rule)
        if bad or self.nodes is None or self.server not in self.nodes:
            return
        for source, target in self.pairs(spec.algo.links):
            if source < target and source in self.nodes and target in self.nodes:
                way = routes.route(self, source, target)
                if way.address is None:
                    rule = f"{way.reason}: there is no route (add the missing link to addresses)"
                    yield Problem(key=f"cluster.nodes.{target}.addresses", value=source, rule=rule)

    def pairs(self, links: str) -> list[tuple[str, str]]:
        """(source, target) of all links that an algorithm holds, each in both directions."""
        workers = self.worker_names
        if links == "none":
            return []
        if links == "star":
            ends = [(self.server_name, worker) for worker in workers]
        else:
            names = [self.server_name, *workers] if self.nodes is None or self.server else list(workers)
            ends = [(one, other) for index, one in enumerate(names) for other in names[index + 1 :]]
        return [*ends, *((other, one) for one, other in ends)]

    def _where(self) -> Iterable[Problem]:
        used: dict[tuple[str, int], str] = {}
        names = [self.server_name, *self.worker_names] if self.nodes is None else list(self.nodes)
        for name in names:
            node, key = self.node(name), f"cluster.nodes.{name}"
            if not NAME.fullmatch(name):
                yield Problem(key=key, value=name, rule="must be a letter, then letters, digits, - or _ (at most 63)")
            if not HOST.fullmatch(node.host):
                yield Problem(key=f"{key}.host", value=node.host, rule="must be an address or a host name")
            elif _is_any_address(node.host):
                yield Problem(key=f"{key}.host", value=node.host, rule="must be the address that others connect to")
            if not DEVICE.fullmatch(node.device):
                rule = "must be auto, cpu, mps or cuda:<k>"
                yield Problem(key=f"{key}.device", value=node.device, rule=rule, nearest="auto")
            where = (node.host, self.port_of(name))
            if where[1] and where in used:
                rule = f"{node.host}:{where[1]} is taken by {used[where]}"
                at = "cluster.port" if node.port is None else f"{key}.port"
                yield Problem(key=at, value=where[1], rule=rule, nearest="0 (the system chooses)")
            used.setdefault(where, name)


def _is_any_address(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_unspecified
    except ValueError:
        return False

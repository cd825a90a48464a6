"""A cluster of hosts (tests/integration/hosts.py), and commands that train on it as a person does."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from smolcluster.spec.build import conf_dir
from tests.integration.command import Command, alive, command
from tests.integration.hosts import Host, Hosts


@dataclass
class Cluster:
    """Some hosts, and the home of the person who uses them."""

    hosts: Hosts
    me: Path
    _here: dict[tuple[str, ...], Command] = field(default_factory=dict)

    @classmethod
    def of(cls, hosts: Hosts) -> Cluster:
        me = hosts.folder / "me"
        (me / ".ssh").mkdir(parents=True)
        (me / ".ssh" / "config").write_text(f"Host *\n  IdentityFile {hosts.key}\n  IdentitiesOnly yes\n")
        shutil.copy(hosts.known_hosts, me / ".ssh" / "known_hosts")
        cluster = cls(hosts, me)
        cluster.write("three", {})
        return cluster

    def here(self, *words: str) -> Command:
        """The same run on this machine alone, for comparison; done once for the same words."""
        if words not in self._here:
            folder = self.hosts.folder / "here" / str(len(self._here))
            self._here[words] = command(folder, *words, "cluster.threads_per_node=1")
        return self._here[words]

    @property
    def config_dir(self) -> Path:
        return self.me / "conf"

    def write(self, name: str, changes: dict[str, object], nodes: dict[str, dict[str, object]] | None = None) -> None:
        """``conf/cluster/<name>.yaml`` of these hosts: the first is the server."""
        base = yaml.safe_load((conf_dir() / "cluster" / "minis.yaml").read_text())
        entries = {
            host.name: {
                "host": host.address,
                "ssh": {"host": None, "user": "root", "port": host.port, "identity": None, "jump": None},
                "device": "cpu",
                "workdir": str(host.home / "work"),
                "python": sys.executable,
                **(nodes or {}).get(host.name, {}),
            }
            for host in self.hosts
        }
        names = list(entries)
        base |= {"nodes": entries, "server": names[0], "workers": names[1:], "port": 0, "threads_per_node": 1}
        path = self.config_dir / "cluster" / f"{name}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(yaml.safe_dump({**base, **changes}, sort_keys=False))

    def command(self, folder: Path, *words: str, cluster: str = "three") -> Command:
        """A command that trains there; use it as a context manager."""
        return Command(folder, ("--config-dir", str(self.config_dir), f"cluster={cluster}", *words), home=self.me)

    def run(self, folder: Path, *words: str, cluster: str = "three") -> Command:
        """To its end, which must be good, and leave nothing running anywhere."""
        command = self.run_and_keep(folder, *words, cluster=cluster)
        assert not self.left()
        return command

    def run_and_keep(self, folder: Path, *words: str, cluster: str = "three") -> Command:
        """The same where something else may run on."""
        with self.command(folder, *words, cluster=cluster) as command:
            code = command.finish()
        assert code == 0, "\n".join(command.lines) + command.stderr
        return command

    def left(self) -> list[str]:
        """The node processes that still run on any host."""
        return [f"{host.name}: {pid}" for host in self.hosts for pid in node_pids(host)]


def node_pids(host: Host) -> list[int]:
    """The nodes among a host's processes."""
    found = []
    for pid in host.pids():
        try:
            words = Path(f"/proc/{pid}/cmdline").read_bytes()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if (b"smolcluster.node" in words or b"smolcluster.panes" in words) and alive(pid):
            found.append(pid)
    return found


def names(count: int) -> Sequence[str]:
    return [f"mini{number}" for number in range(1, count + 1)]

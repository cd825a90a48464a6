"""Several hosts on one machine: network namespaces, each with an address, an sshd, a home and a host key of its own.

As root on Linux they are real enough: a link can be cut or shaped, a host can be killed, and nothing of one is
visible to another but through its network. Without that (:func:`why_not`) several sshd on loopback addresses stand in.
"""

from __future__ import annotations

import contextlib
import getpass
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

SSHD = shutil.which("sshd") or "/usr/sbin/sshd"
SUBNET = "10.{a}.{b}"
SIDE = "192.168.50"
"""The network of hosts that are behind another one; nobody else sees it."""
LISTENING = "Server listening on"
CONFIG = """\
Port {port}
ListenAddress {address}
HostKey {folder}/host_key
AuthorizedKeysFile {folder}/authorized_keys
PidFile {folder}/sshd.pid
PermitRootLogin prohibit-password
AllowUsers {user}
PasswordAuthentication no
KbdInteractiveAuthentication no
StrictModes no
UsePAM no
PrintMotd no
MaxStartups 100
MaxSessions 100
Subsystem sftp internal-sftp
SetEnv TMUX_TMPDIR={tmux}
"""


def why_not() -> str:
    """Why there can be no namespaces here; empty where there can."""
    if sys.platform != "linux":
        return "network namespaces exist on Linux only"
    if os.geteuid() != 0:
        return "network namespaces need root"
    if shutil.which("ip") is None:
        return "the command ip is missing (package iproute2)"
    probe = subprocess.run(["unshare", "--net", "--mount", "true"], capture_output=True, text=True, check=False)
    return "" if probe.returncode == 0 else f"network namespaces cannot be made: {probe.stderr.strip()}"


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)


@dataclass
class Host:
    """One host. ``address`` is where its sshd listens and what its nodes are called by."""

    name: str
    address: str
    port: int
    folder: Path
    namespace: str | None
    device: str
    sshd: subprocess.Popen[bytes] | None = None
    log: Path = field(init=False)

    def __post_init__(self) -> None:
        self.log = self.folder / "sshd.log"

    @property
    def home(self) -> Path:
        return self.folder / "home"

    @property
    def known(self) -> str:
        """Its line for a file of known hosts."""
        kind, key = (self.folder / "host_key.pub").read_text().split()[:2]
        name = self.address if self.port == 22 else f"[{self.address}]:{self.port}"
        return f"{name} {kind} {key}\n"

    @property
    def tmux(self) -> Path:
        """Where its tmux server has its socket."""
        return self.folder / "tmux"

    def start(self, lacks: Sequence[str] = ()) -> None:
        """Start its sshd, in its namespace, with a passwd of its own that says where home is. The programs that it
        ``lacks`` cannot be run there."""
        self.tmux.mkdir(exist_ok=True)
        facts = {"port": self.port, "address": self.address, "folder": self.folder, "tmux": self.tmux}
        (self.folder / "sshd_config").write_text(CONFIG.format(**facts, user=getpass.getuser()))
        command = [SSHD, "-D", "-e", "-f", str(self.folder / "sshd_config")]
        if self.namespace is not None:
            passwd = self.folder / "passwd"
            lines = Path("/etc/passwd").read_text().splitlines()
            fields = [line.split(":") for line in lines]
            mine = [[*each[:5], str(self.home), *each[6:]] if each[2] == "0" else each for each in fields]
            passwd.write_text("".join(":".join(each) + "\n" for each in mine))
            covered = [(passwd, "/etc/passwd"), *(("/dev/null", shutil.which(name)) for name in lacks)]
            mounts = "".join(f"mount --bind {over} {place} && " for over, place in covered)
            script = f"{mounts}exec {' '.join(command)}"
            command = ["ip", "netns", "exec", self.namespace, "unshare", "--mount", "sh", "-c", script]
        before = self.log.read_text().count(LISTENING) if self.log.exists() else 0
        with self.log.open("ab") as log:
            self.sshd = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        self._await_listening(before)

    def _await_listening(self, before: int) -> None:
        until = time.monotonic() + 10
        while self.log.read_text().count(LISTENING) == before:
            if time.monotonic() > until or (self.sshd is not None and self.sshd.poll() is not None):
                raise AssertionError(f"no sshd on {self.address}:{self.port}:\n{self.log.read_text()}")
            time.sleep(0.02)

    def stop_sshd(self) -> None:
        """End the daemon that listens; the connections that there are have processes of their own."""
        if self.sshd is not None:
            self.sshd.terminate()
            self.sshd.wait()
            self.sshd = None

    def pids(self) -> list[int]:
        """Every process of this host."""
        if self.namespace is None:
            return []
        out = subprocess.run(["ip", "netns", "pids", self.namespace], capture_output=True, text=True, check=False)
        return [int(word) for word in out.stdout.split()]

    def popen(self, command: Sequence[str]) -> subprocess.Popen[str]:
        """Start a command there, as somebody who sits in front of it does."""
        place = [] if self.namespace is None else ["ip", "netns", "exec", self.namespace]
        return subprocess.Popen(
            [*place, *command], cwd=self.home, text=True,
            env={**os.environ, "HOME": str(self.home), "TMUX_TMPDIR": str(self.tmux)},
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip

    def inside(self, *command: str) -> str:
        """What a command says that is run with this host's view of the file system."""
        assert self.sshd is not None
        words = ["nsenter", "--target", str(self.sshd.pid), "--mount", "--net", *command]
        return subprocess.run(words, check=True, capture_output=True, text=True).stdout

    @contextlib.contextmanager
    def disk(self, path: Path, options: str) -> Iterator[None]:
        """While it lasts, ``path`` of this host is a disk of its own; ``options`` are tmpfs's (``size=1g``)."""
        path.mkdir(parents=True, exist_ok=True)
        self.inside("mount", "-t", "tmpfs", "-o", options, "none", str(path))
        try:
            yield
        finally:
            self.inside("umount", "--lazy", str(path))

    def fill(self, path: Path) -> None:
        """Leave no room on that disk, however quickly others write to it."""
        for _ in range(100):
            used = self.inside("df", "--block-size=1K", "--output=used", str(path)).split()[-1]
            with contextlib.suppress(subprocess.CalledProcessError):  # it has grown in the meantime
                self.inside("mount", "-o", f"remount,size={used}k", str(path))
                return
        raise AssertionError(f"{path} could not be filled")

    @property
    def logins(self) -> int:
        """How often somebody has logged in."""
        return self.log.read_text().count("Accepted publickey")

    def link(self, up: bool) -> None:
        """Cut its link to the others, or mend it."""
        ip("link", "set", self.device, "up" if up else "down")

    def shape(self, mbit_per_s: float | None) -> None:
        """Let its link carry so much in each direction; None: as much as it can."""
        for words in (["-n", str(self.namespace)], []):
            device = "eth0" if words else self.device
            subprocess.run(["tc", *words, "qdisc", "del", "dev", device, "root"], capture_output=True, check=False)
            if mbit_per_s is not None:
                rate = f"{mbit_per_s:g}mbit"
                shaper = ["tbf", "rate", rate, "burst", "1mb", "latency", "50ms"]
                subprocess.run(
                    ["tc", *words, "qdisc", "add", "dev", device, "root", *shaper], check=True, capture_output=True
                )

    def kill(self) -> None:
        """What a power cut does, seen from outside: the link is dead, and nothing says goodbye."""
        self.link(up=False)
        for pid in self.pids():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if self.sshd is not None:
            self.sshd.wait()
            self.sshd = None


@dataclass
class Hosts:
    """Some hosts, and the key that opens them."""

    folder: Path
    names: Sequence[str]
    behind: Mapping[str, str] = field(default_factory=dict)
    """Host -> the earlier one that it has its only link to."""
    hosts: dict[str, Host] = field(default_factory=dict)
    bridge: str = ""

    def __getitem__(self, name: str) -> Host:
        return self.hosts[name]

    def __iter__(self) -> Iterator[Host]:
        return iter(self.hosts.values())

    @property
    def key(self) -> Path:
        return self.folder / "key"

    @property
    def known_hosts(self) -> Path:
        return self.folder / "known_hosts"

    def __enter__(self) -> Hosts:
        self.folder.mkdir(parents=True, exist_ok=True)
        keygen(self.key)
        number, self.isolated = 0, not why_not()
        if self.isolated:
            Path("/run/sshd").mkdir(exist_ok=True)
            number = self._make_bridge()
        network = SUBNET.format(a=64 + number // 250, b=number % 250)
        if self.isolated:
            ip("addr", "add", f"{network}.1/24", "dev", self.bridge)
            ip("link", "set", self.bridge, "up")
        try:
            for rank, name in enumerate(self.names):
                self.hosts[name] = self._make(name, rank, number, network)
            self.known_hosts.write_text("".join(host.known for host in self))
        except BaseException:
            self.__exit__()
            raise
        return self

    def _make_bridge(self) -> int:
        """A bridge whose number nobody else has; the names and networks of these hosts follow from it."""
        for _ in range(100):
            number = random.randrange(64 * 250)
            with contextlib.suppress(subprocess.CalledProcessError):
                ip("link", "add", f"sb{number}", "type", "bridge")
                self.bridge = f"sb{number}"
                return number
        raise AssertionError("no bridge can be made")

    def _make(self, name: str, rank: int, number: int, network: str) -> Host:
        folder = self.folder / name
        (folder / "home").mkdir(parents=True)
        keygen(folder / "host_key")
        shutil.copy(self.key.with_suffix(".pub"), folder / "authorized_keys")
        device = f"sv{number}x{rank}"
        if self.isolated:
            space, address = f"sn{number}x{rank}", f"{network}.{rank + 10}"
            ip("netns", "add", space)
            gateway = self.behind.get(name)
            if gateway is None:
                ip("link", "add", device, "type", "veth", "peer", "name", "eth0", "netns", space)
                ip("link", "set", device, "master", self.bridge, "up")
            else:
                address = f"{SIDE}.{rank + 10}"
                between = str(self.hosts[gateway].namespace)
                ip("-n", between, "link", "add", "eth1", "type", "veth", "peer", "name", "eth0", "netns", space)
                ip("-n", between, "addr", "add", f"{SIDE}.1/24", "dev", "eth1")
                ip("-n", between, "link", "set", "eth1", "up")
            for words in (f"addr add {address}/24 dev eth0", "link set eth0 up", "link set lo up"):
                ip("-n", space, *words.split())
            host = Host(name, address, 22, folder, space, device)
        else:
            address = f"127.0.1.{rank + 10}"
            with socket.socket() as probe:
                probe.bind((address, 0))
                port = probe.getsockname()[1]
            host = Host(name, address, port, folder, None, device)
        host.start()
        return host

    def __exit__(self, *_: object) -> None:
        for host in self:
            for pid in host.pids():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            if host.sshd is not None:
                host.sshd.kill()
                host.sshd.wait()
            if host.namespace is not None:
                with contextlib.suppress(subprocess.CalledProcessError):
                    ip("netns", "del", host.namespace)
        if self.bridge:
            with contextlib.suppress(subprocess.CalledProcessError):
                ip("link", "del", self.bridge)


def keygen(path: Path) -> None:
    subprocess.run(
        ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "test", "-f", str(path)], check=True, capture_output=True
    )

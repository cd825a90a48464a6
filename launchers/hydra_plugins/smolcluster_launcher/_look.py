"""What a machine is and has: a small script is sent there and run by whatever Python is there."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from hydra_plugins.smolcluster_launcher._gate import DialedIn
from hydra_plugins.smolcluster_launcher._preflight import Report, here
from hydra_plugins.smolcluster_launcher._probe import probe
from hydra_plugins.smolcluster_launcher._reached import HostFailed, Reached

from smolcluster.cluster.inventory import Node
from smolcluster.panes.tmux import PLACES

DEFAULT_WORKDIR = "~/.cache/smolcluster"
ECHO = "import sys; sys.stdout.buffer.write(sys.stdin.buffer.read())"
ECHO_S = 20.0
CHOOSE = """
for p in "$@"; do command -v "$p" >/dev/null && exec "$p" - "$0"; done
echo "there is no Python: tried $*" >&2; exit 127
"""
"""Runs the script on its stdin with the first interpreter that is there."""


def look_here(name: str) -> Report:
    """The same questions, answered by this process."""
    request = {"workdir": DEFAULT_WORKDIR, "packages": list(here()), "wanted": [], "places": list(PLACES)}
    now = time.time()
    answer: Mapping[str, object] = probe(request)  # type: ignore[no-untyped-call]  # it has to run on any Python
    return Report.of(name, answer, sent=now, received=now)


async def look(machine: Reached, name: str, node: Node, wanted: Sequence[str]) -> Report:
    """Ask a machine what it is and has."""
    request = {"workdir": node.workdir or DEFAULT_WORKDIR, "packages": list(here()), "wanted": list(wanted)}
    request["places"] = list(PLACES)
    question = json.dumps(request)
    script = Path(__file__).with_name("_probe.py").read_bytes()
    if machine.shell != "posix":
        own = machine.python if isinstance(machine, DialedIn) else ""
        python = node.python or own or "python"
        if not isinstance(machine, DialedIn):
            await echoes(machine, python)
        argv = [python, "-", question]
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


async def echoes(machine: Reached, python: str) -> None:
    """Make sure that the machine's shell passes on every byte in both directions, as PowerShell often does not."""
    data = bytes(range(256)) * 64
    done = await machine.run([python, "-c", ECHO], stdin=[data], silent_s=ECHO_S)
    if done.code == 0 and done.out == data:
        return
    if not done.out:
        raise HostFailed(f"{machine.name}: {python}: {done.words}; set cluster.nodes.{machine.name}.python")
    raise HostFailed(
        f"{machine.name}: its shell ({machine.shell}) changes what programs say and hear; let its SSH server use cmd "
        "(Remove-ItemProperty HKLM:\\SOFTWARE\\OpenSSH DefaultShell), or set "
        f"cluster.nodes.{machine.name}.manual=true"
    )

"""What runs leave on other machines, kept within bounds. Done there by ``_tidy.py``."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from hydra_plugins.smolcluster_launcher._preflight import Report
from hydra_plugins.smolcluster_launcher._reached import HostFailed, Reached

DAY_S = 86400.0
CLEAR_S = 10.0
"""Longest time to wait for a machine's run folder to go, at the end of a run."""
SCRIPT = Path(__file__).with_name("_tidy.py")


async def tidy(
    machine: Reached, report: Report, uses: Sequence[str], keep_days: float, say: Callable[[str], None]
) -> Report:
    """Before a run: end the nodes of dead runs, remove what was not used for ``keep_days``; ``uses`` stays.

    Returns the report with the room and the entries that there are then. ``say`` is told what was ended or removed.
    """
    request = {"do": "begin", "workdir": report.workdir, "uses": list(uses), "keep_s": keep_days * DAY_S}
    answer = await _ask(machine, report, request)
    for node in answer["ended"]:
        what = f"a process that run {node['run']} has left (pid {node['pid']}, node {node['node']})"
        heard = f"it had heard nothing for {node['silent_s']:.0f} s"
        failed = node.get("error")
        say(f"{what} cannot be ended: {failed}; {heard}" if failed else f"has ended {what}: {heard}")
    if answer["removed"]:
        say(f"removed {answer['removed']} bundles that were not used for {keep_days:g} days")
    return replace(report, free_bytes=answer["free_bytes"], there=frozenset(answer["there"]))


async def clear(machine: Reached, report: Report, run: str, *, fetched: bool) -> str:
    """After a run: remove its folder, unless it has what was not ``fetched``. Returns why it stays; empty: it is gone.

    HostFailed where the machine does not answer.
    """
    request = {"do": "finish", "workdir": report.workdir, "run": run, "fetched": fetched}
    if not machine.connected:
        raise HostFailed(f"{report.name}: the connection is lost")
    try:
        async with asyncio.timeout(CLEAR_S):
            return str((await _ask(machine, report, request, CLEAR_S))["kept"])
    except TimeoutError:
        raise HostFailed(f"{report.name}: it does not answer within {CLEAR_S:g} s") from None


async def _ask(machine: Reached, report: Report, request: dict[str, Any], silent_s: float = 60.0) -> dict[str, Any]:
    argv = [report.executable, "-", json.dumps(request)]
    done = await machine.run(argv, stdin=[SCRIPT.read_bytes()], silent_s=silent_s)
    try:
        answer: dict[str, Any] = json.loads(done.out)
    except ValueError:
        raise HostFailed(f"{report.name}: {report.workdir} could not be tidied: {done.words}") from None
    return answer

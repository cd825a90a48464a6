"""``python -m smolcluster.node``: one node process. Started by the controller, not by people."""

from __future__ import annotations

import asyncio
import logging
import os
import sys

from smolcluster.node.control import Commands, Events, split_streams


def serve(commands_descriptor: int, events_descriptor: int) -> int:
    """Read the start command, live the node's life, and return the exit code."""
    report = Events(events_descriptor)
    report("hello", pid=os.getpid())
    commands = Commands(commands_descriptor)
    command = commands.read_one(silence_limit_s=600.0)
    if command is None or command.get("op") != "start":
        return 1
    try:
        return _run(command, commands, report)
    finally:
        report.close()


def _run(command: dict[str, object], commands: Commands, report: Events) -> int:
    from smolcluster.errors import SmolclusterError
    from smolcluster.node.run import NodeProcess, described
    from smolcluster.node.start import Start
    from smolcluster.tracking.logs import node_handler

    try:
        start = Start.from_command(command)
        process = NodeProcess(start, commands, report)
        handler = node_handler(report, step=lambda: process.step)
        logging.basicConfig(level=start.spec.logging.level, handlers=[handler], force=True)
        logging.captureWarnings(True)
        return asyncio.run(process.run())
    except SmolclusterError as error:
        report("failed", **described(error))
        return error.exit_code


def main() -> None:
    code = serve(*split_streams())
    sys.stderr.flush()
    os._exit(code)  # a kernel that is still running in the compute thread cannot be interrupted, nor waited for


if __name__ == "__main__":
    main()

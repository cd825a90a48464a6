"""A node process: the nodes that live in it, and the commands that they listen to.

One process usually is one node; with ``comms=memory`` all nodes live in one process and share its event loop and
its compute thread.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from smolcluster.errors import Interrupted, RunFailed, SmolclusterError
from smolcluster.node.control import Commands, leave_after
from smolcluster.node.life import Node
from smolcluster.node.presence import Presence
from smolcluster.node.relay import Relay
from smolcluster.node.start import Start
from smolcluster.ports import Reporter

logger = logging.getLogger("smolcluster.node")


def described(error: SmolclusterError) -> dict[str, Any]:
    """The fields of a ``failed`` event. What is ``final`` would only happen again if the node were started again."""
    return {"reason": "; ".join(str(error).splitlines()), "kind": type(error).__name__, "final": error.final}


class NodeProcess:
    """The nodes of one process and the commands that they listen to."""

    def __init__(self, start: Start, commands: Commands, report: Reporter) -> None:
        self.start, self.commands, self.report = start, commands, report
        self.thread = ThreadPoolExecutor(1, thread_name_prefix="compute")
        self.nodes: list[Node] = []
        self.stopping: str | None = None
        self.relays = {target: Relay() for target in start.relays}
        self._view: Mapping[str, Any] | None = None
        self._presence = None
        if start.uses is not None:
            limit = start.spec.cluster.silence_limit_s
            self._presence = Presence(start.folder, start.members[0].name, start.uses, limit)

    @property
    def step(self) -> int | None:
        """Where the first node of this process stands; None before it has built its model."""
        return self.nodes[0].step if self.nodes else None

    async def run(self) -> int:
        """Run all nodes to their end; returns the exit code."""
        if self._presence is None:
            return await self._run()
        self._presence.open()
        try:
            return await self._run()
        finally:
            self._presence.close()

    async def _run(self) -> int:
        start, loop = self.start, asyncio.get_running_loop()
        self.commands.listen(loop, self.take, start.spec.cluster.silence_limit_s)
        host = start.listens_on
        port = start.spec.cluster.port_of(start.members[0].name)
        try:
            transports = start.spec.comms.transports(start.credentials, host, port)
        except OSError as error:
            raise RunFailed(f"{start.members[0].name}: cannot listen on {host}:{port}: {error.strerror}") from None
        for member, transport in zip(start.members, transports, strict=True):
            self.nodes.append(Node(self, member, transport))
            ports = {target: await relay.open(host) for target, relay in self.relays.items()}
            self.report("listening", of=member.name, address=list(transport.address), relays=ports)
        if self._view is not None:
            self.change_view(self._view)
        results = await asyncio.gather(*(self._live(node) for node in self.nodes), return_exceptions=True)
        for relay in self.relays.values():
            await relay.close()
        return self.conclude(results)

    async def _live(self, node: Node) -> None:
        """One node's life; when it fails, the others of this process have nothing to wait for."""
        try:
            await node.run()
        except BaseException:
            self.stop(f"{node.me.name} has failed")
            raise

    def conclude(self, results: Sequence[BaseException | None]) -> int:
        """Report what the nodes ended with; the exit code of the process."""
        failures = [error for error in results if error is not None and not isinstance(error, Interrupted)]
        for error in failures or results:
            if isinstance(error, Interrupted):
                self.report("stopped", reason=str(error))
                return error.exit_code
            if isinstance(error, SmolclusterError):
                self.report("failed", **described(error))
                return error.exit_code
            if error is not None:
                logger.error("has crashed", exc_info=error)
                reason = f"{type(error).__name__}: {error} (the traceback is in logs/)"
                self.report("failed", reason=reason, kind=type(error).__name__, final=True)
                return 1
        return 0

    def take(self, command: Mapping[str, Any]) -> None:
        """A command from the controller; runs in the event loop."""
        if self._presence is not None:
            self._presence.heard()
        match command["op"]:
            case "view":
                for target, where in (command.get("relays") or {}).items():
                    if target in self.relays:
                        self.relays[target].target = (str(where[0]), int(where[1]))
                self._view = command
                self.change_view(command)
            case "stop":
                self.stop(str(command["reason"]))
            case "gone":
                leave_after(self.start.spec.cluster.stop_timeout_s, 1)
                self.stop("the controller is gone")
            case "ping":
                return

    def change_view(self, command: Mapping[str, Any]) -> None:
        for node in self.nodes:
            node.change_view(command)

    def stop(self, reason: str) -> None:
        if self.stopping is None:
            self.stopping = reason
            for node in self.nodes:
                node.stop(reason)

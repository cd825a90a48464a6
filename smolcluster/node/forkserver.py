"""Starting several nodes on one machine for the price of one: import torch once, then fork.

``python -m smolcluster.node.forkserver <descriptor>`` imports everything a node needs and then serves requests on
a Unix socket. A request comes with three descriptors (standard input, output and error of the new node); the
answer is the node's pid, and later its exit status. At the end of the socket all nodes get their stop timeout
and are then killed. Used on Linux; elsewhere each node starts from scratch (forking after import is not safe
with macOS's frameworks).
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import sys
import time
from typing import Any, NoReturn

ORPHANS_S = 15.0
"""When the controller is gone, nodes end by themselves; after so long they are killed."""


def main() -> NoReturn:
    channel = socket.socket(fileno=int(sys.argv[1]))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _preload()
    channel.sendall(b'{"ready": true}\n')
    wake_read, wake_write = os.pipe()
    os.set_blocking(wake_write, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
    children: set[int] = set()
    requests = Requests(channel)
    while True:
        ready, _, _ = select.select([channel.fileno(), wake_read], [], [])
        if wake_read in ready:
            os.read(wake_read, 4096)
            _reap(channel, children)
        if channel.fileno() in ready:
            for request, descriptors in requests.read():
                _serve(channel, request, descriptors, children)
            if requests.over:
                _end(children)


def _preload() -> None:
    """Import what a node needs. Nothing here may start a thread: only this one survives the fork."""
    import smolcluster.comms.transport.tcp
    import smolcluster.node.construct
    import smolcluster.node.run
    import smolcluster.tracking.logs  # noqa: F401


class Requests:
    """Newline-delimited JSON, and three descriptors for each request to start a node. One read may bring several."""

    def __init__(self, channel: socket.socket) -> None:
        self._channel, self._pending = channel, b""
        self._descriptors: list[int] = []
        self.over = False

    def read(self) -> list[tuple[dict[str, Any], list[int]]]:
        """The requests that are complete now, with their descriptors; ``over`` at the end of the channel."""
        data, descriptors, _, _ = socket.recv_fds(self._channel, 4096, 3)
        self.over = not data
        self._descriptors += descriptors
        *lines, self._pending = (self._pending + data).split(b"\n")
        found = []
        for request in map(json.loads, lines):
            count = 3 if "start" in request else 0
            mine, self._descriptors = self._descriptors[:count], self._descriptors[count:]
            found.append((request, mine))
        return found


def _serve(channel: socket.socket, request: dict[str, Any], descriptors: list[int], children: set[int]) -> None:
    """Kill a node, or start one."""
    if "kill" in request:
        if request["kill"] in children:
            os.kill(request["kill"], signal.SIGKILL)
        return
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid == 0:
        _become_node(channel, descriptors)
    for descriptor in descriptors:
        os.close(descriptor)
    children.add(pid)
    channel.sendall(json.dumps({"id": request["start"], "pid": pid}).encode() + b"\n")


def _become_node(channel: socket.socket, descriptors: list[int]) -> NoReturn:
    """In the child: take the descriptors as 0, 1 and 2, and be a node."""
    channel.close()
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for target, descriptor in enumerate(descriptors):
        os.dup2(descriptor, target)
        os.close(descriptor)
    from smolcluster.node.__main__ import main as node

    node()
    os._exit(1)  # node() does not return


def _reap(channel: socket.socket, children: set[int]) -> None:
    """Report every child that has ended."""
    while children:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid == 0:
            return
        children.discard(pid)
        with contextlib.suppress(OSError):  # the controller is gone: the main loop sees that next
            code = os.waitstatus_to_exitcode(status)
            channel.sendall(json.dumps({"pid": pid, "code": code}).encode() + b"\n")


def _end(children: set[int]) -> NoReturn:
    """The controller is gone: see to it that no node stays behind."""
    until = time.monotonic() + ORPHANS_S
    while children and time.monotonic() < until:
        pid, _ = os.waitpid(-1, os.WNOHANG)
        if pid:
            children.discard(pid)
        else:
            time.sleep(0.05)
    for pid in children:
        os.kill(pid, signal.SIGKILL)
    os._exit(0)


if __name__ == "__main__":
    main()

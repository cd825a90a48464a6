"""``python -m smolcluster.panes.bridge <session> <node>``: a node in a tmux session, for whoever would start the node.

The bridge has the standard streams that the node would have had: pipes of the controller's, or a channel of SSH. It
makes the session, and hands the streams over to the program in its pane (``pane.py``) through a Unix socket in a
private folder. From then on the bytes do not come through here: the node reads its commands from the very pipe that it
would have without tmux, so that its end is the end of the node.

The bridge ends when the node has ended and the session is gone, in the way that the node did. Where the bridge is
killed, the pane's program ends the node; where that is killed, or the session is ended from outside, the bridge does,
and says so in the node's name.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Sequence
from typing import Any, NoReturn

from smolcluster.errors import RunFailed
from smolcluster.panes import tmux

NODE = ("-m", "smolcluster.node")
PANE_STARTS_S = 30.0
"""The pane's program must have come up by then; a Raspberry Pi needs a second or two."""
GONE_S = 1.0
"""After being killed, the node is waited for that long."""
LOOK_S = 0.25
TOO_EARLY = "has ended before the node could be started in it"


class Bridge:
    """One node in one session, from its start to its end."""

    def __init__(self, session: str, node: str, argv: Sequence[str]) -> None:
        self.session, self.node, self.argv = session, node, list(argv)
        self.said: dict[str, Any] = {}
        """What the pane's program has told: ``pid``, then ``code``; ``refused`` or ``hung_up`` where that was so."""

    def run(self) -> int:
        """The exit code of the node (negative: the signal that ended it). RunFailed where none could be started."""
        private = tempfile.TemporaryDirectory(prefix="smolcluster-", ignore_cleanup_errors=True)
        with private as folder, socket.socket(socket.AF_UNIX) as listener:
            listener.bind(f"{folder}/s")
            listener.listen(1)
            self._begin(f"{folder}/s")
            try:
                self._serve(listener)
            finally:
                if not self._is_lost:  # otherwise it is gone, and a session of that name would be a successor's
                    tmux.end(self.session)
        return self._conclude()

    def _begin(self, address: str) -> None:
        """Make the session. A predecessor of that name belonged to this node too; it is about to end anyway."""
        tmux.end(self.session)
        tmux.begin(
            *("-s", self.session, "-n", self.node, *tmux.SIZE),
            *tmux.command("smolcluster.panes.pane", address),
            *tmux.bare(f"={self.session}:", "{} d leaves, the node goes on"),
        )

    def _serve(self, listener: socket.socket) -> None:
        """Hand over the order and the streams, then take what the pane's program says until it is gone."""
        with self._caller(listener) as channel:
            channel.settimeout(PANE_STARTS_S)
            environment = {key: value for key, value in os.environ.items() if not key.startswith("TMUX")}
            order = {"node": self.node, "argv": self.argv, "directory": os.getcwd(), "environment": environment}
            data = json.dumps(order).encode() + b"\n"
            with contextlib.suppress(OSError):  # it is gone: then it says nothing either
                sent = socket.send_fds(channel, [data], [0, 1, 2])
                channel.sendall(data[sent:])
                channel.settimeout(None)  # for as long as the node lives; who ends it ends this, too
                with channel.makefile("rb") as stream:
                    for line in stream:
                        self.said |= json.loads(line)

    def _caller(self, listener: socket.socket) -> socket.socket:
        """The connection from the pane's program."""
        until = time.monotonic() + PANE_STARTS_S
        listener.settimeout(LOOK_S)
        while time.monotonic() < until:
            with contextlib.suppress(TimeoutError):
                return listener.accept()[0]
            if not tmux.exists(self.session):
                raise RunFailed(f"the tmux session {self.session} {TOO_EARLY}")
        raise RunFailed(f"nothing has come up in the tmux session {self.session} within {PANE_STARTS_S:g} s")

    @property
    def _is_lost(self) -> bool:
        """The session has ended before the node did, and with it the node."""
        return bool(self.said.get("hung_up")) or ("pid" in self.said and "code" not in self.said)

    def _conclude(self) -> int:
        if "refused" in self.said:
            raise RunFailed(str(self.said["refused"]))
        if "pid" not in self.said:
            raise RunFailed(f"the tmux session {self.session} {TOO_EARLY}")
        if not self._is_lost:
            return int(self.said["code"])
        kill(int(self.said["pid"]))
        how = "was ended from outside" if self.said.get("hung_up") else "is gone: the program in its pane was killed"
        self._report(f"its tmux session {self.session} {how}")
        return 1

    def _report(self, reason: str) -> None:
        """Say in the node's name why it has ended. It may have been cut off in mid-line."""
        event = {"event": "failed", "reason": reason, "kind": "TmuxFailed", "final": False}
        with contextlib.suppress(OSError):  # nobody listens any more
            os.write(1, b"\n" + json.dumps(event).encode() + b"\n")


def kill(pid: int) -> None:
    """End a process that is not a child of this one, and wait until it is gone."""
    until = time.monotonic() + GONE_S
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
        while time.monotonic() < until:
            os.kill(pid, 0)
            time.sleep(0.01)


def end_like(code: int) -> NoReturn:
    """End in the way that the node did: with its exit code, or by the signal that ended it."""
    if code < 0:
        with contextlib.suppress(OSError):  # two of them cannot be set, and need not be
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    os._exit(code if code >= 0 else 1)


def main() -> NoReturn:
    session, node, *argv = sys.argv[1:]
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # what was made is removed on the way
    try:
        code = Bridge(session, node, argv or [sys.executable, *NODE]).run()
    except (RunFailed, OSError) as error:
        os.write(2, f"{error}\n".encode())
        code = 127
    end_like(code)


if __name__ == "__main__":
    main()

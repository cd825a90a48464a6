"""``python -m smolcluster.panes.pane <address>``: the program in a node's tmux pane. Started by the bridge.

It gets from the bridge what to run and the three streams of whoever wants the node. The node is its child: it reads
its commands from the first of them itself; what it says is passed on to the other two, and shown here for people.
Showing is a matter of its own: a terminal that takes nothing holds up nobody, lines are left out then.

The node ends with this program, whatever ends that: a closed session and a dead tmux server hang up (SIGHUP), and
where this program is killed, the bridge sees to it. The end of the bridge is the end of the node.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import socket
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from smolcluster.panes.told import Line, Lines, Screen, event_of
from smolcluster.tracking.news import WARN
from smolcluster.tracking.tracker import Event

ORDER_S = 30.0
"""The bridge sends its order at once."""
MAX_ORDER = 4 << 20
CHUNK_BYTES = 1 << 16
MAX_SHOWN = 64
"""Pieces of output that the terminal has not taken yet; more are not shown."""
IDLE_S = 1.0
"""After the end of the node, its streams are read until nothing has come for so long: a child of it may hold them."""
SHOW_S = 0.5
"""The terminal has that time to take the last lines."""
HINT = "no key reaches the node: detach to leave it as it is, tmux kill-session to end it"


class Stream:
    """Passes on what comes from one descriptor to another one, in a thread; nothing piles up in between."""

    def __init__(self, source: int, target: int, show: Callable[[bytes], None]) -> None:
        self._source, self._target, self._show = source, target, show
        self._writing, self._moved = False, time.monotonic()
        self._thread = threading.Thread(target=self._pump, daemon=True)
        self._thread.start()

    def finish(self) -> None:
        """Wait until all is passed on. What holds the other end without reading it is waited for."""
        while self._thread.is_alive() and (self._writing or time.monotonic() - self._moved < IDLE_S):
            self._thread.join(0.02)

    def _pump(self) -> None:
        deaf = False
        while data := os.read(self._source, CHUNK_BYTES):
            self._show(data)
            self._writing = not deaf
            if not deaf:
                try:
                    _write_all(self._target, data)
                except OSError:  # the reader has gone: what is still said is for nobody
                    deaf = True
            self._writing, self._moved = False, time.monotonic()


def _write_all(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


class Display:
    """Shows a node's output on the terminal of the pane, in a thread, as far as the terminal takes it."""

    def __init__(self, descriptor: int, title: str) -> None:
        self._screen, self._left_out = Screen(descriptor, title), 0
        self._events, self._errors = Lines(), Lines()
        self._queue: queue.Queue[tuple[Lines, bytes]] = queue.Queue(MAX_SHOWN)
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def events(self, data: bytes) -> None:
        """Take a piece of the stream of events."""
        self._put(self._events, data)

    def errors(self, data: bytes) -> None:
        """Take a piece of standard error."""
        self._put(self._errors, data)

    def close(self) -> None:
        with contextlib.suppress(queue.Full):
            self._queue.put((self._errors, b"\n"), timeout=SHOW_S)  # its last line may have no end
            self._queue.put((self._events, b""), timeout=SHOW_S)
        self._thread.join(SHOW_S)

    def _put(self, lines: Lines, data: bytes) -> None:
        try:
            self._queue.put_nowait((lines, data))
        except queue.Full:
            self._left_out += 1

    def _work(self) -> None:
        with contextlib.suppress(OSError):  # the terminal is gone
            while True:
                lines, data = self._queue.get()
                if not data:
                    return
                if self._left_out:
                    self._left_out = 0
                    self._screen.write(Line("(some lines are left out: the terminal was too slow)", WARN), time.time())
                for line in lines.take(data):
                    event = event_of(line) if lines is self._events else said(line)
                    if event is not None:
                        self._screen.show(event, time.time())


def said(line: bytes) -> Event | None:
    """What a line of standard error is shown as; None where there is nothing on it."""
    message = line.decode(errors="replace").rstrip()
    return {"event": "log", "level": "WARNING", "message": message} if message else None


class Pane:
    """The node of one bridge."""

    def __init__(self, channel: socket.socket, order: dict[str, Any], streams: list[int]) -> None:
        self._channel, self._order = channel, order
        self._stdin, self._stdout, self._stderr = streams
        self._hung_up = False
        self._display = Display(1, f"{order['node']} on {os.uname().nodename}")
        self._node: subprocess.Popen[bytes] | None = None

    def run(self) -> None:
        """Start the node, and stay until it has ended and all that it said is passed on."""
        signal.signal(signal.SIGHUP, self._hang_up)
        try:
            node = self._node = self._start()
        except OSError as error:
            self._report(refused=f"{self._order['argv'][0]}: {error.strerror or error}")
            return
        if self._hung_up:  # while it was being started
            node.kill()
        self._report(pid=node.pid)
        assert node.stdout is not None
        assert node.stderr is not None
        streams = [
            Stream(node.stdout.fileno(), self._stdout, self._display.events),
            Stream(node.stderr.fileno(), self._stderr, self._display.errors),
        ]
        for work in (self._watch_bridge, self._watch_keys):
            threading.Thread(target=work, daemon=True).start()
        code = node.wait()
        for stream in streams:
            stream.finish()
        self._display.close()
        self._report(code=code, hung_up=self._hung_up)

    def _start(self) -> subprocess.Popen[bytes]:
        """It stays in the session of this terminal, so that the system hangs up on it too when this program is gone."""
        order = self._order
        try:
            return subprocess.Popen(
                order["argv"], cwd=order["directory"], env=order["environment"],
                stdin=self._stdin, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            )  # fmt: skip
        finally:
            os.close(self._stdin)  # the node alone reads it

    def _hang_up(self, *_: object) -> None:
        self._hung_up = True
        self._kill()

    def _kill(self) -> None:
        if self._node is not None:
            self._node.kill()

    def _report(self, **said: object) -> None:
        with contextlib.suppress(OSError):  # the bridge is gone; that has ended the node
            self._channel.sendall(json.dumps(said).encode() + b"\n")

    def _watch_bridge(self) -> None:
        """The bridge says nothing more; its end is the node's."""
        with contextlib.suppress(OSError):
            while self._channel.recv(CHUNK_BYTES):
                pass
        self._kill()

    def _watch_keys(self) -> None:
        """Take what is typed, so that it does not pile up in the terminal."""
        with contextlib.suppress(OSError):
            while keys := os.read(0, CHUNK_BYTES):
                if b"\x03" in keys or b"\x04" in keys or b"q" in keys:
                    self._display.errors(f"{HINT}\n".encode())


def be_deaf() -> None:
    """No key does anything to the processes of this terminal, nor holds up its output, nor is seen."""
    with contextlib.suppress(termios.error):  # it is gone already
        settings = termios.tcgetattr(0)
        settings[0] &= ~(termios.IXON | termios.ICRNL)
        settings[3] &= ~(termios.ECHO | termios.ICANON | termios.ISIG | termios.IEXTEN)
        termios.tcsetattr(0, termios.TCSANOW, settings)


def accept_order(address: str) -> tuple[socket.socket, dict[str, Any], list[int]]:
    """What the bridge at ``address`` wants to be run, and the streams for it. OSError where there is no bridge."""
    channel = socket.socket(socket.AF_UNIX)
    channel.settimeout(ORDER_S)
    try:
        channel.connect(address)
    finally:
        with contextlib.suppress(OSError):  # the bridge removes it, too, unless it is killed
            os.unlink(address)
            Path(address).parent.rmdir()
    data, streams, _, _ = socket.recv_fds(channel, CHUNK_BYTES, 3)
    while data and not data.endswith(b"\n") and len(data) < MAX_ORDER:
        more = channel.recv(CHUNK_BYTES)
        if not more:
            break
        data += more
    if not data.endswith(b"\n") or len(streams) != 3:
        raise ConnectionError("the bridge has ended")
    channel.settimeout(None)
    return channel, json.loads(data), streams


def main() -> None:
    be_deaf()
    with contextlib.suppress(OSError):  # without a bridge there is nothing to do
        Pane(*accept_order(sys.argv[1])).run()
    os._exit(0)  # threads may wait for what does not come


if __name__ == "__main__":
    main()

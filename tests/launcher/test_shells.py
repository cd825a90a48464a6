"""Which shell a machine has, and what follows; with a connection that says what a Windows machine would."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from hydra_plugins.smolcluster_launcher._look import ECHO, echoes
from hydra_plugins.smolcluster_launcher._process import kill_command
from hydra_plugins.smolcluster_launcher._reached import Done, HostFailed, Target
from hydra_plugins.smolcluster_launcher._ssh import Machine


class FakeChannel:
    """Answers one command."""

    def __init__(self, answer: bytes | Exception, heard: list[str]) -> None:
        self.answer, self.heard, self.closed = answer, heard, False

    def settimeout(self, seconds: float) -> None:
        assert 0 < seconds <= 600

    def exec_command(self, line: str) -> None:
        self.heard.append(line)

    def shutdown_write(self) -> None:
        return

    def recv(self, count: int) -> bytes:
        if isinstance(self.answer, Exception):
            raise self.answer
        said, self.answer = self.answer, b""
        return said

    def close(self) -> None:
        self.closed = True


class FakeConnection:
    """A connection whose server names itself, and whose shell answers."""

    user, host, port, is_connected, gateway = "me", "win", 22, True, None

    def __init__(self, banner: str, answer: bytes | Exception = b"") -> None:
        self.remote_version, self.heard, self.num_closed = banner, list[str](), 0
        self.channels = [FakeChannel(answer, self.heard)]
        self.transport = self

    def open_session(self, timeout: float) -> FakeChannel:
        return self.channels[0]

    def close(self) -> None:
        self.num_closed += 1


def opened(connection: FakeConnection, monkeypatch: pytest.MonkeyPatch) -> Machine:
    machine = Machine(Target(name="win", host="win"), connect_timeout_s=5)
    monkeypatch.setattr(machine, "_open", lambda: connection)
    try:
        asyncio.run(machine.open())
    finally:
        machine.close()
    return machine


@pytest.mark.parametrize(
    ("banner", "answer", "shell", "asked"),
    [
        ("SSH-2.0-OpenSSH_9.7", b"", "posix", []),
        ("SSH-2.0-OpenSSH_for_Windows_9.5", b"Windows_NT\r\n", "cmd", ["echo %OS%"]),
        ("SSH-2.0-OpenSSH_for_Windows_9.5", b"%OS%\r\n", "powershell", ["echo %OS%"]),
    ],
)
def test_the_shell_is_found_out_once(
    monkeypatch: pytest.MonkeyPatch, banner: str, answer: bytes, shell: str, asked: list[str]
) -> None:
    connection = FakeConnection(banner, answer)
    machine = opened(connection, monkeypatch)
    assert machine.shell == shell
    assert connection.heard == asked
    assert connection.channels[0].closed == bool(asked)


def test_a_windows_machine_that_says_nothing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    connection = FakeConnection("SSH-2.0-OpenSSH_for_Windows_9.5", TimeoutError())
    with pytest.raises(HostFailed, match="win: me@win:22 runs no command: it says nothing"):
        opened(connection, monkeypatch)
    assert connection.num_closed == 1


def test_how_a_process_is_ended_depends_on_the_shell() -> None:
    assert kill_command(12, "posix") == ["kill", "-KILL", "12"]
    assert kill_command(12, "cmd") == kill_command(12, "powershell") == ["taskkill", "/F", "/T", "/PID", "12"]


class Shelled:
    """A machine whose shell does something to what goes through it."""

    name, shell = "win", "powershell"

    def __init__(self, change: Any) -> None:
        self.change = change

    async def run(self, argv: list[str], *, stdin: list[bytes], silent_s: float) -> Done:
        assert argv == ["python", "-c", ECHO]
        return self.change(b"".join(stdin))  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda data: Done(code=0, out=data, err=b""), ""),
        (lambda data: Done(code=0, out=data.replace(b"\n", b"\r\n"), err=b""), "its shell .powershell. changes what"),
        (lambda data: Done(code=0, out=data[100:], err=b""), "cluster.nodes.win.manual=true"),
        (lambda data: Done(code=9009, out=b"", err=b"no python"), "no python; set cluster.nodes.win.python"),
    ],
)
def test_a_shell_that_changes_bytes_is_refused(change: Any, words: str) -> None:
    machine: Any = Shelled(change)
    if not words:
        asyncio.run(echoes(machine, "python"))
        return
    with pytest.raises(HostFailed, match=words):
        asyncio.run(echoes(machine, "python"))

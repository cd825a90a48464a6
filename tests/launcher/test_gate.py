"""Machines that dial in: who is let in, and that they do what those reached by SSH do."""

from __future__ import annotations

import asyncio
import os
import socket
import sys
from collections.abc import Awaitable, Callable

import pytest
from hydra_plugins.smolcluster_launcher import _gate
from hydra_plugins.smolcluster_launcher._gate import DialedIn, Gate, address_towards
from hydra_plugins.smolcluster_launcher._reached import HostFailed

from smolcluster.errors import RunFailed
from smolcluster.node import keeper
from smolcluster.node.keeper import Invitation, join

PYTHON = sys.executable


def joined(work: Callable[[DialedIn], Awaitable[None]]) -> None:
    """Do ``work`` with a machine that has joined."""

    async def together() -> None:
        gate = Gate("test")
        await gate.open()
        keeper = asyncio.create_task(join(gate.invite("mini2", "127.0.0.1")))
        machine = gate.machine("mini2")
        await asyncio.wait_for(machine.open(), 20)
        try:
            await work(machine)
        finally:
            gate.close()
            await keeper

    asyncio.run(asyncio.wait_for(together(), 60))


def test_commands_run_as_over_ssh() -> None:
    async def work(machine: DialedIn) -> None:
        done = await machine.run([PYTHON, "-c", "import sys; print('out'); print('err', file=sys.stderr); sys.exit(3)"])
        assert (done.code, done.out, done.err, done.words) == (3, b"out\n", b"err\n", "err")
        data = os.urandom(5_000_000)
        copy = "import shutil, sys; shutil.copyfileobj(sys.stdin.buffer, sys.stdout.buffer)"
        echoed = await machine.run([PYTHON, "-c", copy], stdin=[data])
        assert echoed.out == data
        deaf = await machine.run([PYTHON, "-c", "pass"], stdin=[data])
        assert deaf.code == 0, "what it does not read is nobody's"
        missing = await machine.run(["/no/such/program"])
        assert missing.code == 127
        assert missing.words == "/no/such/program: No such file or directory"
        assert (await machine.run([PYTHON, "-c", "import sys; print(sys.argv[1:])", "a b", "$HOME", ""])).out == (
            b"['a b', '$HOME', '']\n"
        )
        with pytest.raises(HostFailed, match="has come to a halt for 0.2 s"):
            await machine.run([PYTHON, "-c", "import threading; threading.Event().wait()"], silent_s=0.2)

    joined(work)


def test_a_process_has_its_streams_here_and_can_be_ended() -> None:
    async def work(machine: DialedIn) -> None:
        (stdin, our_in), (our_out, stdout), (our_err, stderr) = os.pipe(), os.pipe(), os.pipe()
        ended: asyncio.Future[tuple[int, str]] = asyncio.get_running_loop().create_future()
        process = await machine.start(
            [PYTHON, "-u", "-c", "import os, sys; print(os.environ['A']); print(input()); input()"],
            (stdin, stdout, stderr),
            lambda code, how: ended.set_result((code, how)),
            directory="/",
            environment={"A": "b c"},
        )
        os.write(our_in, b"hello\n")
        assert await asyncio.to_thread(_read, our_out, 10) == b"b c\nhello\n"
        process.kill()
        assert await ended == (-9, "killed")
        assert await asyncio.to_thread(os.read, our_out, 10) == b""
        process.close()
        for descriptor in (our_in, our_out, our_err):
            os.close(descriptor)

    joined(work)


def _read(descriptor: int, count: int) -> bytes:
    data = b""
    while len(data) < count:
        data += os.read(descriptor, count - len(data))
    return data


def test_when_the_connection_ends_so_does_what_was_started() -> None:
    async def lost() -> None:
        gate = Gate("test")
        await gate.open()
        keeper = asyncio.create_task(join(gate.invite("mini2", "127.0.0.1")))
        machine = gate.machine("mini2")
        await machine.open()
        running = asyncio.create_task(machine.run([PYTHON, "-c", "import sys; print(1, flush=True); sys.stdin.read()"]))
        gate.close()
        done = await running
        assert done.code == -1
        await keeper

    asyncio.run(asyncio.wait_for(lost(), 60))


def test_a_connection_without_a_sign_of_life_has_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    """A cable that is pulled says nothing. Both ends notice, and what was started over there ends."""
    monkeypatch.setattr(keeper, "SILENT_S", 1.0)
    monkeypatch.setattr(keeper, "PING_S", 0.1)
    monkeypatch.setattr(keeper, "LEAVE_S", 0.1)

    async def pulled() -> None:
        gate, between, served = await through_a_cable()
        machine = gate.machine("mini2")
        await machine.open()
        running = asyncio.create_task(machine.run([PYTHON, "-c", "import threading; threading.Event().wait()"]))
        await asyncio.sleep(1.5)
        assert machine.connected, "pings are signs of life"
        between.pulled = True
        await asyncio.wait_for(served, 20)
        assert (await running).code == -1
        with pytest.raises(HostFailed, match="mini2: the connection is lost"):
            await machine.open()
        gate.close()
        between.close()

    asyncio.run(asyncio.wait_for(pulled(), 60))


def test_a_process_on_a_machine_that_does_not_answer_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_gate, "KILL_S", 0.3)

    async def pulled() -> None:
        gate, between, served = await through_a_cable()
        machine = gate.machine("mini2")
        await machine.open()
        (stdin, our_in), (our_out, stdout), (our_err, stderr) = os.pipe(), os.pipe(), os.pipe()
        ended: asyncio.Future[tuple[int, str]] = asyncio.get_running_loop().create_future()
        argv = [PYTHON, "-u", "-c", "print(1); input()"]
        process = await machine.start(
            argv,
            (stdin, stdout, stderr),
            lambda code, how: ended.set_result((code, how)),
            directory=None,
            environment={},
        )
        assert await asyncio.to_thread(_read, our_out, 2) == b"1\n"
        between.pulled = True
        process.kill()
        assert await ended == (-9, "mini2 does not answer any more")
        between.close()
        gate.close()
        await served
        process.close()
        for descriptor in (our_in, our_out, our_err):
            os.close(descriptor)

    asyncio.run(asyncio.wait_for(pulled(), 60))


class Between:
    """Passes bytes on, until its cable is pulled: then nothing goes through, and nobody is told."""

    def __init__(self) -> None:
        self.pulled, self.port = False, 0
        self._writers: list[asyncio.StreamWriter] = []
        self._tasks: list[asyncio.Task[None]] = []

    @classmethod
    async def to(cls, port: int) -> Between:
        between = cls()

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            far_reader, far_writer = await asyncio.open_connection("127.0.0.1", port)
            between._writers += [writer, far_writer]
            for source, target in ((reader, far_writer), (far_reader, writer)):
                between._tasks.append(asyncio.create_task(between._pass_on(source, target)))

        between._server = await asyncio.start_server(serve, "127.0.0.1", 0)
        between.port = between._server.sockets[0].getsockname()[1]
        return between

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(1 << 16):
            if not self.pulled:
                writer.write(data)
                await writer.drain()

    def close(self) -> None:
        self._server.close()
        for writer in self._writers:
            writer.close()
        for task in self._tasks:
            task.cancel()


async def through_a_cable() -> tuple[Gate, Between, asyncio.Task[None]]:
    """A gate, and mini2 on its way to it through a cable that can be pulled."""
    gate = Gate("test")
    await gate.open()
    between = await Between.to(gate.port)
    invitation = gate.invite("mini2", "127.0.0.1")._replace(port=between.port)
    return gate, between, asyncio.create_task(join(invitation))


def test_who_is_let_in() -> None:
    async def knock() -> list[str]:
        gate = Gate("test")
        await gate.open()
        good = gate.invite("mini2", "127.0.0.1")
        said = []
        for bad in (good._replace(token="x" * 24), good._replace(name="mini3"), good._replace(pin="0" * 32)):
            with pytest.raises(RunFailed) as error:
                await join(bad)
            said.append(str(error.value))
        keeper = asyncio.create_task(join(good))
        await gate.machine("mini2").open()
        with pytest.raises(RunFailed) as error:
            await join(good)
        said.append(str(error.value))
        gate.close()
        await keeper
        with pytest.raises(RunFailed, match="cannot be joined"):
            await join(good)
        return said

    wrong_token, wrong_name, wrong_gate, again = asyncio.run(asyncio.wait_for(knock(), 60))
    assert wrong_token.endswith("refuses: the invitation is not valid, or was used already")
    assert wrong_name.endswith("refuses: the invitation is not valid, or was used already")
    assert "is not the run that this invitation is for" in wrong_gate
    assert again.endswith("was used already")


@pytest.mark.parametrize("said", [b"", b"no json\n", b"[]\n", b'{"name": 5}\n', b"x" * 100_000])
def test_who_does_not_greet_is_cut(said: bytes) -> None:
    async def knock() -> bytes:
        import ssl

        gate = Gate("test")
        await gate.open()
        context = ssl._create_unverified_context()
        reader, writer = await asyncio.open_connection("127.0.0.1", gate.port, ssl=context)
        writer.write(said)
        await writer.drain()
        if not said:
            writer.close()
        try:
            return await reader.read()
        finally:
            writer.close()
            gate.close()

    assert asyncio.run(asyncio.wait_for(knock(), 30)) == b""


def test_an_invitation_is_one_word() -> None:
    invitation = Invitation("fd00::1", 4000, "mini2", "t-_k", "ab" * 16)
    assert Invitation.parse(invitation.word) == invitation
    assert " " not in invitation.word
    for word in ("", "a/b/c", "host/mini2/token/" + "a" * 32, "h:x/mini2/token/" + "a" * 32, "h:1/mini2/token/short"):
        with pytest.raises(ValueError):
            Invitation.parse(word)


def test_the_address_that_others_see() -> None:
    assert address_towards("127.0.0.1") == "127.0.0.1"
    assert socket.inet_aton(address_towards("no such host")) == socket.inet_aton("127.0.0.1")

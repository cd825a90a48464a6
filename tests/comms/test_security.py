"""Who gets through the handshake, and who does not: by certificate, run, name, time and generation."""

from __future__ import annotations

import asyncio
import dataclasses
import datetime as dt
import os
import select
import socket
import ssl
import struct
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from zmq.utils import z85

from smolcluster.comms import security, wire
from smolcluster.comms.peers import NodePeers
from smolcluster.comms.security import Authority, Credentials, Identity, curve_keypair, peer_of
from smolcluster.comms.transport import tcp
from smolcluster.comms.transport.tcp import read_control
from smolcluster.comms.wire import Envelope
from smolcluster.errors import PeerProtocolError
from smolcluster.messages import Pull
from tests.comms.cluster import SERVER, WITHIN_S, Cluster, go, receive, resident_bytes, until, worker

pytestmark = pytest.mark.usefixtures("nothing_left")
W0 = worker(0)
AUTHORITY = Authority("run")


def handshake(server: Credentials, client: Credentials) -> tuple[object, object]:
    """What each side makes of the other: (name, joined), or the error. TLS 1.3 tells a client late."""
    ours, theirs = socket.socketpair()
    results: list[Any] = [None, None]

    def side(index: int, credentials: Credentials, sock: socket.socket) -> None:
        sock.settimeout(5.0)
        try:
            with Identity(credentials).wrap(sock, dialled=index == 1) as secured:
                results[index] = peer_of(secured, credentials.run)
                secured.sendall(b"x")
                secured.recv(1)
        except (OSError, PeerProtocolError) as error:
            results[index] = error
        finally:
            sock.close()

    threads = [threading.Thread(target=side, args=arguments) for arguments in ((0, server, ours), (1, client, theirs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results[0], results[1]


@pytest.mark.parametrize("dialled", [True, False])
def test_a_peer_that_hung_up_before_the_handshake_leaves_no_socket_open(dialled: bool) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        ours = socket.create_connection(listener.getsockname())
        theirs, _ = listener.accept()
    theirs.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    theirs.close()  # a reset, not a goodbye
    select.select([ours], [], [], 5)
    descriptor = ours.fileno()
    with pytest.raises(OSError, match=r"reset|not connected"):
        Identity(AUTHORITY.issue("server", 0)).prepare(ours, dialled=dialled)
    ours.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptor)


def test_members_know_each_other_by_certificate() -> None:
    assert handshake(AUTHORITY.issue("server", 1), AUTHORITY.issue("worker0", 3)) == (("worker0", 3), ("server", 1))


def expired(authority: Authority) -> Credentials:
    return authority.issue("worker0", 1, lifetime=dt.timedelta(days=-1))


def signed_by_a_member(authority: Authority) -> Credentials:
    """A member is no authority: what it signs counts for nothing."""
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    member = authority.issue("worker1", 1)
    forger = Authority("run")
    forger._key = load_pem_private_key(member.key.encode(), member.passphrase.encode())  # type: ignore[assignment]
    forger._name = security._name("run", "worker1", 1)
    forged = forger.issue("worker0", 1)
    chain = forged.certificate + member.certificate
    return dataclasses.replace(forged, authority=authority.pem, certificate=chain)


def of_another_run(authority: Authority) -> Credentials:
    """The same names, another authority; it even trusts ours."""
    return dataclasses.replace(Authority("run").issue("worker0", 1), authority=authority.pem)


REFUSED: dict[str, Callable[[Authority], Credentials]] = {
    "expired": expired,
    "of another run's authority": of_another_run,
    "signed by a member": signed_by_a_member,
}


@pytest.mark.parametrize("what", REFUSED)
def test_a_certificate_that_is_not_good_is_refused_by_either_side(what: str) -> None:
    bad, good = REFUSED[what](AUTHORITY), AUTHORITY.issue("server", 1)
    for pair in ((good, bad), (bad, good)):
        judged = handshake(*pair)[pair.index(good)]
        assert isinstance(judged, ssl.SSLError), judged
        assert "certificate verify failed" in str(judged).lower()


def test_certificates_name_the_run() -> None:
    other = dataclasses.replace(AUTHORITY.issue("server", 1), run="other")
    judged, _ = handshake(other, AUTHORITY.issue("worker0", 1))
    assert isinstance(judged, PeerProtocolError)
    assert str(judged) == "wrong run: certificate is of run 'run'"


@pytest.mark.parametrize("name", ["", "worker0", "worker0#", "worker0#x", "#1"])
def test_a_certificate_that_names_no_member_is_refused(name: str) -> None:
    class Shown:
        def getpeercert(self) -> dict[str, Any]:
            return {"subject": ((("organizationName", "run"),), (("commonName", name),))}

    with pytest.raises(PeerProtocolError, match="wrong identity: certificate names no member"):
        peer_of(Shown(), "run")  # type: ignore[arg-type]


def test_a_name_may_hold_what_separates_it_from_its_generation() -> None:
    assert handshake(AUTHORITY.issue("a#b", 1), AUTHORITY.issue("worker0", 2))[1] == ("a#b", 1)


def test_keys_do_not_stay_on_disk(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """ssl reads keys from files only: encrypted ones, readable by the owner alone, gone at once."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    seen: list[tuple[int, str]] = []
    load = ssl.SSLContext.load_cert_chain

    def watched(self: ssl.SSLContext, chain: str, key: str, password: str) -> None:
        seen.append((Path(key).stat().st_mode & 0o777, Path(key).read_text().splitlines()[0]))
        assert Path(key).parent.stat().st_mode & 0o777 == 0o700
        load(self, chain, key, password)

    monkeypatch.setattr(ssl.SSLContext, "load_cert_chain", watched)
    Identity(AUTHORITY.issue("server", 1))
    assert seen == [(0o600, "-----BEGIN ENCRYPTED PRIVATE KEY-----")] * 2
    assert list(tmp_path.iterdir()) == []


def test_credentials_are_not_shown_and_no_two_are_alike() -> None:
    one, two = AUTHORITY.issue("worker0", 1), AUTHORITY.issue("worker0", 1)
    assert repr(one) == "Credentials('worker0', run='run', joined=1)"
    for name in ("certificate", "key", "passphrase", "curve_public", "curve_secret"):
        assert getattr(one, name) != getattr(two, name)
    assert one.authority == two.authority
    assert "PRIVATE" not in one.authority + one.certificate


def test_a_clock_that_is_a_month_slow_does_not_keep_a_node_out() -> None:
    from cryptography import x509

    certificate = x509.load_pem_x509_certificate(AUTHORITY.issue("worker0", 1).certificate.encode())
    now = dt.datetime.now(dt.UTC)
    assert certificate.not_valid_before_utc <= now - dt.timedelta(days=29)
    assert certificate.not_valid_after_utc >= now + dt.timedelta(days=364)


def test_curve_keys_are_what_zeromq_takes() -> None:
    import zmq

    public, secret = curve_keypair()
    assert zmq.curve_public(secret.encode()).decode() == public
    assert len(z85.decode(public.encode())) == 32


def test_the_authority_knows_the_public_keys_of_members() -> None:
    authority = Authority("run")
    old, new, server = authority.issue("worker0", 1), authority.issue("worker0", 3), authority.issue("server", 1)
    assert authority.curve_keys([SERVER, worker(0, joined=3)]) == {
        "server": server.curve_public,
        "worker0": new.curve_public,
    }
    assert authority.curve_keys([W0]) == {"worker0": old.curve_public}
    assert old.curve_secret not in str(vars(authority))


# --- against a live node -----------------------------------------------------------------------------------


def attempt(address: tuple[str, int], credentials: Credentials | None, hello: Envelope | None = None) -> str:
    """Dial a node and say hello; how it ends: "welcome", what it answers, or the kind of error."""
    raw = socket.create_connection(address, timeout=5.0)
    sock: socket.socket = raw
    try:
        if credentials is not None:
            sock = Identity(credentials).wrap(raw, dialled=True)
        else:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
            sock = context.wrap_socket(raw)
        assert isinstance(sock, ssl.SSLSocket)
        joined = credentials.joined if credentials else 1
        hello = hello or Envelope("run", 1, "worker0", joined, -1, -1, ["out", 0])
        sock.sendall(wire.encode(wire.HELLO, hello))
        kind, envelope = read_control(sock, time.monotonic() + 5.0)
        return "welcome" if kind == wire.WELCOME else str(envelope.plain[0])
    except (OSError, EOFError) as error:
        return type(error).__name__
    finally:
        sock.close()


async def counted(server: NodePeers, reason: str, count: int) -> None:
    await until(lambda: server.refusals["", reason] >= count, f"{reason} is counted")
    assert server.refusals["", reason] == count


def test_strangers_get_no_further_than_the_handshake_and_are_counted() -> None:
    async def test() -> None:
        cluster = Cluster("tcp")
        (server,) = cluster.start(SERVER)
        cluster.view(server, 1, (SERVER, W0))
        where, authority = server.transport.address, cluster.authority
        strangers = [None, expired(authority), of_another_run(authority), signed_by_a_member(authority)]
        for number, credentials in enumerate(strangers, 1):
            ending = await asyncio.to_thread(attempt, where, credentials)
            assert ending not in ("welcome", "not a member (yet)")
            await counted(server, "handshake", number)
        for words in (b"GET / HTTP/1.1\r\n\r\n", b"", b"\x00" * 400):
            with socket.create_connection(where) as raw:
                raw.sendall(words)
        await counted(server, "handshake", len(strangers) + 3)
        assert not server.transport.is_up("worker0")
        await cluster.close(0.0)

    go(test())


def test_a_member_is_let_in_as_itself_only_and_when_it_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every way in which certificate, hello and view can differ, each answered and counted."""
    monkeypatch.setattr(tcp, "VIEW_S", 0.1)

    async def test() -> None:
        cluster = Cluster("tcp")
        (server,) = cluster.start(SERVER)
        mine = cluster.credentials(W0)
        good = Envelope("run", 1, "worker0", 1, -1, -1, ["out", 0])
        where = server.transport.address
        cases = [
            ("not a member (yet)", mine, good),  # before the first view
            ("hello and certificate differ", mine, good._replace(sender="worker1")),
            ("hello and certificate differ", mine, good._replace(joined=2)),
            ("hello and certificate differ", mine, good._replace(run="other")),
            ("not a member (yet)", cluster.credentials(worker(1)), good._replace(sender="worker1")),
            ("not a member (yet)", cluster.authority.issue("worker0", 2), good._replace(joined=2)),
            ("not a member (yet)", cluster.authority.issue("server", 1), good._replace(sender="server")),
            ("malformed hello", mine, good._replace(plain=["sideways", 0])),
            ("malformed hello", mine, good._replace(plain=["out"])),
            ("malformed hello", mine, good._replace(plain=[])),
            ("malformed hello", mine, good._replace(plain=[["out"], 0])),
        ]
        for number, (answer, credentials, hello) in enumerate(cases, 1):
            assert await asyncio.to_thread(attempt, where, credentials, hello) == answer
            await counted(server, "refused", number)
            if number == 1:
                cluster.view(server, 1, (SERVER, W0))
        for number, resume in enumerate((-1, 1.5, "0", None), 1):
            await asyncio.to_thread(attempt, where, mine, good._replace(plain=["out", resume]))
            await counted(server, "malformed", number)
        assert await asyncio.to_thread(attempt, where, mine, good) == "welcome"
        await cluster.close(0.0)

    go(test())


def test_a_server_that_is_not_who_it_should_be_gets_nothing() -> None:
    """Somebody else of the same run answers at the server's address."""

    async def test() -> None:
        cluster = Cluster("tcp")
        impostor, node = cluster.start(worker(1), W0)
        cluster.via["server"] = impostor.transport.address
        cluster.view(node, 1, (SERVER, W0))
        node.send("server", Pull(version=1))
        await until(lambda: "is worker1#1, not server" in node.transport.silent_for("server")[1], "it is noticed")
        assert not node.transport.is_up("server")
        await cluster.close(0.0)

    go(test())


def test_a_removed_member_is_cut_off_and_its_certificate_is_of_no_use_any_more() -> None:
    async def test() -> None:
        cluster = Cluster("tcp")
        server, node = cluster.start(SERVER, W0)
        cluster.view_all(1, SERVER, W0)
        node.send("server", Pull(version=1))
        await receive(server, 1, WITHIN_S)
        cluster.view(server, 2, (SERVER,))
        told = ("the peer said goodbye", "PeerProtocolError: refused: server says: ['not a member (yet)']")
        await until(lambda: node.transport.silent_for("server")[1] in told, "it is told, or finds out")
        ending = await asyncio.to_thread(attempt, server.transport.address, cluster.credentials(W0))
        assert ending == "not a member (yet)"
        assert server.refusals["", "refused"] > 0
        await cluster.close(0.0)

    go(test())


def test_handshakes_at_one_time_are_bounded() -> None:
    """Mute strangers take up places; the next are hung up on at once, and members get in when places are free."""
    from smolcluster.comms.transport.tcp import MAX_HANDSHAKES

    async def test() -> None:
        cluster = Cluster("tcp")
        (server,) = cluster.start(SERVER)
        cluster.view(server, 1, (SERVER, W0))
        mute = [socket.create_connection(server.transport.address) for _ in range(MAX_HANDSHAKES)]
        await until(lambda: len(server.transport._greeting) == MAX_HANDSHAKES, "all places are taken")
        with socket.create_connection(server.transport.address) as one_more:
            one_more.settimeout(5.0)
            assert await asyncio.to_thread(one_more.recv, 1) == b""
        await counted(server, "too many handshakes", 1)
        for sock in mute:
            sock.close()
        (node,) = cluster.start(W0)
        cluster.view(node, 1, (SERVER, W0))
        node.send("server", Pull(version=7))
        assert await receive(server, 1) == [Pull(version=7)]
        await cluster.close(0.0)

    go(test())


def test_listening_goes_on_when_a_connection_cannot_be_accepted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Out of file descriptors for a moment, or the caller was gone before it was let in."""

    async def test() -> None:
        cluster = Cluster("tcp")
        (server,) = cluster.start(SERVER)
        cluster.view(server, 1, (SERVER, W0))
        failures = iter([OSError(24, "Too many open files"), ConnectionAbortedError(103, "gone again")])
        listener = server.transport._listener

        def failing() -> Any:
            for error in failures:
                raise error
            server.transport._listener = listener
            return listener.accept()

        server.transport._listener = type("Listener", (), {"accept": staticmethod(failing)})()
        await counted(server, "not accepted", 2)
        (node,) = cluster.start(W0)
        cluster.view(node, 1, (SERVER, W0))
        node.send("server", Pull(version=7))
        assert await receive(server, 1) == [Pull(version=7)]
        await cluster.close(0.0)

    go(test())


# --- in time, and not too many -------------------------------------------------------------------------------


def client_hello() -> bytes:
    """The first bytes of a TLS handshake."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    with pytest.raises(ssl.SSLWantReadError):
        context.wrap_bio(incoming, outgoing).do_handshake()
    return outgoing.read()


@pytest.mark.parametrize("at", ["the first byte", "the hello"])
def test_who_speaks_a_byte_at_a_time_is_cut_when_the_handshake_should_be_over(
    at: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each byte is a sign of life, but the deadline is that of the whole handshake; members get in meanwhile."""
    monkeypatch.setattr(tcp, "HANDSHAKE_S", 1.0)

    def trickle(where: tuple[str, int], mine: Credentials) -> float:
        """Seconds until the node hangs up."""
        began = time.monotonic()
        sock: socket.socket = socket.create_connection(where, timeout=5.0)
        data = client_hello()
        if at == "the hello":
            sock = Identity(mine).wrap(sock, dialled=True)
            data = wire.encode(wire.HELLO, Envelope("run", 1, "worker1", 1, -1, -1, ["out", 0]))
        sock.settimeout(0.05)
        with sock:
            for byte in data:
                try:
                    sock.send(bytes([byte]))
                    if sock.recv(1) == b"":
                        break
                except TimeoutError:
                    continue
                except OSError:
                    break
        return time.monotonic() - began

    async def test() -> None:
        cluster = Cluster("tcp")
        (server,) = cluster.start(SERVER)
        cluster.view(server, 1, (SERVER, W0))
        where, mine = server.transport.address, cluster.credentials(worker(1))
        slow = asyncio.create_task(asyncio.to_thread(trickle, where, mine))
        await until(lambda: len(server.transport._greeting) == 1, "it has begun")
        (node,) = cluster.start(W0)
        cluster.view(node, 1, (SERVER, W0))
        node.send("server", Pull(version=7))
        assert await receive(server, 1) == [Pull(version=7)]
        assert 0.8 < await slow < 4.0
        await until(lambda: not server.transport._greeting, "its place is free")
        assert server.refusals.total() == 1
        await cluster.close(0.0)

    go(test())


def test_a_thousand_connections_at_once_take_no_more_threads_than_there_are_places() -> None:
    async def test() -> None:
        cluster = Cluster("tcp")
        (server,) = cluster.start(SERVER)
        cluster.view(server, 1, (SERVER, W0))
        resident, most = resident_bytes(), 0
        strangers = []
        for _ in range(1000):
            strangers.append(socket.create_connection(server.transport.address, timeout=5.0))
            most = max(most, sum(thread.name == "handshake" for thread in threading.enumerate()))
        hung_up = 1000 - tcp.MAX_HANDSHAKES
        await counted(server, "too many handshakes", hung_up)
        assert most <= tcp.MAX_HANDSHAKES
        assert resident_bytes() - resident < 32 << 20
        for stranger in strangers:
            stranger.close()
        (node,) = cluster.start(W0)
        cluster.view(node, 1, (SERVER, W0))
        node.send("server", Pull(version=7))
        assert await receive(server, 1) == [Pull(version=7)]
        await cluster.close(0.0)

    go(test())


def test_a_member_may_dial_before_the_view_that_names_it_has_come() -> None:
    """At start the controller tells one after the other; nobody is refused for that, and nothing is written down."""

    async def test() -> None:
        cluster = Cluster("tcp")
        (server,) = cluster.start(SERVER)
        where = server.transport.address
        for generation, member in ((1, W0), (2, worker(1, joined=2))):
            mine = cluster.credentials(member)
            hello = Envelope("run", generation, member.name, member.joined, -1, -1, ["out", 0])
            early = asyncio.create_task(asyncio.to_thread(attempt, where, mine, hello))
            await until(lambda: bool(server.transport._greeting), "it has dialled")
            assert not early.done()
            cluster.view(server, generation, (SERVER, W0, member) if generation > 1 else (SERVER, W0))
            assert await early == "welcome"
        assert not server.refusals
        assert not [event for event in cluster.events if event["event"] == "journal"]
        await cluster.close(0.0)

    go(test())


def test_closing_does_not_wait_for_who_waits_for_a_view() -> None:
    async def test() -> None:
        cluster = Cluster("tcp")
        (server,) = cluster.start(SERVER)
        early = asyncio.create_task(asyncio.to_thread(attempt, server.transport.address, cluster.credentials(W0)))
        await until(lambda: bool(server.transport._greeting), "it has dialled")
        began = time.monotonic()
        await cluster.close(0.0)
        assert time.monotonic() - began < 1.5
        assert await early != "welcome"

    go(test())

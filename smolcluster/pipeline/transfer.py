"""Pushing and pulling one large tensor through ``Peers``, against a bare pair of sockets that does the same."""

from __future__ import annotations

import asyncio
import multiprocessing
import socket
import statistics
import time
from collections.abc import Callable
from typing import Any

from smolcluster.comms.security import Authority, Credentials, Identity
from smolcluster.comms.transport.tcp import Tcp
from smolcluster.errors import RunFailed
from smolcluster.messages import Params, Push
from smolcluster.ports import Member, Received, View

ROUNDS = 12
WARMUP = 3
WAIT_S = 60.0
SERVER = Member(name="server", role="server", rank=0)
WORKER = Member(name="worker", role="worker", rank=0)


def transfers(megabytes: int, repeats: int, say: Callable[[str], None]) -> list[dict[str, Any]]:
    """Rows of bench.json: Peers and bare sockets, each plain and encrypted, interleaved."""
    numel = megabytes * 10**6 // 4
    cases = [(kind, lock) for lock in ("off", "on") for kind in ("peers", "bare")]
    times: dict[tuple[str, str], list[float]] = {case: [] for case in cases}
    for repeat in range(repeats):
        for kind, lock in cases:
            times[kind, lock].append(_measure(kind, lock, numel))
        say(f"{repeat + 1}/{repeats} push and pull of {megabytes} MB")
    rows = []
    for kind, lock in cases:
        ratios = [a / b for a, b in zip(times[kind, lock], times["bare", lock], strict=True)]
        rows.append(
            {
                "case": f"{megabytes} MB",
                "algo": "Peers" if kind == "peers" else "bare sockets",
                "comms": "tcp",
                "encryption": lock,
                "workers": 1,
                "link": "loopback",
                "step_time_s": statistics.median(times[kind, lock]),
                "wire_bytes_per_step": 8 * numel,
                "ratio_to_bare": statistics.median(ratios),
            }
        )
    return rows


def _measure(kind: str, lock: str, numel: int) -> float:
    """Median seconds of one push and pull between two processes."""
    context = multiprocessing.get_context("spawn")
    authority = Authority("bench")
    ours, theirs = context.Pipe()
    serve = _serve_peers if kind == "peers" else _serve_bare
    other = context.Process(target=serve, args=(authority.issue("server", 0), lock, numel, theirs), daemon=True)
    other.start()
    if not ours.poll(WAIT_S):
        raise RunFailed("bench: the other process of a transfer did not start")
    address = ours.recv()
    credentials = authority.issue("worker", 0)
    try:
        if kind == "peers":
            times = asyncio.run(_push_and_pull(credentials, lock, numel, address))
        else:
            times = _push_and_pull_bare(credentials, lock, numel, address)
    finally:
        other.join(WAIT_S)
    return statistics.median(times[WARMUP:])


def _peers(credentials: Credentials, lock: Any, me: Member, numel: int) -> Any:
    import torch

    from smolcluster.comms.buffers import Layout
    from smolcluster.comms.peers import NodePeers, Patience

    torch.set_num_threads(1)
    (transport,) = Tcp(encryption=lock).transports([credentials], "127.0.0.1", 0)
    patience = Patience(connect_s=WAIT_S, silent_s=WAIT_S, lost_s=WAIT_S)
    peers = NodePeers("bench", me, transport, patience, lambda event, **fields: None)
    peers.agree({"parameters": Layout("float32", numel), "gradient": Layout("float32", numel)})
    return peers


def _serve_peers(credentials: Credentials, lock: str, numel: int, pipe: Any) -> None:
    asyncio.run(_answer(credentials, lock, numel, pipe))


async def _answer(credentials: Credentials, lock: str, numel: int, pipe: Any) -> None:
    import torch

    peers = _peers(credentials, lock, SERVER, numel)
    peers.change_view(View(generation=1, members=(SERVER, WORKER)), [(WORKER, None)], "start")
    pipe.send(peers.transport.address)
    weights, answered, delivery = torch.ones(numel), 0, None
    while answered < ROUNDS:
        if isinstance(await peers.next(time.monotonic() + WAIT_S, "a push"), Received):
            answered += 1
            delivery = peers.send(WORKER.name, Params(version=answered, reason="", parameters=weights))
    if delivery is not None:
        await delivery.wait(WAIT_S)
    await peers.close(1.0)


async def _push_and_pull(credentials: Credentials, lock: str, numel: int, address: tuple[str, int]) -> list[float]:
    import torch

    peers = _peers(credentials, lock, WORKER, numel)
    peers.change_view(View(generation=1, members=(SERVER, WORKER)), [(SERVER, address)], "start")
    gradient, times = torch.ones(numel), []
    for number in range(ROUNDS):
        began = time.perf_counter()
        push = Push(
            lease=number, version=0, num_samples=1, num_items=1, loss=0.0, compute_s=0.0, wait_s=0.0, gradient=gradient
        )
        peers.send(SERVER.name, push)
        while not isinstance(await peers.next(time.monotonic() + WAIT_S, "the weights"), Received):
            continue
        times.append(time.perf_counter() - began)
    await peers.close(1.0)
    return times


def _wrapped(sock: socket.socket, credentials: Credentials, lock: str, dialled: bool) -> socket.socket:
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return Identity(credentials).wrap(sock, dialled=dialled) if lock == "on" else sock


def _serve_bare(credentials: Credentials, lock: str, numel: int, pipe: Any) -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    pipe.send(listener.getsockname())
    push, pull = (_wrapped(listener.accept()[0], credentials, lock, False) for _ in range(2))
    inbox, outbox = memoryview(bytearray(4 * numel)), memoryview(bytearray(4 * numel))
    for _ in range(ROUNDS):
        _fill(push, inbox)
        pull.sendall(outbox)
    for sock in (listener, push, pull):
        sock.close()


def _push_and_pull_bare(credentials: Credentials, lock: str, numel: int, address: tuple[str, int]) -> list[float]:
    push, pull = (_wrapped(socket.create_connection(address), credentials, lock, True) for _ in range(2))
    inbox, outbox, times = memoryview(bytearray(4 * numel)), memoryview(bytearray(4 * numel)), []
    for _ in range(ROUNDS):
        began = time.perf_counter()
        push.sendall(outbox)
        _fill(pull, inbox)
        times.append(time.perf_counter() - began)
    push.close()
    pull.close()
    return times


def _fill(sock: socket.socket, view: memoryview) -> None:
    position = 0
    while position < len(view):
        position += sock.recv_into(view[position:])

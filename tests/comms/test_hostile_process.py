"""The same lies against a server that is a process of its own, started as the controller starts it."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import pytest

from smolcluster.cluster.controller import roster
from smolcluster.comms.security import Authority
from smolcluster.messages import Join
from smolcluster.pipeline.job import cache_folder
from smolcluster.ports import Member
from smolcluster.spec.compose import validate_jobs
from smolcluster.spec.run import RunSpec
from tests.comms.cluster import resident_bytes
from tests.comms.hostile import Liar, TcpWire
from tests.in_memory import run

pytestmark = pytest.mark.usefixtures("torch_settings", "no_thread_left")
WORDS = ("train.epochs=1", "train.export=false", "cluster.num_workers=1", "train.eval_steps=null")
SERVER = Member(name="server", role="server", rank=0, joined=1)
LIAR = Member(name="worker1", role="worker", rank=1, joined=1)
HONEST = Member(name="worker0", role="worker", rank=0, joined=2)
COUNT = 1000
LIMIT_S = 60.0


class NodeProcess:
    """``python -m smolcluster.node``: what it is told, and what it says."""

    def __init__(self, member: Member, spec: RunSpec, authority: Authority, folder: Path) -> None:
        self.member, self.events = member, list[dict[str, Any]]()
        self.changed, self.ended = threading.Condition(), False
        self.process = subprocess.Popen(
            [sys.executable, "-m", "smolcluster.node"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        self.reader = threading.Thread(target=self._read)
        self.reader.start()
        members = roster(spec)
        self.tell(
            op="start",
            run="test",
            spec=spec.plain(),
            members=[vars(member)],
            credentials=[dataclasses.asdict(authority.issue(member.name, member.joined))],
            roster=[vars(each) for each in members],
            host="127.0.0.1",
            listens_on="127.0.0.1",
            links=spec.algo.links,
            relays=(),
            folder=str(folder),
            cache=str(cache_folder()),
            threads=1,
            uses=None,
            resume=None,
            purpose="train",
        )

    def __enter__(self) -> NodeProcess:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if error is not None:
            self.process.kill()
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(LIMIT_S)
        self.reader.join()

    def _read(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as lines:
            for line in lines:
                with self.changed:
                    self.events.append(json.loads(line))
                    self.changed.notify_all()
        with self.changed:
            self.ended = True
            self.changed.notify_all()

    def tell(self, **command: Any) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(command).encode() + b"\n")
        self.process.stdin.flush()

    def view(self, generation: int, addresses: Mapping[str, Any], *members: Member) -> None:
        plain = [vars(member) for member in members]
        self.tell(op="view", generation=generation, members=plain, addresses=addresses, reason="test", curve_keys={})

    def until(self, true: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """The first event for which this is so; waits for it."""
        with self.changed:
            self.changed.wait_for(lambda: self.ended or any(map(true, self.events)), LIMIT_S)
            found = next(filter(true, self.events), None)
            assert found is not None, self.events[-3:]
            return found

    def said(self, event: str) -> dict[str, Any]:
        return self.until(lambda each: each["event"] == event)

    def until_in_use(self, expected: tuple[int, int]) -> None:
        """Descriptors and threads are as many as that, after a moment."""
        deadline = time.monotonic() + LIMIT_S
        while self.in_use != expected:
            assert time.monotonic() < deadline, f"{self.in_use}, expected {expected}"

    @property
    def in_use(self) -> tuple[int, int]:
        """(descriptors, threads) of the process."""
        folder = Path(f"/proc/{self.process.pid}")
        if not folder.is_dir():  # this system does not tell
            return 0, 0
        return len(list((folder / "fd").iterdir())), len(list((folder / "task").iterdir()))


def test_a_server_process_outlives_a_member_that_lies(tmp_path: Path) -> None:
    """It waits for the liar to join; the liar lies, is removed, and an honest worker trains to the same weights."""
    (spec,) = validate_jobs([*WORDS, "comms=tcp"], None)
    authority = Authority("test")
    mine = authority.issue(LIAR.name, LIAR.joined)
    with (
        NodeProcess(SERVER, spec, authority, tmp_path / "run") as server,
        NodeProcess(HONEST, spec, authority, tmp_path / "run") as worker,
    ):
        address = server.said("listening")["address"]
        ready = server.said("ready")
        numel = ready["params"]
        server.view(1, {}, SERVER, LIAR)
        server.until(lambda event: event.get("state") == "training")
        before, resident = server.in_use, resident_bytes(server.process.pid)
        liar = Liar(7, numel=numel, run="test", joined=1, generation=1)
        with TcpWire((address[0], address[1]), mine, 1) as wire:
            sent: dict[str, int] = {}
            while sum(sent.values()) < COUNT:
                lie = liar.next(wire.number, wire.ack)
                if lie.what != "future generation":  # it would wait comms.timeout_s for that view
                    what = "malformed" if lie.what == "malformed early" else lie.what
                    wire.say(lie)
                    sent[what] = sent.get(what, 0) + 1
            # its only true word, and the last: when that is heard, so is all the rest
            wire.say(liar.frame("role", Join.code, wire.number, wire.ack, [ready["fingerprint"]]))
            server.until(lambda event: event.get("kind") == "joined" and event["peer"] == LIAR.name)
            grown = resident_bytes(server.process.pid) - resident
        assert not [event for event in server.events if event["event"] == "metrics"], "no step was made"
        server.until_in_use(before)
        addresses = {"server": address, "worker0": worker.said("listening")["address"]}
        for node in (server, worker):
            node.view(2, addresses, SERVER, HONEST)
        digest = server.said("result")["digest"]
        refusals = server.said("finished")["refusals"]
    baseline = run(tmp_path / "alone", *WORDS)
    assert digest == baseline.digest
    by_comms = {key.removeprefix("worker1/"): n for key, n in refusals.items() if key.startswith("worker1/")}
    (final,) = [event for event in server.events if event["event"] == "metrics"][-1:]
    by_role = final["late"].get("worker1", 0) + final["refused"].get("worker1", 0)
    assert {**by_comms, "role": by_role} == sent
    assert grown < 64 << 20

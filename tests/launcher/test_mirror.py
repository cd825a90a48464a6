"""A run's directory on another machine, brought here: all of it, nothing twice, and nothing that is damaged."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import pytest
from hydra_plugins.smolcluster_launcher._here import Here
from hydra_plugins.smolcluster_launcher._mirror import fetch_run, turn
from hydra_plugins.smolcluster_launcher._reached import Done, HostFailed


class Counting(Here):
    """Counts the bytes that it hands over."""

    num_bytes = 0

    async def run(
        self,
        argv: Sequence[str],
        *,
        stdin: Iterable[bytes] = (),
        out: Callable[[bytes], object] | None = None,
        silent_s: float = 60.0,
    ) -> Done:
        def take(data: bytes) -> None:
            self.num_bytes += len(data)
            assert out is not None
            out(data)

        return await super().run(argv, stdin=stdin, out=take, silent_s=silent_s)


def save(run: Path, step: int, weights: bytes) -> None:
    folder = run / "checkpoints" / f"step-{step}"
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(weights)
    state = {"step": step, "sha256": {"model.safetensors": hashlib.sha256(weights).hexdigest()}}
    (folder / "state.json").write_text(json.dumps(state))
    latest = run / "checkpoints" / "latest"
    latest.unlink(missing_ok=True)
    latest.symlink_to(folder.name)


@pytest.fixture
def there(tmp_path: Path) -> Path:
    run = tmp_path / "there"
    for name in ("metrics.jsonl", "summary.json", "logs/worker-rank0-a.jsonl", "export/model.pt2", ".live.json"):
        (run / name).parent.mkdir(parents=True, exist_ok=True)
        (run / name).write_bytes(os.urandom(200_000))
    save(run, 1, b"one")
    save(run, 2, b"two")
    return run


async def in_turn(machine: Counting, there: Path, here: Path) -> None:
    async with turn(here):
        await fetch_run(machine, sys.executable, str(there), here)


def fetch(there: Path, here: Path) -> int:
    """How many bytes came."""
    machine = Counting()
    asyncio.run(in_turn(machine, there, here))
    return machine.num_bytes


def contents(run: Path) -> dict[str, bytes]:
    return {
        path.relative_to(run).as_posix(): path.read_bytes()
        for path in run.rglob("*")
        if path.is_file() and not any(part.startswith(".") for part in path.relative_to(run).parts)
    }


def test_all_of_it_and_nothing_twice(there: Path, tmp_path: Path) -> None:
    here = tmp_path / "here"
    here.mkdir()
    assert fetch(there, here) > 800_000
    assert contents(here) == contents(there)
    assert (here / "checkpoints" / "latest").resolve() == here / "checkpoints" / "step-2"
    assert not (here / ".live.json").exists()
    assert fetch(there, here) < 20_000
    (there / "metrics.jsonl").write_bytes(os.urandom(200_001))
    save(there, 3, b"three")
    (there / "checkpoints" / "step-1" / "state.json").unlink()
    assert 200_000 < fetch(there, here) < 250_000
    assert contents(here)["metrics.jsonl"] == contents(there)["metrics.jsonl"]
    assert sorted(path.name for path in (here / "checkpoints").iterdir()) == ["latest", "step-2", "step-3"]
    assert not list(here.glob(".incoming*"))


def test_a_damaged_checkpoint_is_not_taken(there: Path, tmp_path: Path) -> None:
    here = tmp_path / "here"
    here.mkdir()
    (there / "checkpoints" / "step-2" / "model.safetensors").write_bytes(b"twe")
    with pytest.raises(HostFailed, match=r"step-2/model.safetensors has arrived damaged: its sha256 is not the one in"):
        fetch(there, here)
    assert not (here / "checkpoints" / "step-2").exists()
    assert not (here / "summary.json").exists(), "the summary comes last: what has one is whole"


def test_two_at_a_time_take_turns(there: Path, tmp_path: Path) -> None:
    here = tmp_path / "here"
    here.mkdir()
    machines = [Counting(), Counting()]

    async def both() -> None:
        await asyncio.gather(*(in_turn(machine, there, here) for machine in machines))

    asyncio.run(both())
    assert contents(here) == contents(there)
    assert min(machine.num_bytes for machine in machines) < 20_000, "the second had nothing to fetch"


def test_there_may_be_nothing_yet(tmp_path: Path) -> None:
    (tmp_path / "here").mkdir()
    assert fetch(tmp_path / "nowhere", tmp_path / "here") == 0

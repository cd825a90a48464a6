"""Checkpoints: whole or not at all, hashed, pruned, and readable from where a path may point."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest
import torch

from smolcluster.errors import CheckpointError
from smolcluster.spec.resume import checkpoint_of
from smolcluster.train.checkpoint import Checkpoint, load, save


def checkpoint(step: int) -> Checkpoint:
    tensors = {"w": torch.full((3, 2), float(step)), "b": torch.arange(4)}
    return Checkpoint(step=step, plain={"cursor": [1, step]}, model=tensors, optimizer={"exp_avg/w": torch.ones(3, 2)})


def test_round_trip(tmp_path: Path) -> None:
    folder = save(tmp_path, checkpoint(7), keep=3, best=True)
    assert folder == tmp_path / "step-7"
    for path in (folder, tmp_path / "latest", tmp_path / "best"):
        found = load(path)
        assert found.step == 7
        assert found.plain == {"cursor": [1, 7]}
        assert torch.equal(found.model["w"], torch.full((3, 2), 7.0))
        assert found.model["b"].dtype == torch.int64
        assert set(found.optimizer) == {"exp_avg/w"}
        assert found.algorithm == {}


def test_keeps_the_newest_and_the_best(tmp_path: Path) -> None:
    for step in range(1, 7):
        save(tmp_path, checkpoint(step), keep=2, best=step == 2)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["best", "latest", "step-2", "step-5", "step-6"]
    assert load(tmp_path / "best").step == 2
    save(tmp_path, checkpoint(6), keep=2, best=True)
    assert load(tmp_path / "best").step == 6, "the same step again replaces it"


def test_leftovers_of_a_killed_writer_go(tmp_path: Path) -> None:
    (tmp_path / ".writing-3-999").mkdir(parents=True)
    save(tmp_path, checkpoint(4), keep=2, best=False)
    assert not (tmp_path / ".writing-3-999").exists()


@pytest.mark.parametrize("crash_at", ["fsync", "rename", "replace"])
def test_a_crash_at_any_point_leaves_the_former_one_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, crash_at: str
) -> None:
    save(tmp_path, checkpoint(1), keep=3, best=True)

    def crash(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(*((os, "fsync") if crash_at == "fsync" else (Path, crash_at)), crash)
    with pytest.raises(KeyboardInterrupt):
        save(tmp_path, checkpoint(2), keep=3, best=True)
    monkeypatch.undo()
    assert load(tmp_path / "latest").step == 1
    assert load(tmp_path / "best").step == 1


@pytest.mark.parametrize("nth", [1, 2])
def test_a_crash_while_a_step_is_replaced_leaves_the_former_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nth: int
) -> None:
    save(tmp_path, checkpoint(1), keep=3, best=True)
    rename, calls = Path.rename, []

    def crash(path: Path, target: Path) -> Path:
        calls.append(path)
        if len(calls) == nth:
            raise KeyboardInterrupt
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", crash)
    with pytest.raises(KeyboardInterrupt):
        save(tmp_path, checkpoint(1), keep=3, best=False)
    monkeypatch.undo()
    assert load(tmp_path / "latest").step == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["best", "latest", "step-1"]


def test_a_kill_between_the_renames_leaves_the_step_before(tmp_path: Path) -> None:
    root = tmp_path / "checkpoints"
    for step in (5, 6):
        save(root, checkpoint(step), keep=3, best=False)
    (root / "step-6").rename(root / ".replaced-6-999")
    assert checkpoint_of(tmp_path) == checkpoint_of(root / "latest") == root / "step-5"
    save(root, checkpoint(7), keep=3, best=False)
    assert sorted(path.name for path in root.iterdir()) == ["latest", "step-5", "step-7"]


def test_damage_is_named(tmp_path: Path) -> None:
    folder = save(tmp_path, checkpoint(1), keep=3, best=False)
    file = folder / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    with pytest.raises(CheckpointError, match=r"model\.safetensors is damaged: its sha256"):
        load(folder)
    file.unlink()
    with pytest.raises(CheckpointError, match=r"model\.safetensors is missing"):
        load(folder)
    (folder / "state.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"state\.json is damaged"):
        load(folder)
    (folder / "state.json").write_text(json.dumps({"format": 99}))
    with pytest.raises(CheckpointError, match="checkpoint format 99; this version reads 1"):
        load(folder)
    with pytest.raises(CheckpointError, match="it has no state.json"):
        load(tmp_path / "step-5")


def test_pointers_without_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError("no links here")

    monkeypatch.setattr(Path, "symlink_to", refuse)
    save(tmp_path / "checkpoints", checkpoint(3), keep=3, best=True)
    assert (tmp_path / "checkpoints" / "latest").read_text() == "step-3"
    assert load(checkpoint_of(tmp_path)).step == 3
    assert checkpoint_of(tmp_path / "checkpoints" / "best") == tmp_path / "checkpoints" / "step-3"


def test_a_full_disk_is_named_and_leaves_nothing_half_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path, checkpoint(1), keep=3, best=True)
    flushed = []

    def full(_: int) -> None:
        flushed.append(1)
        if len(flushed) == 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(CheckpointError) as error:
        save(tmp_path, checkpoint(2), keep=3, best=True)
    assert str(error.value) == f"the checkpoint {tmp_path / 'step-2'} cannot be written: No space left on device"
    assert error.value.final
    assert sorted(path.name for path in tmp_path.iterdir()) == ["best", "latest", "step-1"]
    assert load(tmp_path / "latest").step == 1


def test_a_state_that_is_no_state_is_damage(tmp_path: Path) -> None:
    folder = save(tmp_path, checkpoint(1), keep=3, best=False)
    (folder / "state.json").write_text("[]")
    with pytest.raises(CheckpointError, match=r"state\.json is damaged: it does not say its format"):
        load(folder)
    (folder / "state.json").unlink()
    (folder / "state.json").mkdir()
    with pytest.raises(CheckpointError, match=r"state\.json cannot be read: Is a directory"):
        load(folder)

"""The key of Weights & Biases stays with the command that was given it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.integration.command import Command

KEY = "0123feedfacefeedfacefeedfacefeedfacebeef"


def environment(pid: int) -> bytes:
    return Path(f"/proc/{pid}/environ").read_bytes()


def parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def arguments() -> bytes:
    """The command lines of all processes of this machine."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            found.append((folder / "cmdline").read_bytes())
        except OSError:
            continue  # it has ended
    return b"\n".join(found)


def test_the_key_is_in_no_file_no_argument_and_no_node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    words = ("tracking=wandb", "tracking.mode=offline", "train.epochs=1000", "train.checkpoint_steps=20")
    with Command(tmp_path / "run", (*words, "train.export=false", "comms.chaos_delay_s=0.01")) as run:
        run.wait_until(lambda: run.steps() > 25, "step 25")
        run.wait_until(lambda: any(run.run.glob("wandb/*run-*")), "W&B's own folder")
        assert KEY.encode() in environment(run.process.pid), "the command itself has it"
        nodes = list(run.pids().values())
        for pid in {*nodes, *map(parent, nodes)} - {run.process.pid}:
            assert KEY.encode() not in environment(pid)
            assert b"WANDB_" not in environment(pid)
        assert KEY.encode() not in arguments()
        run.process.send_signal(2)
        assert run.finish() == 130
    files = [path for path in run.folder.rglob("*") if path.is_file()]
    assert len(files) > 15
    assert not [path for path in files if KEY.encode() in path.read_bytes()]
    assert not [path for path in files if KEY in os.fspath(path)]
    assert KEY not in "\n".join(run.lines) + run.stderr

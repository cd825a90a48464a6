"""What is refused with hydra.launcher.tmux=true, before anything starts."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from smolcluster.cli.main import main
from smolcluster.panes import tmux

WORDS = ["hydra.launcher.tmux=true", "train.max_steps=1"]


def refused(capsys: pytest.CaptureFixture[str], folder: Path, *words: str) -> str:
    """The one problem that is told; no run has begun."""
    assert main([f"hydra.sweep.dir={folder}", *words]) == 2
    heading, problem = capsys.readouterr().err.splitlines()
    assert heading == "smolcluster: 1 problem in the configuration"
    assert not (folder / "0").exists()
    return problem.strip()


def test_no_tmux_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setattr(tmux, "PLACES", ())
    told = refused(capsys, tmp_path / "run", *WORDS)
    assert told.startswith("hydra.launcher.tmux=True: this machine has no tmux, which hydra.launcher.tmux=true needs")


@pytest.mark.skipif(shutil.which("tmux") is None, reason="tmux is missing (package tmux)")
def test_nodes_in_one_process(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert refused(capsys, tmp_path / "run", *WORDS, "comms=memory") == (
        "comms=memory: needs nodes that are processes of their own: hydra.launcher.tmux=false, or comms=tcp; "
        "nearest valid: tcp"
    )


def test_neither_true_nor_false(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told = refused(capsys, tmp_path / "run", "hydra.launcher.tmux=perhaps")
    assert "cannot be composed" in told
    assert "perhaps" in told

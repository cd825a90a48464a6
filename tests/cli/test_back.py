"""``attach=`` and ``stop=`` of what is no run that was left going: one line that says so."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from smolcluster.cli.main import main

LEFT = {
    "run": "0-abc", "node": "server", "folder": "", "python": "/usr/bin/python3", "target": None,
    "connect_timeout_s": 1.0,
}  # fmt: skip


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main(words) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    heading, line = captured.err.splitlines()
    assert heading == "smolcluster: 1 problem in the configuration"
    return line.strip()


@pytest.mark.parametrize("key", ["attach", "stop"])
def test_what_is_no_run_that_was_left_going(key: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    nearest = f"nearest valid: {key}=outputs/<date>/<time>/<n>"
    assert refused(capsys, f"{key}=") == f"{key}=: takes the directory of one run, and nothing else; {nearest}"
    assert refused(capsys, f"{key}=a", "seed=3") == (
        f"{key}=a seed=3: takes the directory of one run, and nothing else; {nearest}"
    )
    assert refused(capsys, "seed=3", f"{key}=a").startswith(f"{key}=a seed=3: takes")
    nowhere = tmp_path / "nowhere"
    assert refused(capsys, f"{key}={nowhere}") == f"{key}={nowhere}: must be the directory of a run; {nearest}"
    run = tmp_path / "run"
    (run / ".hydra").mkdir(parents=True)
    assert refused(capsys, f"{key}={run}") == (
        f"{key}={run}: was not detached (it has no detached.json): it has run, or runs, where its command was typed"
    )
    for damaged in ("no json", "[]", "{}", json.dumps({**LEFT, "more": 1}), json.dumps({**LEFT, "target": {"x": 1}})):
        (run / "detached.json").write_text(damaged)
        assert refused(capsys, f"{key}={run}").endswith("its detached.json is damaged, or of another version")


def test_a_run_that_is_over_is_shown(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "detached.json").write_text(json.dumps({**LEFT, "folder": str(tmp_path)}))
    summary = {"status": "failed", "reason": "mini1: the disk is full", "purpose": "train", "nodes": []}
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    assert main([f"attach={tmp_path}"]) == 1
    captured = capsys.readouterr()
    assert captured.out.splitlines()[0] == "the run is over, and all of it is here"
    assert captured.out.splitlines()[-1] == str(tmp_path)
    assert captured.err == "smolcluster: mini1: the disk is full\n"


def test_a_machine_that_is_gone(capsys: pytest.CaptureFixture[str], tmp_path: Path, no_thread_left: None) -> None:
    target = {"name": "mini1", "host": "127.0.0.1", "user": "me", "port": 1, "identity": None, "jump": None}
    left = {**LEFT, "node": "mini1", "target": target}
    (tmp_path / "detached.json").write_text(json.dumps(left))
    assert main([f"attach={tmp_path}"]) == 1
    assert capsys.readouterr().err == (
        "smolcluster: mini1: 127.0.0.1:1 refuses connections: is its SSH server on (macOS: Sharing, Remote Login)?\n"
    )


def test_a_directory_that_is_gone(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    (tmp_path / "detached.json").write_text(json.dumps({**LEFT, "folder": str(gone)}))
    assert main([f"attach={tmp_path}"]) == 1
    assert capsys.readouterr().err == (
        f"smolcluster: server: {gone} is not there any more: the run cannot be fetched\n"
    )

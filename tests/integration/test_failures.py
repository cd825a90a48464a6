"""What cannot go well ends at once: with one line that says what, where and why, and without a traceback."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from smolcluster.cluster.local import LocalForks
from smolcluster.errors import CheckpointError, ConfigError, DataError, PeerLost, Problem, RunFailed, SmolclusterError
from smolcluster.node.run import described
from smolcluster.tracking.rundir import RunReader
from tests.integration.command import Command

LIMIT_KB = 64
"""More than any of the run's records and the model need, less than AdamW's state."""


def failed(folder: Path, *words: str, code: int = 1) -> Command:
    """Run to its end, which must be that of a failure told in one line."""
    with Command(folder, words) as run:
        assert run.finish() == code, "\n".join(run.lines) + run.stderr
        assert len(run.stderr.splitlines()) == 1, run.stderr
        assert "Traceback" not in "\n".join(run.lines) + run.stderr
    return run


def test_a_full_disk_ends_the_run_and_leaves_what_was_there(tmp_path: Path) -> None:
    """A limit on the size of files, as a full disk is nothing that a test can have everywhere."""
    words = "algo=single train.max_steps=5 train.export=false train.eval_samples=8 hydra.sweep.dir=run"
    done = subprocess.run(
        ["bash", "-c", f"ulimit -f {LIMIT_KB}; exec '{sys.executable}' -m smolcluster {words}"],
        cwd=tmp_path,
        env={**os.environ, "COLUMNS": "200"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 1
    folder = tmp_path / "run" / "0"
    where = folder / "checkpoints" / "step-5"
    reason = f"worker0: the checkpoint {where} cannot be written: File too large; no checkpoint was saved yet"
    assert done.stderr == f"smolcluster: {reason}\n"
    assert "Traceback" not in done.stdout
    assert list((folder / "checkpoints").iterdir()) == []
    summary = json.loads((folder / "summary.json").read_text())
    assert (summary["status"], summary["reason"], summary["steps"]) == ("failed", reason, 5)
    starts = [event for event in RunReader(folder).events() if event.get("kind") == "started"]
    assert len(starts) == 1, "what would only happen again is not tried again"


def test_data_that_cannot_be_read_is_nothing_to_start_again_for(tmp_path: Path) -> None:
    (tmp_path / "bad.txt").write_bytes(b"\xff\xfe is not UTF-8")
    run = failed(tmp_path / "run", "model=tiny_lstm", "data=text", f"data.path={tmp_path}/bad.txt", "train.max_steps=1")
    assert f"{tmp_path}/bad.txt: not UTF-8 at byte 0" in run.stderr
    assert len(run.journal("started")) == 3
    assert run.stderr.startswith(("smolcluster: server: ", "smolcluster: worker"))


@pytest.mark.parametrize(
    ("error", "final"),
    [
        (CheckpointError("step-4/model.safetensors is damaged"), True),
        (DataError("data.path=/x: no such folder"), True),
        (ConfigError([Problem(key="a", value=1, rule="must be 2"), Problem(key="b", value=1, rule="must be 3")]), True),
        (PeerLost("worker1", "waiting for work", "nothing came within 30 s"), False),
        (RunFailed("cannot listen on 127.0.0.1:80"), False),
    ],
)
def test_a_node_says_whether_to_try_again(error: SmolclusterError, final: bool) -> None:
    said = described(error)
    assert (said["final"], said["kind"]) == (final, type(error).__name__)
    assert "\n" not in said["reason"]
    assert said["reason"].startswith(str(error).partition("\n")[0])


def test_a_build_that_hangs_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "hanging.py").write_text("import threading\n\n\ndef load():\n    threading.Event().wait()\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    words = ("algo=single", "data=custom", "data.target=hanging:load", "train.max_steps=1")
    run = failed(tmp_path / "run", *words, "cluster.start_timeout_s=10")
    assert "worker0: building the model and the data has not got on for 10 s (cluster.start_timeout_s)" in run.stderr
    assert run.summary["seconds"] < 40


def test_without_the_process_that_nodes_are_forked_from_there_is_an_error_and_no_wait() -> None:
    async def start_and_start() -> list[str]:
        forks = LocalForks(1)
        said = []
        starting = asyncio.create_task(forks.start("worker0"))
        while forks._process is None:
            await asyncio.sleep(0)
        os.kill(forks._process.pid, signal.SIGKILL)
        for start in (starting, forks.start("worker1")):
            with pytest.raises(RunFailed) as error:
                await start
            said.append(str(error.value))
        await forks.close()
        return said

    for words in asyncio.run(asyncio.wait_for(start_and_start(), 20)):
        assert words.startswith("the process that nodes of this machine are forked from: ")

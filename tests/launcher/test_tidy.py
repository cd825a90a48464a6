"""What is left on other machines: what goes, and what stays since somebody uses it."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hydra_plugins.smolcluster_launcher import _tidy

DAY_S = 86400.0
HOLD = """
import sys
from pathlib import Path
from smolcluster.node.presence import Presence
presence = Presence(Path(sys.argv[1]), "mini2", sys.argv[2:], 60.0)
presence.open()
print("open", flush=True)
sys.stdin.read()
presence.close()
"""


@contextmanager
def node(workdir: Path, *uses: str) -> Iterator[subprocess.Popen[str]]:
    """A process that is there as a node is."""
    words = [sys.executable, "-c", HOLD, str(workdir / "runs" / "0-abc"), *uses]
    process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == "open\n"
        yield process
    finally:
        process.stdin.close()
        process.stdout.close()
        process.wait(20)


def entry(workdir: Path, name: str, days: float) -> Path:
    """A bundle that was last used so many days ago."""
    path = workdir / name
    path.mkdir(parents=True)
    (path / "file").write_text("x")
    os.utime(path, (time.time() - days * DAY_S,) * 2)
    return path


def asked(do: str, workdir: Path, **more: Any) -> dict[str, Any]:
    """The script's answer, run as on another machine."""
    request = json.dumps({"do": do, "workdir": str(workdir), **more})
    command = [sys.executable, "-I", "-", request]
    done = subprocess.run(command, input=Path(_tidy.__file__).read_bytes(), capture_output=True, check=True)
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def begun(workdir: Path, *uses: str) -> dict[str, Any]:
    return asked("begin", workdir, uses=list(uses), keep_s=30 * DAY_S)


def test_what_nobody_has_used_for_long_goes_and_all_else_stays(tmp_path: Path) -> None:
    old = entry(tmp_path, "code/old", 31)
    asked_for = entry(tmp_path, "files/asked", 31)
    running = entry(tmp_path, "env/running", 31)
    fresh = entry(tmp_path, "code/fresh", 29)
    cut, arriving = entry(tmp_path, "code/x.part-1", 2), entry(tmp_path, "code/y.part-2", 0.5)
    foreign = entry(tmp_path, "cache/mine", 99)
    with node(tmp_path, "env/running"):
        answer = begun(tmp_path, "files/asked", "code/not-there-yet")
    assert answer["removed"] == 2
    assert answer["ended"] == []
    assert answer["free_bytes"] > 0
    assert answer["there"] == ["files/asked"]
    assert [path.exists() for path in (old, cut)] == [False, False]
    assert all(path.exists() for path in (asked_for, running, fresh, arriving, foreign))
    assert time.time() - asked_for.stat().st_mtime < 60, "it is used now"
    begun(tmp_path)
    assert not running.exists(), "nobody uses it any more"


def test_a_node_leaves_its_files_only_where_it_is_killed(tmp_path: Path) -> None:
    with node(tmp_path) as process:
        (found,) = _tidy.present(str(tmp_path))
        assert found["pid"] == process.pid
        assert (found["host"], found["node"], found["run"]) == (platform.node(), "mini2", "0-abc")
        assert 0 <= found["silent_s"] < 20
    assert list((tmp_path / "runs" / "0-abc").iterdir()) == []
    with node(tmp_path) as process:
        process.kill()
        process.wait()
    assert len(list((tmp_path / "runs" / "0-abc").iterdir())) == 2, "nobody was left to remove them"
    assert _tidy.present(str(tmp_path)) == [], "and yet it is known to be gone"


@pytest.mark.parametrize(("silent_s", "ends"), [(80, False), (100, True)])
def test_only_a_node_that_should_have_ended_itself_is_ended(tmp_path: Path, silent_s: float, ends: bool) -> None:
    with node(tmp_path) as process:
        (file,) = tmp_path.glob("runs/*/*.pid")
        os.utime(file, (time.time() - silent_s,) * 2)
        answer = begun(tmp_path)
        assert [each["pid"] for each in answer["ended"]] == ([process.pid] if ends else [])
        if ends:
            assert process.wait(10) == -9


def test_a_process_of_another_host_is_left_alone(tmp_path: Path) -> None:
    """Homes may be shared between machines: its number means another process here."""
    with node(tmp_path) as process:
        (file,) = tmp_path.glob("runs/*/*.pid")
        file.write_text(json.dumps({**json.loads(file.read_text()), "host": "elsewhere"}))
        os.utime(file, (0, 0))
        assert begun(tmp_path)["ended"] == []
        assert process.poll() is None


def test_a_runs_folder_goes_when_nothing_in_it_is_wanted(tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "0-abc"
    assert asked("finish", tmp_path, run="0-abc", fetched=False) == {"kept": ""}
    with node(tmp_path) as process:
        kept = asked("finish", tmp_path, run="0-abc", fetched=True)["kept"]
        assert kept == f"its node mini2 (pid {process.pid}) still runs"
    (folder / "checkpoints" / "step-1").mkdir(parents=True)
    (folder / "export").mkdir()
    kept = asked("finish", tmp_path, run="0-abc", fetched=False)["kept"]
    assert kept == "its checkpoints and export could not be fetched"
    assert (folder / "checkpoints" / "step-1").is_dir()
    other = tmp_path / "runs" / "0-other"
    other.mkdir()
    assert asked("finish", tmp_path, run="0-abc", fetched=True) == {"kept": ""}
    assert not folder.exists()
    assert other.exists()

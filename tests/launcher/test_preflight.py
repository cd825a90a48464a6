"""What must be so on a machine: from what it says of itself to what is wrong with it."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from types import ModuleType

import pytest
from hydra_plugins.smolcluster_launcher import _probe, _tidy
from hydra_plugins.smolcluster_launcher._preflight import Report, differences, here, obstacles

from smolcluster.cli.main import main


@pytest.fixture
def report(tmp_path: Path) -> Report:
    """This machine, asked as another one is."""
    question = {"workdir": str(tmp_path / "work"), "packages": list(here()), "wanted": ["code/abc", "code/def"]}
    (tmp_path / "work" / "code" / "abc").mkdir(parents=True)
    script = Path(_probe.__file__).read_bytes()
    done = subprocess.run([sys.executable, "-", json.dumps(question)], input=script, capture_output=True, check=True)
    return Report.of("mini2", json.loads(done.stdout), sent=0.0, received=0.0)


@pytest.mark.parametrize("script", [_probe, _tidy])
def test_what_runs_on_any_python_is_python_of_long_ago(script: ModuleType) -> None:
    ast.parse(Path(str(script.__file__)).read_text(), feature_version=(3, 7))


def test_this_machine_is_fit(report: Report, tmp_path: Path) -> None:
    assert list(obstacles(report, environment=False)) == []
    assert report.python == sys.version_info[:3]
    assert report.packages["torch"] == metadata.version("torch")
    assert report.workdir == str(tmp_path / "work")
    assert report.there == {"code/abc"}
    assert report.cores >= 1
    assert report.free_bytes > 0


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("keep_days=0.0", "must be > 0 and <= 3650"),
        ("keep_days=4000.0", "must be > 0 and <= 3650"),
        ("max_concurrent=0", "must be >= 1 and <= 64"),
        ("session=telnet", "must be one of ssh, manual"),
        ("env=conda", "must be one of null, venv, uv"),
        ("gate_port=70000", "must be >= 0 and <= 65535"),
        ("connect_timeout_s=601.0", "must be > 0 and <= 600"),
        ("join_timeout_s=0.0", "must be > 0 and <= 86400"),
    ],
)
def test_wrong_options_of_the_launcher(
    option: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([f"hydra.launcher.{option}", f"hydra.sweep.dir={tmp_path / 'never'}"]) == 2
    assert f"hydra.launcher.{option}: {said}" in capsys.readouterr().err
    assert not (tmp_path / "never" / "0").exists()


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"python": (3, 9, 6)}, "is Python 3.9.6, 3.11 is needed; set cluster.nodes.mini2.python"),
        ({"free_bytes": 5 << 20}, "only 5 MB are free in "),
        (
            {"error": "/root/x: Permission denied"},
            "cannot write to /root/x: Permission denied; set cluster.nodes.mini2",
        ),
        ({"packages": {"torch": None}}, "has no torch, lightning-fabric, numpy"),
    ],
)
def test_what_is_in_the_way(report: Report, changed: dict[str, object], words: str) -> None:
    (found,) = obstacles(replace(report, **changed), environment=False)  # type: ignore[arg-type]
    assert words in found


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"system": "Linux", "tmux": None}, "has no tmux, which hydra.launcher.tmux=true needs: sudo apt install tmux"),
        ({"system": "Darwin", "tmux": None}, "has no tmux, which hydra.launcher.tmux=true needs: brew install tmux"),
        ({"system": "Windows", "tmux": "C:\\tmux.exe"}, "is a Windows machine, where there is no tmux: "),
    ],
)
def test_tmux_is_needed_where_it_is_asked_for(report: Report, changed: dict[str, object], words: str) -> None:
    assert list(obstacles(replace(report, tmux="/usr/bin/tmux"), environment=False, tmux=True)) == []
    other = replace(report, **changed)  # type: ignore[arg-type]
    assert list(obstacles(other, environment=False)) == []
    (found,) = obstacles(other, environment=False, tmux=True)
    assert found.startswith(words)


def test_tmux_is_found_where_a_login_does_not_look(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tmux").write_text("#!/bin/sh\n")
    (tmp_path / "tmux").chmod(0o755)
    monkeypatch.setenv("PATH", "/nowhere")
    question = {"workdir": str(tmp_path), "packages": [], "wanted": []}
    assert _probe.probe({**question, "places": []})["tmux"] is None
    assert _probe.probe({**question, "places": ["/no", str(tmp_path)]})["tmux"] == str(tmp_path / "tmux")


def test_another_torch_is_refused_and_other_differences_are_shown(report: Report) -> None:
    other = replace(report, packages={**report.packages, "torch": "1.0.0"})
    (found,) = obstacles(other, environment=False)
    assert found.startswith("has torch 1.0.0, this machine ")
    assert list(obstacles(replace(other, packages={}), environment=True)) == [], "about to be installed"
    newer = replace(report, name="mini3", packages={**report.packages, "numpy": "99.0"}, python=(3, 12, 1))
    late = replace(newer, clock_offset_s=-90.0)
    numpy, python, clock = differences([replace(report, clock_offset_s=0.0), late], here())
    assert numpy == f"numpy: {metadata.version('numpy')} (here, mini2), 99.0 (mini3)"
    assert python == f"Python: {sys.version_info[0]}.{sys.version_info[1]} (mini2), 3.12 (mini3)"
    assert clock == "clock of mini3: -90 s"


def test_a_folder_that_cannot_be_written_to_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    answer = _probe.probe({"workdir": str(tmp_path / "file" / "x"), "packages": [], "wanted": []})
    assert answer["error"] == f"{tmp_path}/file/x: Not a directory"

"""Environments that are made on other machines."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import zipfile
from dataclasses import replace
from importlib import metadata
from pathlib import Path

import pytest
from hydra_plugins.smolcluster_launcher._environment import MAKE, Environment, _Lines, marker, python_of
from hydra_plugins.smolcluster_launcher._preflight import Report

REPORT = Report(
    name="mini2", python=(3, 11, 7), executable="python3", system="Linux", machine="x86_64", cores=2, memory_bytes=None,
    free_bytes=1 << 40, workdir="/w", clock_offset_s=0.0, packages={}, there=frozenset(), error="",
)  # fmt: skip


def wheelhouse(folder: Path) -> Path:
    """A folder with the wheel of one small package."""
    folder.mkdir()
    with zipfile.ZipFile(folder / "tiny_thing-1.5-py3-none-any.whl", "w") as wheel:
        info = "tiny_thing-1.5.dist-info"
        wheel.writestr("tiny_thing.py", "VALUE = 5\n")
        wheel.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: tiny-thing\nVersion: 1.5\n")
        wheel.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr(f"{info}/RECORD", "")
    return folder


def run(path: Path, house: Path, *requirements: str, tool: str = "venv") -> subprocess.CompletedProcess[str]:
    order = {
        "path": str(path), "tool": tool, "requirements": list(requirements), "pins": ["tiny-thing==1.5"],
        "wheelhouse": str(house),
    }  # fmt: skip
    command = [sys.executable, "-c", MAKE, json.dumps(order)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("tool", ["venv", "uv"])
def test_it_is_made_from_a_folder_of_wheels(tmp_path: Path, tool: str) -> None:
    if tool == "uv" and shutil.which("uv") is None:
        done = run(tmp_path / "env" / "x", wheelhouse(tmp_path / "house"), "tiny-thing", tool="uv")
        assert done.returncode == 1
        assert done.stderr.strip() == "uv is not installed there"
        return
    done = run(tmp_path / "env" / "x", wheelhouse(tmp_path / "house"), "tiny-thing>=1", tool=tool)
    assert done.returncode == 0, done.stdout + done.stderr
    python = python_of(str(tmp_path), "env/x", "Linux")
    said = subprocess.run([python, "-c", "import tiny_thing; print(tiny_thing.VALUE)"], capture_output=True, check=True)
    assert said.stdout == b"5\n"
    assert (tmp_path / marker("env/x")).is_file()
    assert [path.name for path in (tmp_path / "env").iterdir()] == ["x"]


def test_half_of_one_is_not_left(tmp_path: Path) -> None:
    done = run(tmp_path / "env" / "x", wheelhouse(tmp_path / "house"), "no-such-thing")
    assert done.returncode == 1
    assert "pip has failed (exit code 1)" in done.stderr or "install has failed" in done.stderr
    lines = _Lines(lambda words: None)
    lines.take(done.stdout.encode())
    assert lines.last.startswith("ERROR: ")
    assert list((tmp_path / "env").iterdir()) == []


def test_it_has_what_this_machine_has_and_is_named_by_that() -> None:
    environment = Environment.like_here("venv")
    assert any(each.startswith("torch") for each in environment.requirements)
    assert not any("extra ==" in each for each in environment.requirements)
    assert f"numpy=={metadata.version('numpy')}" in environment.pins
    assert not any(pin.startswith("smolcluster==") for pin in environment.pins)
    name = environment.name(REPORT)
    assert name == Environment.like_here("venv").name(REPORT)
    others = [
        environment.name(replace(REPORT, python=(3, 12, 0))),
        environment.name(replace(REPORT, machine="aarch64")),
        replace(environment, pins=(*environment.pins, "x==1")).name(REPORT),
    ]
    assert len({name, *others}) == 4

"""Where a command may find itself: places that cannot be written to, streams that are closed, full or cut off."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

from smolcluster.cli.main import main
from smolcluster.cli.streams import tell

SHORT = "algo=single train.max_steps=2 train.export=false train.eval_samples=8"
COMMAND = f"'{sys.executable}' -m smolcluster"


def shell(folder: Path, line: str, **environ: str) -> tuple[int, str]:
    """(exit code of the first command of the pipe, everything that was written)."""
    done = subprocess.run(
        ["bash", "-c", f"{line}; exit ${{PIPESTATUS[0]}}"],
        cwd=folder,
        env={**os.environ, **environ},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=120,
        check=False,
    )
    return done.returncode, done.stdout


@pytest.mark.parametrize(
    ("place", "reason"),
    [("file", "Not a directory"), ("/proc/smolcluster", "No such file or directory"), ("/dev/null", "Not a directory")],
)
def test_a_place_that_cannot_be_written_to(
    place: str, reason: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    folder = tmp_path / place
    assert main([f"hydra.sweep.dir={folder}/run"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    heading, line = captured.err.splitlines()
    assert heading == "smolcluster: 1 problem in the configuration"
    assert line.startswith(f"  hydra.sweep.dir={folder}")
    assert f"cannot be written: {reason}; nearest valid: hydra.sweep.dir=<" in line


def test_what_hydra_refuses_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["hydra/launcher=nothing"]) == 2
    assert capsys.readouterr().err.splitlines()[1].startswith("  hydra=hydra/launcher=nothing: cannot be composed: ")


def test_a_line_that_nobody_takes_is_not_told() -> None:
    class Gone(io.StringIO):
        def write(self, _: str) -> int:
            raise BrokenPipeError

    tell("words", Gone())
    plain = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    tell("größe", plain)
    plain.seek(0)
    assert plain.read() == "gr??e\n"


@pytest.mark.parametrize(
    ("line", "code", "shown"),
    [
        (f"{COMMAND} --help | head -1", 0, "smolcluster: train neural networks on the machines you already have.\n"),
        (f"{COMMAND} algo=x 2>&1 | head -1", 2, "smolcluster: 1 problem in the configuration\n"),
        (f"{COMMAND} algo=x >&- 2>&- <&-", 2, ""),
        (f"{COMMAND} --version > /dev/full", 0, ""),
        (f"{COMMAND} --cfg job --package optim | tail -1", 0, "eps: 1.0e-08\n"),
    ],
)
def test_streams_that_end_early(line: str, code: int, shown: str, tmp_path: Path) -> None:
    assert shell(tmp_path, line, LC_ALL="C", PYTHONUTF8="0", PYTHONCOERCECLOCALE="0") == (code, shown)


@pytest.mark.parametrize("end", ["| head -1", ">&- 2>&- <&-"])
def test_a_run_goes_on_when_nobody_reads(end: str, tmp_path: Path) -> None:
    code, shown = shell(tmp_path, f"{COMMAND} {SHORT} hydra.sweep.dir=run {end}", TERM="dumb", NO_COLOR="1")
    assert code == 0
    assert "Traceback" not in shown
    assert "Exception ignored" not in shown
    assert (tmp_path / "run" / "0" / "summary.json").is_file()

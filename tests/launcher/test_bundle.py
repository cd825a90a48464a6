"""What is sent to machines, and what is brought back from them."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import venv
from pathlib import Path

import pytest
from hydra_plugins.smolcluster_launcher._bundle import UNPACK, UNPACK_FILES, Parcel, wheel
from hydra_plugins.smolcluster_launcher._mirror import PACK, Incoming, known_steps

MAKE = "import os, sys; os.makedirs(sys.argv[1], exist_ok=True)\n"


def test_equal_code_is_equal_bytes() -> None:
    first = wheel()
    wheel.cache_clear()
    assert wheel() == first


def test_pip_installs_it_and_the_launcher_is_found(tmp_path: Path) -> None:
    venv.create(tmp_path / "env", with_pip=True, symlinks=True)
    python = tmp_path / "env" / "bin" / "python"
    file = tmp_path / wheel().filename
    file.write_bytes(wheel().data)
    subprocess.run([python, "-m", "pip", "install", "-q", "--no-deps", "--no-index", file], check=True)
    code = (
        "import smolcluster, smolcluster.spec.build as b; from pathlib import Path;"
        "from importlib.metadata import files; print((b.conf_dir() / 'config.yaml').is_file());"
        "print(all(f.locate().is_file() for f in files('smolcluster')))"
    )
    # its dependencies are this environment's; no checkout is in the way
    outside = [entry for entry in sys.path if "site-packages" in entry]
    done = subprocess.run(
        [python, "-c", f"import sys; sys.path += {outside!r}\n{code}"],
        cwd=tmp_path, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.split() == ["True", "True"]


def test_what_arrives_is_checked_and_unpacked_once(tmp_path: Path) -> None:
    def unpack(data: bytes) -> subprocess.CompletedProcess[bytes]:
        command = [sys.executable, "-c", MAKE + UNPACK, str(tmp_path / "code"), wheel().name]
        return subprocess.run(command, input=data, capture_output=True, check=False)

    spoiled = unpack(wheel().data[:-1])
    assert spoiled.returncode == 1
    assert spoiled.stderr == b"what arrived is not what was sent\n"
    assert unpack(wheel().data).returncode == 0
    assert unpack(wheel().data).returncode == 0, "somebody else was quicker"
    assert [path.name for path in (tmp_path / "code").iterdir()] == [wheel().name]
    assert (tmp_path / "code" / wheel().name / "smolcluster" / "conf" / "config.yaml").is_file()


@pytest.mark.parametrize("single", [True, False])
def test_files_arrive_and_are_named_by_their_content(tmp_path: Path, single: bool) -> None:
    data = tmp_path / "my data"
    (data / "inner").mkdir(parents=True)
    (data / "a.txt").write_text("a" * 3_000_000)
    (data / "inner" / "b.txt").write_text("b")
    path = data / "a.txt" if single else data
    parcel = Parcel.of(path)
    assert Parcel.of(path) == parcel
    command = [sys.executable, "-c", MAKE + UNPACK_FILES, str(tmp_path / "files"), parcel.name]
    subprocess.run(command, input=b"".join(parcel.stream()), check=True)
    there = tmp_path / "files" / parcel.name / path.name
    if single:
        assert there.read_text() == (data / "a.txt").read_text()
    else:
        assert sorted(str(file.relative_to(there)) for file in there.rglob("*.txt")) == ["a.txt", "inner/b.txt"]
    (data / "a.txt").write_text("c")
    assert Parcel.of(path).name != parcel.name


def save(run: Path, step: int, *, whole: bool = True) -> None:
    folder = run / "checkpoints" / f"step-{step}"
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(bytes([step]) * 1000)
    if whole:
        digest = hashlib.sha256(bytes([step]) * 1000).hexdigest()
        (folder / "state.json").write_text(json.dumps({"step": step, "sha256": {"model.safetensors": digest}}))


def fetch(there: Path, here: Path, what: str, *, cut: int | None = None) -> None:
    command = [sys.executable, "-c", PACK, str(there), json.dumps(known_steps(here)), what]
    done = subprocess.run(command, capture_output=True, check=True)
    incoming = Incoming(here)
    data = done.stdout[:cut]
    for start in range(0, len(data), 4096):
        incoming.take(data[start : start + 4096])
    incoming.finish(whole=cut is None)


def test_checkpoints_are_brought_back(tmp_path: Path) -> None:
    there, here = tmp_path / "there", tmp_path / "here"
    here.mkdir()
    fetch(there, here, "all")
    assert list(here.iterdir()) == [], "nothing yet"
    save(there, 1)
    save(there, 2)
    save(there, 3, whole=False)
    (there / "checkpoints" / "latest").symlink_to("step-2")
    (there / "checkpoints" / "best").write_text("step-1")
    (there / "export").mkdir()
    (there / "export" / "model.pt2").write_text("x")
    fetch(there, here, "checkpoints", cut=3000)
    assert list(here.rglob("step-*")) == [], "half of a stream leaves nothing"
    fetch(there, here, "checkpoints")
    assert sorted(path.name for path in (here / "checkpoints").iterdir()) == ["best", "latest", "step-1", "step-2"]
    assert json.loads((here / "checkpoints" / "latest" / "state.json").read_text())["step"] == 2
    assert not (here / "export").exists()
    save(there, 4)
    (there / "checkpoints" / "latest").unlink()
    (there / "checkpoints" / "latest").symlink_to("step-4")
    for file in (there / "checkpoints" / "step-2").iterdir():
        file.unlink()
    (there / "checkpoints" / "step-2").rmdir()
    fetch(there, here, "all")
    assert sorted(path.name for path in (here / "checkpoints").iterdir()) == ["best", "latest", "step-1", "step-4"]
    assert (here / "checkpoints" / "latest").resolve().name == "step-4"
    assert (here / "export" / "model.pt2").read_text() == "x"

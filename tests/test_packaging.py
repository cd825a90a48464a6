"""What people install: the wheel in an environment of its own, and one set of versions for pip and for uv."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def test_uv_takes_the_versions_that_pip_takes() -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pinned = [line for line in lines if line and not line.startswith("#")]
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert settings["tool"]["uv"]["constraint-dependencies"] == pinned
    assert "torch==2.13.0" in pinned
    assert all(re.fullmatch(r"[A-Za-z0-9_.-]+==[^=\s]+", line) for line in pinned)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from this checkout."""
    folder = tmp_path_factory.mktemp("wheel")
    words = ["wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder), str(ROOT)]
    subprocess.run([sys.executable, "-m", "pip", *words], check=True, capture_output=True, timeout=120)
    (built,) = folder.glob("smolcluster-*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The command of an environment that has the wheel, and borrows what it depends on from this one."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, symlinks=os.name != "nt")
    scripts = folder / ("Scripts" if os.name == "nt" else "bin")
    paths = [path for path in sys.path if Path(path).name in ("site-packages", "dist-packages")]
    words = ["install", "--quiet", "--no-deps", "--no-index", "--target", str(folder / "new"), str(wheel)]
    subprocess.run([sys.executable, "-m", "pip", *words], check=True, capture_output=True, timeout=120)
    (own,) = folder.rglob("site-packages")
    first = f"import sys; sys.path.insert(0, {str(folder / 'new')!r})"  # before an editable install of the same name
    (own / "wheel.pth").write_text("\n".join([first, *paths]) + "\n", encoding="utf-8")
    python = scripts / Path(sys.executable).name
    command = scripts / "smolcluster"
    command.write_text(f"#!{python}\nfrom smolcluster.__main__ import main\nmain()\n", encoding="utf-8")
    command.chmod(0o755)
    return command


def said(command: Path, folder: Path, *words: str) -> str:
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        [str(command), *words], cwd=folder, env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


def test_the_wheel_has_the_code_and_the_configuration_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"smolcluster", "hydra_plugins"}
    shipped = {name.removeprefix("smolcluster/conf/") for name in names if name.startswith("smolcluster/conf/")}
    assert shipped == {str(path.relative_to(ROOT / "conf")) for path in (ROOT / "conf").rglob("*.yaml")}
    modules = {name for name in names if name.endswith(".py")}
    own = {str(path.relative_to(ROOT)) for path in (ROOT / "smolcluster").rglob("*.py")}
    assert modules == own | {str(path.relative_to(ROOT / "launchers")) for path in (ROOT / "launchers").rglob("*.py")}


def test_hydra_finds_the_launcher_of_the_wheel(installed: Path, tmp_path: Path) -> None:
    code = (
        "from hydra.core.plugins import Plugins; from hydra.plugins.launcher import Launcher; import hydra_plugins;"
        "print([c.__name__ for c in Plugins.instance().discover(Launcher)], list(hydra_plugins.__path__))"
    )
    python = installed.with_name(Path(sys.executable).name)
    out = said(python, tmp_path, "-c", code)
    assert "SmolclusterLauncher" in out
    assert str(installed.parents[1]) in out, "that of the wheel, not the checkout's"


def test_the_installed_command_trains_with_options_of_ones_own(installed: Path, tmp_path: Path) -> None:
    own = tmp_path / "conf" / "cluster"
    own.mkdir(parents=True)
    (own / "desk.yaml").write_text("_target_: smolcluster.cluster.inventory.Cluster\nnum_workers: 1\n")
    (tmp_path / "nets.py").write_text(
        "from torch import nn\n\n\ndef net(info):\n    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))\n"
    )
    mine = ["--config-dir", "conf", "cluster=desk", "model=custom", "model.target=nets:net"]
    shown = said(installed, tmp_path, *mine, "--cfg", "job")
    assert "num_workers: 1" in shown
    words = [*mine, "train.max_steps=3", "train.export=false", "train.eval_samples=8", "hydra.sweep.dir=run"]
    assert said(installed, tmp_path, *words).splitlines()[-1] == "run/0"
    used = (tmp_path / "run" / "0" / ".hydra" / "hydra.yaml").read_text(encoding="utf-8")
    assert str(installed.parents[1] / "new" / "smolcluster" / "conf") in used, "not the checkout's"

"""The checks that read the code instead of running it, as part of the one test command."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CHECKS = {
    "ruff check": [sys.executable, "-m", "ruff", "check", "."],
    "ruff format": [sys.executable, "-m", "ruff", "format", "--check", "."],
    "mypy": [sys.executable, "-m", "mypy"],
    "import-linter": [str(Path(sys.executable).with_name("lint-imports"))],
}
LIGHT = ("torch", "lightning_fabric", "transformers", "datasets", "sklearn", "pandas", "matplotlib", "wandb", "zmq")
DEVICE_CALL = re.compile(r"torch\.(cuda|mps|xpu)\.|\.cuda\(|\.to\(\s*[\"']|torch\.device\(|Fabric\(")


@pytest.mark.parametrize("name", CHECKS)
def test_check(name: str) -> None:
    done = subprocess.run(CHECKS[name], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def sources() -> list[Path]:
    return sorted(path for folder in ("smolcluster", "launchers") for path in (ROOT / folder).rglob("*.py"))


def test_no_device_call_outside_of_train() -> None:
    """Devices are Lightning Fabric's business, and Fabric is train/'s."""
    allowed = ROOT / "smolcluster" / "train"
    found = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for path in sources()
        if allowed not in path.parents
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if DEVICE_CALL.search(line)
    ]
    assert not found, "\n".join(found)


def test_nodes_can_run_on_any_system() -> None:
    """What a node runs imports nothing that only POSIX has, but for the server that it is forked from on Linux."""
    posix = {"fcntl", "grp", "pty", "pwd", "select", "syslog", "termios", "tty"}
    rooms = [ROOT / "smolcluster" / name for name in ("node", "comms", "train", "algo")]
    found = []
    for path in sources():
        if path.name == "forkserver.py" or not any(room in path.parents for room in rooms):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            found += [f"{path.relative_to(ROOT)}: {name}" for name in names if name.partition(".")[0] in posix]
    assert not found, "\n".join(found)


def test_no_room_without_a_name() -> None:
    nameless = {"utils.py", "common.py", "helpers.py", "misc.py"}
    assert not [path for path in sources() if path.name in nameless]


def test_functions_have_one_purpose() -> None:
    """No function of more than 70 lines, no file of more than 500."""
    long = []
    for path in sources():
        text = path.read_text()
        if len(text.splitlines()) > 500:
            long.append(f"{path.relative_to(ROOT)}: {len(text.splitlines())} lines")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                size = (node.end_lineno or 0) - node.lineno
                if size > 70:
                    long.append(f"{path.relative_to(ROOT)}:{node.lineno}: {node.name} has {size} lines")
    assert not long, "\n".join(long)


@pytest.mark.parametrize("module", ["smolcluster.cli.main", "smolcluster.pipeline.job", "smolcluster.spec.compose"])
def test_the_controller_imports_nothing_heavy(module: str) -> None:
    code = f"import sys, {module}; print([m for m in {LIGHT!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    "words",
    [["--help"], ["--cfg", "job"], ["-sc", "install=bash"], ["algo=synps"], ["model=gpt", "data=digits"]],
    ids=str,
)
def test_showing_and_refusing_import_no_torch(words: list[str]) -> None:
    code = (
        "import sys; from smolcluster.cli.main import main; sys.argv[0] = 'smolcluster'\n"
        f"try:\n    main({words!r})\nexcept SystemExit:\n    pass\n"
        f"print([m for m in {LIGHT!r} if m in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.strip().splitlines()[-1] == "[]"

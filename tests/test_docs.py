"""The documentation says what is so: tables, links, paths, anchors, command lines and the example of an algorithm."""

from __future__ import annotations

import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import pytest

from smolcluster.cli.words import rewrite
from smolcluster.errors import ConfigError
from smolcluster.spec.compose import validate_jobs

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
EXAMPLE = ROOT / "docs" / "adding_an_algorithm.md"
COMMAND = re.compile(r"^\$? *(?:[A-Z_]+=\S+ )?(?:python -m )?smolcluster((?: .*)?)$")
FLAGS = {"--cfg": 1, "--config-dir": 1, "--package": 1, "--help": 0, "--resolve": 0, "-sc": 1}
"""Flag -> how many words follow it that are no overrides."""


class Command(NamedTuple):
    """A command line of a page, and the lines that the page shows below it, where it shows any."""

    page: str
    words: list[str]
    shown: str
    config_dir: str | None


def blocks(page: Path) -> Iterator[str]:
    """The code blocks of a page, fenced and indented."""
    text = page.read_text(encoding="utf-8")
    yield from re.findall(r"^```\w*\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    unfenced = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    for block in re.findall(r"(?:^ {4}.*\n)+", unfenced, re.MULTILINE):
        yield re.sub(r"^ {4}", "", block, flags=re.MULTILINE)


def files_in(page: Path) -> dict[str, str]:
    """The files that a page contains: a path in bold before a fenced block."""
    found = re.findall(r"^\*\*`([\w./]+)`\*\*\n\n```\w+\n(.*?)^```", page.read_text("utf-8"), re.DOTALL | re.MULTILINE)
    return dict(found)


def commands() -> Iterator[Command]:
    """Every command line of every page."""
    for page in PAGES:
        for block in blocks(page):
            lines = block.splitlines()
            for number, line in enumerate(lines):
                if found := COMMAND.match(line):
                    words, config_dir = without_flags(shlex.split(found[1], comments=True))
                    answer = "\n".join(lines[number + 1 :]) if line.startswith("$") else ""
                    yield Command(page.name, words, answer, config_dir)


def without_flags(words: list[str]) -> tuple[list[str], str | None]:
    """(overrides, the value of ``--config-dir``)."""
    overrides, config_dir, rest = [], None, iter(words)
    for word in rest:
        if word.startswith("-"):
            values = [next(rest) for _ in range(FLAGS[word])]
            config_dir = str(ROOT / values[0]) if word == "--config-dir" else config_dir
        else:
            overrides.append(word)
    return overrides, config_dir


COMMANDS = list(commands())


@pytest.fixture(scope="module")
def earlier_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What ``outputs/<date>/<time>/<n>`` stands for: the directory of a default run."""
    folder = tmp_path_factory.mktemp("outputs")
    (folder / ".hydra").mkdir()
    (folder / ".hydra" / "overrides.yaml").write_text("[]\n")
    return folder


@pytest.fixture(scope="module")
def generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate_configuration", ROOT / "docs" / "generate_configuration.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_tables_of_the_configuration_are_those_of_the_code(generator: ModuleType) -> None:
    page = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
    assert page == generator.render(page), "run: python docs/generate_configuration.py"
    groups = {folder.name for folder in (ROOT / "conf").iterdir() if folder.is_dir()}
    assert groups <= set(generator.sections(page)), "every group has its section"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if re.match(r"https?:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), f"{page.name}: {target}"
        assert not anchor or anchor in anchors(file), f"{page.name}: {target}"


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_paths_and_tests_that_are_named_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    written_here = files_in(page)
    for path in re.findall(r"(?<![\w/.~-])((?:smolcluster|conf|docs|tests)/[\w./-]*\w)", text):
        assert (ROOT / path).exists() or path in written_here, f"{page.name} names {path}"
    sources = "\n".join(file.read_text(encoding="utf-8") for file in (ROOT / "tests").rglob("*.py"))
    for name in re.findall(r"`(test_\w+)`", text):
        assert f"def {name}(" in sources, f"{page.name} names {name}"


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: " ".join([command.page, *command.words])[:100])
def test_command_lines_compose(command: Command, earlier_run: Path) -> None:
    words = [re.sub(r"^resume=outputs/<date>/<time>/<n>", f"resume={earlier_run}", word) for word in command.words]
    if any("<" in word or word == "resume=..." for word in words):
        return  # a placeholder that only its reader can fill
    if command.page == EXAMPLE.name and "algo=signvote" in words:
        return  # an option that the page itself makes; tried out below
    if "hydra/sweeper=optuna" in words:
        pytest.importorskip("hydra_plugins.hydra_optuna_sweeper", reason="needs pip install 'smolcluster[optuna]'")
    if "problem" in command.shown.partition("\n")[0]:
        with pytest.raises(ConfigError) as error:
            validate_jobs(rewrite(words), command.config_dir)
        assert [f"  {problem}" for problem in error.value.problems] == command.shown.rstrip().splitlines()[1:]
    else:
        assert validate_jobs(rewrite(words), command.config_dir)


def test_there_are_command_lines_on_every_page_that_teaches_some() -> None:
    assert len(COMMANDS) > 30
    assert {"README.md", "tutorial.md", "cli_guide.md", "from_the_seeds.md"} <= {command.page for command in COMMANDS}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_in_pages_can_be_read(page: Path) -> None:
    for code in re.findall(r"^```python\n(.*?)^```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE):
        compile(code, page.name, "exec")


def test_the_example_of_an_algorithm_runs(tmp_path: Path) -> None:
    """The files of the page in a copy of the repository: its test passes, and the command line gives what is shown."""
    for name in ("smolcluster", "conf"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "tests" / "algo").mkdir(parents=True)
    for name in ("tests/__init__.py", "tests/conftest.py", "tests/in_memory.py", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path / name)
    files = files_in(EXAMPLE)
    for name, content in files.items():
        (tmp_path / name).write_text(content, encoding="utf-8")
    (tested,) = [name for name in files if name.startswith("tests/")]
    run(tmp_path, "-m", "pytest", "-q", "-n", "0", "-p", "no:cacheprovider", tested)
    refused, trained = (
        run(tmp_path, "-m", "smolcluster", *command.words, code=2 if command.shown else 0)
        for command in sorted(COMMANDS, key=lambda command: not command.shown)
        if command.page == EXAMPLE.name and "algo=signvote" in command.words
    )
    assert "must be off with algo=signvote" in refused
    assert re.search(r"status +done", trained)


def run(folder: Path, *words: str, code: int = 0) -> str:
    """What a Python started in ``folder`` says, its modules found there first."""
    done = subprocess.run(
        [sys.executable, *words],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), str(ROOT / "launchers")])},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == code, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout + done.stderr


def test_the_cluster_of_the_page_is_the_example() -> None:
    page = (ROOT / "docs" / "cluster_setup.md").read_text(encoding="utf-8")
    (shown,) = re.findall(r"^```yaml\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    example = (ROOT / "docs" / "examples" / "conf" / "cluster" / "home.yaml").read_text(encoding="utf-8")
    assert example.partition("\n")[2] == shown


def test_messages_that_are_explained_are_those_of_the_code() -> None:
    """The first words of each message of the table, numbers and names left out, are in the sources."""
    page = (ROOT / "docs" / "cluster_setup.md").read_text(encoding="utf-8")
    table = page.partition("## Messages and what to do")[2]
    sources = "".join(
        path.read_text(encoding="utf-8")
        for folder in ("smolcluster", "launchers")
        for path in (ROOT / folder).rglob("*.py")
    )
    messages = re.findall(r"^\| `(.*?)`", table, re.MULTILINE)
    assert len(messages) > 10
    for message in messages:
        words = re.split(r"\S*\d\S*|\.\.\.|torch|,", message)
        longest = max((part.strip() for part in words), key=len)
        assert longest in sources, f"{message}: {longest!r}"

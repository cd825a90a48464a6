"""Command lines for other machines: the exact words, and what shells really make of them."""

from __future__ import annotations

import base64
import json
import re
import secrets
import subprocess
import sys
from pathlib import Path

import pytest
from hydra_plugins.smolcluster_launcher._quoting import command_line, preamble
from hypothesis import given, settings
from hypothesis import strategies as st

from smolcluster.node.keeper import Invitation

NASTY = [
    "a b",
    "$HOME",
    "it's",
    '"; echo INJECTED; "',
    "`id`",
    "$(id)",
    "*",
    "~",
    "\\",
    "a\nb",
    "",
    "-n",
    "ü€",
    "%PATH%",
]
Q = "'\"'\"'"
"""How a single quote is written inside of single quotes."""
MODE = "$PSNativeCommandArgumentPassing = 'Legacy'"


def script(line: str) -> str:
    """What PowerShell is given."""
    assert line.startswith("powershell -NoProfile -NonInteractive -InputFormat None -EncodedCommand ")
    return base64.b64decode(line.split()[-1]).decode("utf-16-le")


def test_golden_posix() -> None:
    plain = command_line(["python3", "-m", "smolcluster.node"])
    assert plain == "exec /bin/sh -c 'exec python3 -m smolcluster.node'"
    line = command_line(
        ["/opt/my python", "-c", "x;y"], directory="~/work here", environment={"N": "2", "NAME": "a; rm -rf /"}
    )
    assert line == (
        f"""exec /bin/sh -c 'cd "$HOME"/{Q}work here{Q} && exec env N=2 {Q}NAME=a; rm -rf /{Q} """
        f"""{Q}/opt/my python{Q} -c {Q}x;y{Q}'"""
    )


def test_golden_powershell() -> None:
    plain = command_line(["python", "-m", "smolcluster.node"], shell="powershell")
    assert script(plain) == f"{MODE}; & 'python' '-m' 'smolcluster.node'; exit $LASTEXITCODE"
    line = command_line(["x.exe"], shell="powershell", directory="~/work", environment={"A": "1'; del x"})
    assert script(line) == (
        f"{MODE}; $env:A = '1''; del x'; Set-Location -LiteralPath (Join-Path $HOME 'work'); "
        "& 'x.exe'; exit $LASTEXITCODE"
    )


@pytest.mark.parametrize(
    ("word", "quoted"),
    [
        ("C:\\My Python\\python.exe", "'C:\\My Python\\python.exe'"),
        ('say "hi"', "'say \\\"hi\\\"'"),
        ('end\\"', "'end\\\\\\\"'"),
        ("it's", "'it''s'"),
        ("it\u2019s", "'it\u2019\u2019s'"),
        ("C:\\dir\\", "'C:\\dir\\'"),
        ("C:\\a dir\\", "'C:\\a dir\\\\'"),
        ("$env:PATH", "'$env:PATH'"),
        ("", "'\"\"'"),
    ],
)
def test_golden_words_of_powershell(word: str, quoted: str) -> None:
    assert script(command_line(["x", word], shell="powershell")) == f"{MODE}; & 'x' {quoted}; exit $LASTEXITCODE"


def said(words: list[str], value: str) -> list[str]:
    """What a program is really given by sh."""
    line = command_line(["printf", "%s\\0", *words], environment={"VALUE": value}, directory="/")
    out = subprocess.run(line, shell=True, capture_output=True, check=True).stdout
    return out.decode().split("\0")[:-1]


def test_every_argument_arrives_as_it_is() -> None:
    assert said(NASTY, "a b; echo INJECTED") == NASTY


@settings(max_examples=40, deadline=None)
@given(st.lists(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=20), min_size=1))
def test_whatever_the_argument(words: list[str]) -> None:
    assert said(words, words[0]) == words


def test_what_cannot_be_passed_is_refused() -> None:
    with pytest.raises(ValueError, match="null byte"):
        command_line(["a\0b"])
    with pytest.raises(ValueError, match="no name of a variable"):
        command_line(["a"], environment={"A=B; x": "1"})


def test_golden_cmd() -> None:
    assert command_line(["taskkill", "/F", "/PID", "12"], shell="cmd") == "taskkill /F /PID 12"
    assert preamble(["taskkill", "/F", "/PID", "12"], shell="cmd") == b""
    first_line = """-c "exec(open(0,'rb',0,closefd=False).readline())\""""
    assert command_line(["C:\\Py 3\\python.exe", "-", "{}"], shell="cmd") == f'"C:\\Py 3\\python.exe" {first_line}'
    argv = ["python", "-m", "smolcluster.node"]
    assert command_line(argv, shell="cmd", directory="C:\\work") == f"python {first_line}"
    line = preamble(argv, shell="cmd", directory="C:\\wörk", environment={"A": '1"&del'})
    assert line.count(b"\n") == 1
    assert eval(line[len("exec(") : -2]).splitlines() == [
        "import os, sys",
        "os.environ.update({'A': '1\"&del'})",
        "sys.path[1:1] = filter(None, ''.split(os.pathsep))",
        "os.chdir(os.path.expanduser('C:\\\\w\\xf6rk'))",
        "sys.argv[:] = ['-m']",
        "import runpy; runpy.run_module('smolcluster.node', run_name='__main__', alter_sys=True)",
    ]
    assert preamble(argv, shell="posix") == preamble(argv, shell="powershell") == b""


def test_no_word_gets_near_cmd_that_is_special_there() -> None:
    with pytest.raises(ValueError, match="cmd can start Python with -, -c or -m only: echo a b"):
        command_line(["echo", "a b"], shell="cmd")
    with pytest.raises(ValueError, match="cmd can start Python"):
        command_line(['C:\\a" & del x\\python.exe', "-", "x y"], shell="cmd")


SHOW = "import json, os, sys; print(json.dumps([sys.argv, os.environ['V'], os.getcwd(), sys.path[1]]))"
SHOW += "; sys.stdout.flush(); sys.stdout.buffer.write(sys.stdin.buffer.read())"


@pytest.mark.parametrize("way", ["-", "-c", "-m"])
def test_what_cmd_starts_has_its_words_its_environment_its_folder_and_its_input(tmp_path: Path, way: str) -> None:
    """The line is one that sh understands, too; what Python makes of it is the same everywhere."""
    folder = tmp_path / "a b"
    folder.mkdir()
    (folder / "shown.py").write_text(SHOW)
    (tmp_path / "it's").mkdir()
    argv = {"-": [sys.executable, "-"], "-c": [sys.executable, "-c", SHOW], "-m": [sys.executable, "-m", "shown"]}[way]
    argv = [*argv, *NASTY]
    data = b"" if way == "-" else bytes(range(256))
    environment = {"V": "\"%PATH%' ü", "PYTHONPATH": str(folder)}
    line = command_line(argv, shell="cmd", directory=str(tmp_path / "it's"), environment=environment)
    first = preamble(argv, shell="cmd", directory=str(tmp_path / "it's"), environment=environment)
    script = SHOW.encode() if way == "-" else data
    done = subprocess.run(line, shell=True, input=first + script, capture_output=True, check=True)
    said, _, rest = done.stdout.partition(b"\n")
    words, value, place, path = json.loads(said)
    assert words[1:] == NASTY
    assert (value, place, path) == (environment["V"], str(tmp_path / "it's"), str(folder))
    assert rest == data


def test_a_join_command_needs_no_quotes_in_any_shell() -> None:
    """It is typed by a person, in sh, cmd or PowerShell."""
    word = Invitation("fd00::1", 4000, "mini-2_x", secrets.token_urlsafe(18), "ab" * 16).word
    assert re.fullmatch(r"[\w.:/-]+", f"join={word}".replace("=", "", 1), re.ASCII)

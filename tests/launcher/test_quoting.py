"""Command lines for other machines: the exact words, and what shells really make of them."""

from __future__ import annotations

import base64
import subprocess

import pytest
from hydra_plugins.smolcluster_launcher._quoting import command_line
from hypothesis import given, settings
from hypothesis import strategies as st

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
    assert line.startswith("powershell -NoProfile -NonInteractive -EncodedCommand ")
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

"""A command line for the shell of another machine, quoted so that no argument can become anything else."""

from __future__ import annotations

import base64
import re
import shlex
from collections.abc import Mapping, Sequence
from typing import Literal, TypeAlias

Shell: TypeAlias = Literal["posix", "powershell"]
NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def command_line(
    argv: Sequence[str], *, shell: Shell = "posix", directory: str | None = None, environment: Mapping[str, str] = {}
) -> str:
    """One line that runs ``argv`` in ``directory`` with ``environment`` added.

    On POSIX systems the line is given to ``/bin/sh``, whatever the login shell is, and the program replaces that shell,
    so that the process that is started is the program itself. On Windows it is given to PowerShell, encoded, so that
    it does not matter whether cmd or PowerShell is the shell that logs in. ``directory`` may begin with ``~/``.

    >>> print(command_line(["echo", "a"], directory="~/b"))
    exec /bin/sh -c 'cd "$HOME"/b && exec echo a'
    """
    for name in environment:
        if not NAME.fullmatch(name):
            raise ValueError(f"no name of a variable: {name!r}")
    for word in (*argv, *environment.values(), directory or ""):
        if "\0" in word:
            raise ValueError("an argument has a null byte")
    if shell == "posix":
        return f"exec /bin/sh -c {shlex.quote(_posix(argv, directory, environment))}"
    script = base64.b64encode(_powershell(argv, directory, environment).encode("utf-16-le")).decode()
    return f"powershell -NoProfile -NonInteractive -EncodedCommand {script}"


def _posix(argv: Sequence[str], directory: str | None, environment: Mapping[str, str]) -> str:
    settings = [f"{name}={value}" for name, value in environment.items()]
    words = shlex.join(["env", *settings, *argv] if settings else list(argv))
    return f"cd {posix_path(directory)} && exec {words}" if directory else f"exec {words}"


def posix_path(path: str) -> str:
    """A path as a word of the shell; ``~/`` at its beginning is the home directory.

    >>> posix_path("~/a b"), posix_path("$x")
    ('"$HOME"/\\'a b\\'', "'$x'")
    """
    if path == "~":
        return '"$HOME"'
    return f'"$HOME"/{shlex.quote(path[2:])}' if path.startswith("~/") else shlex.quote(path)


def _powershell(argv: Sequence[str], directory: str | None, environment: Mapping[str, str]) -> str:
    """PowerShell passes arguments to programs as it did before version 7.3: that form is the same in all versions."""
    parts = ["$PSNativeCommandArgumentPassing = 'Legacy'"]
    parts += [f"$env:{name} = {_single(value)}" for name, value in environment.items()]
    if directory:
        where = f"(Join-Path $HOME {_single(directory[2:])})" if directory.startswith("~/") else _single(directory)
        parts.append(f"Set-Location -LiteralPath {where}")
    parts.append(" ".join(["&", *(_single(_native(word)) for word in argv)]))
    parts.append("exit $LASTEXITCODE")
    return "; ".join(parts)


def _single(word: str) -> str:
    """A single-quoted string: nothing is special in it but the quote itself, in its typographic forms too."""
    return "'" + re.sub("(['\u2018\u2019\u201a\u201b])", r"\1\1", word) + "'"


def _native(word: str) -> str:
    """What PowerShell's old way leaves undone: double quotes escaped, and backslashes that stand before one."""
    if not word:
        return '""'  # an empty argument would be left out
    escaped = re.sub(r'(\\*)"', r'\1\1\\"', word)
    return re.sub(r"(\\+)$", r"\1\1", escaped) if re.search(r"\s", word) else escaped

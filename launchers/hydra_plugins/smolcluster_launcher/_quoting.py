"""A command line for the shell of another machine, quoted so that no argument can become anything else."""

from __future__ import annotations

import base64
import re
import shlex
from collections.abc import Mapping, Sequence
from typing import Literal, TypeAlias

Shell: TypeAlias = Literal["posix", "cmd", "powershell"]
"""What an SSH server gives a command line to; cmd and powershell are those of Windows."""
NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
HARMLESS = re.compile(r"[\w.:\\/=@,+-]+", re.ASCII)
"""Words that mean themselves to cmd, without quotes."""
PROGRAM = re.compile(r'[^"%!^&|<>\r\n]+')
"""Names of programs that mean themselves to cmd between double quotes."""
FIRST_LINE = "exec(open(0,'rb',0,closefd=False).readline())"
"""Python that runs the first line of its standard input, and leaves the rest to be read."""


def command_line(
    argv: Sequence[str], *, shell: Shell = "posix", directory: str | None = None, environment: Mapping[str, str] = {}
) -> str:
    """One line that runs ``argv`` in ``directory`` with ``environment`` added.

    On POSIX systems the line is given to ``/bin/sh``, whatever the login shell is, and the program replaces that shell,
    so that the process that is started is the program itself. PowerShell gets it encoded, and leaves standard input
    alone. cmd has no quoting that holds for all words: there the program must be Python, and what it shall do is in
    :func:`preamble`, which has to be sent first. ``directory`` may begin with ``~/``.

    >>> print(command_line(["echo", "a"], directory="~/b"))
    exec /bin/sh -c 'cd "$HOME"/b && exec echo a'
    """
    _check(argv, directory, environment)
    if shell == "posix":
        return f"exec /bin/sh -c {shlex.quote(_posix(argv, directory, environment))}"
    if shell == "cmd":
        return _cmd(argv, directory, environment)
    script = base64.b64encode(_powershell(argv, directory, environment).encode("utf-16-le")).decode()
    return f"powershell -NoProfile -NonInteractive -InputFormat None -EncodedCommand {script}"


def preamble(
    argv: Sequence[str], *, shell: Shell = "posix", directory: str | None = None, environment: Mapping[str, str] = {}
) -> bytes:
    """What has to be sent to the process before anything else: nothing, or one line that makes it what was asked for.

    The environment is set before anything is imported; ``PYTHONPATH`` counts for the process itself, too.
    """
    _check(argv, directory, environment)
    if shell != "cmd" or _is_plain(argv, directory, environment):
        return b""
    program = [
        "import os, sys",
        f"os.environ.update({dict(environment)!a})",
        f"sys.path[1:1] = filter(None, {environment.get('PYTHONPATH', '')!a}.split(os.pathsep))",
        *([] if directory is None else [f"os.chdir(os.path.expanduser({directory!a}))"]),
        f"sys.argv[:] = {[argv[1], *argv[2 if argv[1] == '-' else 3 :]]!a}",
    ]
    match argv[1]:
        case "-":
            program.append("exec(compile(sys.stdin.buffer.read(), '<stdin>', 'exec'))")
        case "-c":
            program.append(f"exec(compile({argv[2]!a}, '<string>', 'exec'))")
        case "-m":
            program.append(f"import runpy; runpy.run_module({argv[2]!a}, run_name='__main__', alter_sys=True)")
    text = "\n".join(program)
    return f"exec({text!a})\n".encode("ascii")


def _check(argv: Sequence[str], directory: str | None, environment: Mapping[str, str]) -> None:
    for name in environment:
        if not NAME.fullmatch(name):
            raise ValueError(f"no name of a variable: {name!r}")
    for word in (*argv, *environment.values(), directory or ""):
        if "\0" in word:
            raise ValueError("an argument has a null byte")


def _is_plain(argv: Sequence[str], directory: str | None, environment: Mapping[str, str]) -> bool:
    return directory is None and not environment and all(HARMLESS.fullmatch(word) for word in argv)


def _cmd(argv: Sequence[str], directory: str | None, environment: Mapping[str, str]) -> str:
    if _is_plain(argv, directory, environment):
        return " ".join(argv)
    if len(argv) < 2 or argv[1] not in ("-", "-c", "-m") or not PROGRAM.fullmatch(argv[0]):
        raise ValueError(f"cmd can start Python with -, -c or -m only: {' '.join(argv)[:60]}")
    python = argv[0] if HARMLESS.fullmatch(argv[0]) else f'"{argv[0]}"'
    return f'{python} -c "{FIRST_LINE}"'


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

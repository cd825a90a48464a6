"""The command: check everything, then let Hydra start the job or jobs, then say what came of them."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import smolcluster
from smolcluster.cli import earlier
from smolcluster.cli.streams import tell
from smolcluster.cli.words import config_dir_of, rewrite
from smolcluster.errors import ConfigError, Problem, RunFailed, SmolclusterError

if TYPE_CHECKING:
    from smolcluster.pipeline.jobs import Jobs


ONLY_SHOW = ("--help", "-h", "--hydra-help", "--cfg", "-c", "--info", "-i", "--shell-completion", "-sc")
"""With one of these Hydra only shows something: nothing is validated and nothing runs."""
TAKES_VALUE = ("--cfg", "-c", "--config-dir", "-cd", "--config-name", "-cn", "--config-path", "-cp", "--package", "-p")

CONFIG_DIR = ("--config-dir", "-cd")
BACK = ("attach", "stop")
"""Words that are about a run that was left going."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code. Messages go to standard error, one per problem."""
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        return _main(words)
    except ConfigError as error:
        count = len(error.problems)
        heading = "1 problem" if count == 1 else f"{count} problems"
        tell(f"smolcluster: {heading} in the configuration", sys.stderr)
        for problem in error.problems:
            tell(f"  {problem}", sys.stderr)
        return error.exit_code
    except SmolclusterError as error:
        tell(f"smolcluster: {error}", sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        tell("smolcluster: interrupted", sys.stderr)
        return 130
    except BrokenPipeError:  # Hydra was showing something and whoever read it had seen enough
        return 0


def _main(words: list[str]) -> int:
    if "--version" in words:
        tell(f"smolcluster {smolcluster.__version__}", sys.stdout)
        return 0
    if words and words[0].startswith("join="):
        return _join(words)
    if any(word.partition("=")[0] in BACK for word in words):
        from smolcluster.cli.back import come_back

        return come_back(words)
    earlier.refuse(words)
    if any(word.split("=")[0] in ONLY_SHOW for word in words):
        return _show(words)
    flags, overrides = _taken(words)
    from smolcluster.cli.job import JobFailed
    from smolcluster.pipeline.job import preflight
    from smolcluster.pipeline.jobs import gathered
    from smolcluster.spec.compose import sweeper_of, validate_jobs
    from smolcluster.spec.sweeper import BASIC, completed

    specs = validate_jobs(overrides, _value_of(flags, CONFIG_DIR), here=True)
    for spec in specs:
        preflight(spec)
    code, sweeper = 0, sweeper_of(overrides)
    with gathered(len(specs) if sweeper == BASIC else None) as jobs:
        try:
            if sweeper == BASIC:
                _start([*flags, *overrides])
            else:
                _search([*flags, *completed(overrides, sweeper)], sweeper, jobs)
        except KeyboardInterrupt:
            code = 130
        except JobFailed:  # told already, and among the finished
            code = 1
        except SmolclusterError as error:
            if len(jobs.finished) < 2:
                raise
            code = error.exit_code  # among the finished, with its reason
    return max(_conclude(jobs), code)


def _join(words: Sequence[str]) -> int:
    """Join somebody's run with this machine, until that run is over."""
    import asyncio

    from smolcluster.node.keeper import Invitation, join

    value = words[0].partition("=")[2]
    try:
        invitation = Invitation.parse(value)
    except ValueError:
        rule = "must be the word that the run has printed for this machine, and nothing else"
        raise ConfigError([Problem(key="join", value=value, rule=rule)]) from None
    tell(f"joining {invitation.host}:{invitation.port} as {invitation.name}; Ctrl-C leaves", sys.stdout)
    asyncio.run(join(invitation))
    tell("the run is over", sys.stdout)
    return 0


def _start(words: list[str]) -> None:
    """Let Hydra start the jobs. What it cannot do is about its own keys, or about the place where it writes."""
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    from smolcluster.cli.job import smolcluster as job
    from smolcluster.pipeline.job import unwritable

    try:
        _hydra(words, job)
    except (HydraException, OmegaConfBaseException) as error:
        first = str(error).splitlines()[0]
        raise ConfigError([Problem(key="hydra", value=" ".join(words), rule=f"cannot be composed: {first}")]) from None
    except OSError as error:
        raise unwritable(error.filename or "outputs", error) from None


def _search(words: list[str], sweeper: str, jobs: Jobs) -> None:
    """The same with a sweeper that is not Hydra's own: what it raises is told in its name, in one line."""
    try:
        _start(words)
    except (SmolclusterError, OSError):
        raise
    except Exception as error:  # whatever another maker's sweeper raises
        if not any(job.exit_code == 0 for job in jobs.finished) and jobs.finished:
            return  # it has found no metric: every run has failed, and that is told of each
        raise RunFailed(f"hydra/sweeper={sweeper}: {type(error).__name__}: {error}") from error


def _show(words: Sequence[str]) -> int:
    """Let Hydra show what it is asked for. What cannot be composed is explained as it is before a run."""
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    flags, overrides = _taken(words)
    try:
        _hydra([*flags, *overrides], lambda config: None)
    except (HydraException, OmegaConfBaseException) as error:
        from smolcluster.spec.compose import validate_jobs

        validate_jobs(overrides, _value_of(flags, CONFIG_DIR))
        raise ConfigError([Problem(key=" ".join(words), value="", rule=str(error).splitlines()[0])]) from None
    return 0


def _conclude(jobs: Jobs) -> int:
    """The table of a sweep, and the last line: where everything is."""
    from smolcluster.cli.job import brief
    from smolcluster.tracking.tables import comparison_table, show

    finished = jobs.in_order
    if not finished:
        return 0
    folder = finished[0].folder if jobs.total == 1 else finished[0].folder.parent
    if len(finished) > 1:
        rows = [job.row for job in finished]
        for job in finished:
            if job.reason:
                tell(f"smolcluster: run {job.number}: {job.reason}", sys.stderr)
        with suppress(OSError):  # whoever read the output has gone
            show(sys.stdout, comparison_table(rows))
        _write_comparison(folder, rows)
    tell(brief(folder), sys.stdout)
    return max(job.exit_code for job in finished)


def _write_comparison(folder: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    from smolcluster.tracking.comparison import best_of, compared, in_words_of, write

    if (best := best_of(compared(rows))) is not None:
        tell(f"best: {in_words_of(best)}", sys.stdout)
    try:
        files = write(folder, rows)
    except OSError as error:
        tell(f"smolcluster: the comparison in {folder} could not be written: {error.strerror or error}", sys.stderr)
    else:
        tell(f"compared in {', '.join(file.name for file in files)}", sys.stdout)


def _hydra(words: Sequence[str], task: Any) -> None:
    """Hand over to Hydra. It would print tracebacks and exit by itself; asked for the full error it raises."""
    import hydra

    from smolcluster.spec.compose import CONFIG_NAME, conf_dir

    saved, sys.argv = sys.argv, ["smolcluster", *words]  # its name in Hydra's messages, however it was started
    os.environ["HYDRA_FULL_ERROR"] = "1"
    try:
        decorate = hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name=CONFIG_NAME)

        decorate(task)()
    finally:
        sys.argv = saved
        os.environ.pop("HYDRA_FULL_ERROR", None)


def _taken(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """(flags, overrides), with what a run that goes on from another takes over from that one."""
    flags, overrides = _split(words)
    if _value_of(flags, CONFIG_DIR) is None and (inherited := config_dir_of(overrides)) is not None:
        flags = [*flags, CONFIG_DIR[0], inherited]
    return flags, rewrite(overrides)


def _split(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """(flags with their values, overrides)."""
    flags: list[str] = []
    overrides: list[str] = []
    iterator = iter(words)
    for word in iterator:
        if word.startswith("-"):
            flags.append(word)
            if word in TAKES_VALUE:
                flags.extend([value] if (value := next(iterator, None)) is not None else [])
        else:
            overrides.append(word)
    return flags, overrides


def _value_of(flags: Sequence[str], names: Sequence[str]) -> str | None:
    for index, flag in enumerate(flags):
        name, equals, value = flag.partition("=")
        if name in names:
            return value if equals else (flags[index + 1] if index + 1 < len(flags) else None)
    return None

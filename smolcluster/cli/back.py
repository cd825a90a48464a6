"""``attach=<run>`` and ``stop=<run>``: back to a run that ``hydra.launcher.detach=true`` has left going."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from smolcluster.cli.job import brief, left_going
from smolcluster.cli.streams import tell
from smolcluster.errors import ConfigError, Problem
from smolcluster.pipeline.jobs import EXIT_CODES


def come_back(words: Sequence[str]) -> int:
    """Watch the run, or end it. The exit code is the run's; 130 where Ctrl-C ends the watching, and the run goes on."""
    word, *others = sorted(words, key=lambda word: not word.startswith(("attach=", "stop=")))
    key, _, value = word.partition("=")
    if others or not value:
        rule = "takes the directory of one run, and nothing else"
        shown = " ".join([value, *others])
        raise ConfigError([Problem(key=key, value=shown, rule=rule, nearest=f"{key}=outputs/<date>/<time>/<n>")])
    from hydra_plugins.smolcluster_launcher._attach import visit

    folder = Path(value).expanduser().absolute()
    summary = visit(folder, key=key, stop=key == "stop")
    status, reason = str(summary.get("status")), str(summary.get("reason") or "")
    if status == "detached":
        tell(left_going(folder, reason), sys.stdout)
    elif reason and not (sys.stdout.isatty() and sys.stderr.isatty()):  # there the table above has told it
        tell(f"smolcluster: {reason}", sys.stderr)
    tell(brief(folder), sys.stdout)
    return 130 if status == "detached" else EXIT_CODES.get(status, 1)

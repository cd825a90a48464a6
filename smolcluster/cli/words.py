"""The words of a command line before Hydra sees them: shorthands, quoting, and going on from a run. No Hydra here."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from smolcluster.errors import ConfigError, Problem

PATH_KEYS = ("resume", "rerun", "data.path", "model.path", "data.tokenizer", "hydra.sweep.dir", "hydra.run.dir")
"""Their values are paths or free texts: quoted, so that Hydra's grammar takes commas, spaces and ~ as they are."""
PLAIN = re.compile(r"[\w./+-]*")
NOT_INHERITED = ("resume", "pipeline")
"""What a run that goes on from another does not take over from its command line."""
REACHING = frozenset(
    f"hydra.launcher.{key}"
    for key in (
        "session", "connect_timeout_s", "gate_host", "gate_port", "join_timeout_s", "sync", "env", "wheelhouse",
        "keep_days",
    )
)  # fmt: skip
"""What it does take over of the words that are Hydra's own: how machines are reached and made ready."""


def rewrite(words: Sequence[str]) -> list[str]:
    """Words as Hydra wants them. ``resume=<run>`` puts that run's own words in front of the new ones.

    >>> rewrite(["data.path=~/my texts/a,b.txt"])
    ["data.path='~/my texts/a,b.txt'"]
    """
    quoted = [_quote(word) for word in words]
    for word in words:
        key, _, value = word.partition("=")
        if key == "resume" and value not in ("", "null"):
            return _merge(_words_of(value), quoted)
    return quoted


def _quote(word: str) -> str:
    key, equals, value = word.partition("=")
    if not equals or key.lstrip("+") not in PATH_KEYS or PLAIN.fullmatch(value) or value[:1] in "'\"":
        return word
    if value.startswith("${"):
        return word
    escaped = value.replace("\\", "\\\\").replace("'", "\\'")
    return f"{key}='{escaped}'"


def _words_of(resume: str) -> list[str]:
    """The command line of the run that ``resume`` names (or of the run that the named checkpoint is in)."""
    if (record := _record(resume)) is None:
        rule = "must be the directory of a run (it has .hydra/overrides.yaml), or one of its checkpoints"
        raise ConfigError([Problem(key="resume", value=resume, rule=rule)])
    words = [str(word) for word in yaml.safe_load((record / "overrides.yaml").read_text()) or []]
    about = [str(word) for word in _of_hydra(record, "overrides", "hydra")]
    return [*words, *(word for word in about if _key(word) in REACHING)]


def config_dir_of(words: Sequence[str]) -> str | None:
    """The ``--config-dir`` of the run that ``resume`` names, where there was one and it is still there."""
    for word in words:
        key, _, value = word.partition("=")
        record = _record(value) if key == "resume" else None
        for source in _of_hydra(record, "runtime", "config_sources") if record else ():
            if isinstance(source, dict) and source.get("provider") == "command-line":
                folder = str(source.get("path"))
                return folder if Path(folder).is_dir() else None
    return None


def _record(resume: str) -> Path | None:
    """What Hydra has written of the run that ``resume`` names."""
    path = Path(resume.strip("'\"")).expanduser()
    folders = [folder / ".hydra" for folder in (path, *list(path.parents)[:2])]
    return next((folder for folder in folders if (folder / "overrides.yaml").is_file()), None)


def _of_hydra(record: Path, *keys: str) -> list[Any]:
    """A list in Hydra's own part of a run's configuration; empty where it cannot be read."""
    try:
        found = yaml.safe_load((record / "hydra.yaml").read_text())["hydra"]
        for key in keys:
            found = found[key]
    except (OSError, yaml.YAMLError, LookupError, TypeError):
        return []
    return found if isinstance(found, list) else []


def _merge(old: Sequence[str], new: Sequence[str]) -> list[str]:
    """``old`` words, less what ``new`` ones replace and what is not inherited, then ``new``."""
    replaced = {_key(word) for word in new}
    kept = [w for w in old if _key(w) not in replaced and not _key(w).startswith(NOT_INHERITED)]
    chosen = {key for key in replaced if "." not in key}
    # a newly chosen option has keys of its own: algo=edp makes algo.timeout of the old run meaningless
    kept = [word for word in kept if _key(word).partition(".")[0] not in chosen or "." not in _key(word)]
    return [*kept, *new]


def _key(word: str) -> str:
    return word.partition("=")[0].lstrip("+~")

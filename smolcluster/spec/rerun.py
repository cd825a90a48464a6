"""The spec of an earlier run, taken as it stands: what ``rerun=`` does instead of composing one."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from smolcluster.errors import ConfigError, Problem

MAY_CHANGE = ("cluster", "tracking", "logging")
"""Where a run happens and who hears of it; everything else decides its numbers."""
RECORD = "run_spec.json"


def repeated(plain: Mapping[str, Any], words: Sequence[str]) -> dict[str, Any]:
    """What ``plain``, a composed configuration, becomes where it asks for a rerun; else itself.

    ``words`` are the overrides that it was composed with. ConfigError where they ask for anything else.
    """
    source = plain.get("rerun")
    if source is None:
        return dict(plain)
    spec = recorded(str(source)).get("spec")
    problems = []
    if not isinstance(spec, dict):
        rule = f"must be the directory of a run: it has {RECORD}"
        raise ConfigError([Problem(key="rerun", value=source, rule=rule)])
    changed = set()
    for word in words:
        key = word.partition("=")[0].lstrip("+~")
        group = key.partition(".")[0].partition("@")[0]
        if group in MAY_CHANGE:
            changed.add(group)
        elif group not in ("rerun", "hydra") and not key.startswith("hydra/"):
            rule = "cannot be changed in a rerun: the run is repeated as it was, but for cluster, tracking and logging"
            problems.append(Problem(key=key, value=word.partition("=")[2], rule=rule, nearest="without rerun="))
    if problems:
        raise ConfigError(problems)
    own = {group: plain[group] for group in changed}
    choices = {**spec.get("choices", {}), **{group: plain["choices"][group] for group in changed}}
    return {**spec, **own, "choices": choices, "rerun": str(source)}


def recorded(source: str) -> dict[str, Any]:
    """``run_spec.json`` of a run; empty where there is none that can be read."""
    try:
        found = json.loads((Path(source).expanduser() / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def digest_of(source: str) -> str | None:
    """The digest of the final weights of a run; None where it has none."""
    try:
        summary = json.loads((Path(source).expanduser() / "summary.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    digest = summary.get("digest") if isinstance(summary, dict) and summary.get("status") == "done" else None
    return digest if isinstance(digest, str) else None

"""Who chooses the values of a sweep: Hydra's own sweeper tries all that are named, others search by themselves."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from smolcluster.errors import Problem
from smolcluster.spec.schema import Range, check, closest

GROUP = "hydra/sweeper"
BASIC = "basic"
SETTINGS = "hydra.sweeper"


@dataclass(frozen=True, kw_only=True)
class Optuna:
    """What ``hydra/sweeper=optuna`` can be told. Its sampler has settings of its own, which Optuna checks."""

    sampler: Mapping[str, Any] = field(default_factory=dict)
    """How values are chosen."""
    direction: Literal["minimize", "maximize"] = "minimize"
    """Whether a small metric is good, or a large one."""
    n_trials: Annotated[int, Range(ge=1, le=100_000, unit="runs")] = 20
    """How many runs."""
    n_jobs: Annotated[int, Range(ge=1, le=64, unit="runs")] = 1
    """So many are chosen at a time, before the results of any of them are known."""
    max_failure_rate: Annotated[float, Range(ge=0, le=1)] = 1.0
    """A batch of which a larger share has failed ends the sweep."""
    storage: str | None = None
    """URL of a database that keeps the study."""
    study_name: str | None = None
    """Name of the study there."""
    params: Mapping[str, Any] | None = None
    """Values and spaces by key."""
    search_space: Mapping[str, Any] | None = None
    """The old form of ``params``."""
    custom_search_space: str | None = None
    """Function that adds to a trial."""


@dataclass(frozen=True, kw_only=True)
class Plugin:
    """A sweeper that is installed apart."""

    module: str
    install: str
    settings: type
    words: tuple[str, ...]
    """What it is told unless the person says otherwise."""


PLUGINS = {
    "optuna": Plugin(
        module="hydra_plugins.hydra_optuna_sweeper",
        install="pip install 'smolcluster[optuna]'",
        settings=Optuna,
        words=(f"{SETTINGS}.n_jobs=${{hydra.launcher.max_concurrent}}", f"{SETTINGS}.max_failure_rate=1.0"),
    )
}


def completed(words: Sequence[str], name: str) -> list[str]:
    """``words`` with what the sweeper of that name is told besides: to keep the machines busy, and to go on when a
    run fails.

    >>> completed(["hydra.sweeper.n_jobs=3"], "optuna")
    ['hydra.sweeper.max_failure_rate=1.0', 'hydra.sweeper.n_jobs=3']
    """
    said = {word.partition("=")[0].lstrip("+") for word in words}
    plugin = PLUGINS.get(name)
    more = [word for word in (plugin.words if plugin else ()) if word.partition("=")[0] not in said]
    return [*more, *words]


def unusable(name: str, known: list[str]) -> Problem | None:
    """Why the sweeper of that name cannot be used here; None where it can. ``known`` are the options of its group."""
    plugin = PLUGINS.get(name)
    if plugin is not None and importlib.util.find_spec(plugin.module) is None:
        return Problem(key=GROUP, value=name, rule=f"is not installed: {plugin.install}")
    if name not in known:
        return Problem(key=GROUP, value=name, rule=f"must be one of {', '.join(known)}", nearest=closest(name, known))
    return None


def mistakes(name: str, settings: Mapping[str, Any]) -> list[Problem]:
    """What is wrong with ``hydra.sweeper.*`` of the sweeper of that name."""
    problems: list[Problem] = []
    if name in PLUGINS:
        check(PLUGINS[name].settings, settings, SETTINGS, problems)
    return problems

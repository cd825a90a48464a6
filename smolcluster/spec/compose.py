"""Hydra, kept to one place: where conf/ is, what a command line composes to, and what is wrong with it.

Hydra stops at the first mistake; a person wants to see all of them. So the words of a command line are looked at
one by one first: a group's option must exist, a key must be in the composed configuration. What is wrong is
collected, left out, and the rest is composed and checked, so that one message names everything.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from hydra import compose
from hydra import version as hydra_version
from hydra._internal.hydra import Hydra
from hydra._internal.utils import create_config_search_path
from hydra.core.global_hydra import GlobalHydra
from hydra.core.object_type import ObjectType
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override, ValueType
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from smolcluster.errors import ConfigError, Problem
from smolcluster.spec import sweeper
from smolcluster.spec.build import component_class, conf_dir, groups
from smolcluster.spec.rerun import repeated
from smolcluster.spec.run import RunSpec
from smolcluster.spec.schema import TARGET, closest, takes
from smolcluster.spec.validate import validated

CONFIG_NAME = "config"
__all__ = ["CONFIG_NAME", "conf_dir", "spec_of", "sweeper_of", "validate_jobs"]


class Composed(NamedTuple):
    """A configuration as plain data, and what was wrong with the words that made it."""

    config: dict[str, Any]
    problems: list[Problem]


def validate_jobs(words: Sequence[str], config_dir: str | None, *, here: bool = False) -> list[RunSpec]:
    """The spec of every job that these overrides ask for; ConfigError with all that is wrong in any of them.

    Of a sweeper that chooses by itself the jobs are not known yet: the specs are those at the ends of its space.
    ``here``: for running them on this machine, where what they need must be, too.
    """
    problems: list[Problem] = []
    specs = []
    with _hydra(config_dir):
        parsed = [override for word in words if (override := _parse(word, problems)) is not None]
        name = _sweeper(parsed, problems)
        swept = [override for override in parsed if _is_sweepable(override, name, problems)]
        for job in _jobs(swept) if name == sweeper.BASIC else _ends(swept):
            composed = _compose(job)
            try:
                config = repeated(composed.config, [str(override.input_line) for override in job])
                specs.append(validated(config, composed.problems, here=here))
            except ConfigError as error:
                problems.extend(problem for problem in error.problems if problem not in problems)
    if problems:
        raise ConfigError(problems)
    return specs


def spec_of(config: DictConfig, choices: Mapping[str, str], words: Sequence[str]) -> RunSpec:
    """The spec of a job's configuration as Hydra has composed it from these overrides."""
    return validated(repeated(_plain(config, choices), words))


@contextmanager
def _hydra(config_dir: str | None) -> Iterator[None]:
    """Hydra's composer over conf/ and a folder of the user's (``--config-dir``), as hydra.main sets it up."""
    search_path = create_config_search_path(str(conf_dir()))
    if config_dir is not None:
        path = Path(config_dir).expanduser().absolute()
        if not path.is_dir():
            raise ConfigError([Problem(key="--config-dir", value=config_dir, rule="must be a folder")])
        search_path.prepend("command-line", f"file://{path}", anchor="schema")
    GlobalHydra.instance().clear()
    hydra_version.setbase("1.3")
    Hydra.create_main_hydra2(task_name="smolcluster", config_search_path=search_path)
    try:
        yield
    finally:
        GlobalHydra.instance().clear()


def sweeper_of(words: Sequence[str]) -> str:
    """Name of the sweeper that chooses the jobs.

    >>> sweeper_of(["optim.lr=1,2"]), sweeper_of(["hydra/sweeper=optuna", "seed=1"])
    ('basic', 'optuna')
    """
    chosen = [value for key, _, value in (word.partition("=") for word in words) if key.lstrip("+") == sweeper.GROUP]
    return chosen[-1] if chosen else sweeper.BASIC


def _sweeper(overrides: Sequence[Override], problems: list[Problem]) -> str:
    """The same, and what is wrong with it or with what it is told."""
    loader = GlobalHydra.instance().config_loader()
    name = sweeper_of([str(override.input_line) for override in overrides])
    problem = sweeper.unusable(name, loader.get_group_options(sweeper.GROUP, ObjectType.CONFIG))
    if problem is not None:
        problems.append(problem)
        return name
    words = [str(each.input_line) for each in overrides if each.key_or_group.startswith((sweeper.GROUP, "hydra."))]
    own = sweeper.completed(words, name)
    try:
        settings = compose(CONFIG_NAME, own, return_hydra_config=True).hydra.sweeper
        plain = OmegaConf.to_container(settings, resolve=True, enum_to_str=True)
    except (HydraException, OmegaConfBaseException) as error:
        rule = f"cannot be composed: {'; '.join(str(error).splitlines()[:2])}"
        problems.append(Problem(key="hydra", value=" ".join(words), rule=rule))
    else:
        assert isinstance(plain, dict)
        problems.extend(sweeper.mistakes(name, {str(key): value for key, value in plain.items()}))
    return name


def _parse(word: str, problems: list[Problem]) -> Override | None:
    try:
        override = OverridesParser.create().parse_override(word)
        override.config_loader = GlobalHydra.instance().config_loader()  # which glob(...) asks for the options
        return override
    except HydraException as error:
        first = str(error).splitlines()[0] if str(error) else "cannot be read"
        rule = f"is not an override: {first}"
        problems.append(Problem(key=word.partition("=")[0] or word, value=word, rule=rule, nearest="key=value"))
        return None


def _jobs(overrides: Sequence[Override]) -> Iterator[list[Override]]:
    """The overrides of each job: the product of what is swept, as Hydra's basic sweeper makes it."""
    yield from map(list, itertools.product(*(_values(override) for override in overrides)))


def _ends(overrides: Sequence[Override]) -> Iterator[list[Override]]:
    """Jobs at the ends of the space that a sweeper searches: every value and end occurs, not every combination."""
    choices = [_values(override) for override in overrides]
    choices = [
        [values[0], values[-1]] if override.is_range_sweep() else values
        for override, values in zip(overrides, choices, strict=True)
    ]
    first = [values[0] for values in choices]
    yield first
    for place, values in enumerate(choices):
        for value in values[1:]:
            yield [*first[:place], value, *first[place + 1 :]]


def _values(override: Override) -> list[Override]:
    """The values that an override stands for; of an interval its two ends."""
    if not override.is_sweep_override():
        return [override]
    space = override.value()
    found = (space.start, space.end) if isinstance(space, IntervalSweep) else override.sweep_string_iterator()
    key = override.get_key_element()
    return [OverridesParser.create().parse_override(f"{key}={value}") for value in found]


def _is_sweepable(override: Override, name: str, problems: list[Problem]) -> bool:
    """Whether the sweeper of that name can take what is to be tried of this key; says why not."""
    if not override.is_sweep_override():
        return True
    rule, nearest = "", ""
    if name == sweeper.BASIC and override.is_interval_sweep():
        rule, nearest = "is a space to search, which hydra/sweeper=optuna does", f"{override.key_or_group}=1e-3,1e-2"
    elif name != sweeper.BASIC and override.value_type == ValueType.GLOB_CHOICE_SWEEP:
        rule = f"hydra/sweeper={name} takes no glob(...)"
        nearest = f"choice({','.join(str(each.value()) for each in _values(override))})"
    elif not _values(override):
        rule = "stands for no value at all"
    if rule:
        value = str(override.input_line).partition("=")[2]
        problems.append(Problem(key=override.key_or_group, value=value, rule=rule, nearest=nearest))
    return not rule


def _compose(overrides: Sequence[Override]) -> Composed:
    """Compose what can be composed; everything else becomes a problem."""
    problems: list[Problem] = []
    loader = GlobalHydra.instance().config_loader()
    groups: list[str] = []
    keys: list[Override] = []
    for override in overrides:
        name = override.key_or_group
        options = loader.get_group_options(name, ObjectType.CONFIG)
        if name == "hydra" or name.startswith(("hydra.", "hydra/")):
            continue
        if not options:
            keys.append(override)
        elif override.value() in options:
            groups.append(str(override.input_line))
        else:
            rule = f"must be one of {', '.join(options)} (conf/{name}/)"
            nearest = closest(str(override.value()), options)
            problems.append(Problem(key=name, value=override.value(), rule=rule, nearest=nearest))
    base = compose(config_name=CONFIG_NAME, overrides=groups, return_hydra_config=True)
    known = [override for override in keys if _is_known(base, override, problems)]
    lines = groups + [str(override.input_line) for override in known]
    try:
        config = compose(config_name=CONFIG_NAME, overrides=lines, return_hydra_config=True)
        return Composed(_plain(config, dict(config.hydra.runtime.choices)), problems)
    except (HydraException, OmegaConfBaseException) as error:
        first = str(error).splitlines()[0]
        problems.append(Problem(key=" ".join(lines), value="", rule=f"cannot be composed: {first}"))
        return Composed(_plain(base, dict(base.hydra.runtime.choices)), problems)


def _is_known(config: DictConfig, override: Override, problems: list[Problem]) -> bool:
    """Whether the key is there to be overridden; says what comes close where it is not."""
    if override.is_add() or override.is_force_add():
        return True
    node: Any = config
    parts = override.key_or_group.replace("/", ".").split(".")
    for depth, part in enumerate(parts):
        inside = [str(key) for key in node] if isinstance(node, DictConfig) else []
        inside = [key for key in inside if not (depth == 0 and key == "hydra")]
        if part not in inside:
            problems.append(_unknown(config, override, parts, depth, inside))
            return False
        node = node._get_node(part)
        if not isinstance(node, DictConfig):
            node = None
    return True


def _paths(config: DictConfig) -> Iterator[str]:
    """Every key that is two deep: ``train.epochs``, ``optim.lr`` ..."""
    for group in config:
        inner = config._get_node(group)
        if group != "hydra" and isinstance(inner, DictConfig) and not inner._is_none():
            yield from (f"{group!s}.{key!s}" for key in inner)


def _unknown(config: DictConfig, override: Override, parts: list[str], depth: int, inside: list[str]) -> Problem:
    """Part ``depth`` of a key is not among the keys ``inside`` of the part before it."""
    shown = [key for key in inside if not key.startswith("_")]
    rule = f"unknown key (known: {', '.join(shown)})" if shown else "unknown key (this value has no keys)"
    found = closest(parts[depth], shown)
    nearest = ".".join([*parts[:depth], found]) if found else ""
    if not nearest and len(parts) == 1:
        nearest = " or ".join(path for path in _paths(config) if path.rpartition(".")[2] == parts[0])
    if _may_have(config, parts):
        rule, nearest = "is not there yet: a new key is added with +", f"+{override.input_line}"
    value = override.get_value_element_as_str() if not override.is_delete() else None
    return Problem(key=override.key_or_group, value=value, rule=rule, nearest=nearest)


def _may_have(config: DictConfig, parts: list[str]) -> bool:
    """Whether the component could have that key, which its file does not have."""
    group, *keys = parts
    name = groups().get(group)
    cls = component_class(name, config[group].get(TARGET)) if name and keys else None
    return cls is not None and takes(cls, keys)


def _plain(config: DictConfig, choices: Mapping[str, Any]) -> dict[str, Any]:
    """As plain data with interpolations resolved, without Hydra's own part."""
    own = OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"])
    plain = OmegaConf.to_container(own, resolve=True)
    assert isinstance(plain, dict)
    named = {str(group): str(option) for group, option in choices.items() if not str(group).startswith("hydra/")}
    return {**{str(key): value for key, value in plain.items()}, "choices": named}

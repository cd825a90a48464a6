"""From plain data to a :class:`RunSpec`: the only place where a ``_target_`` becomes a class, by allow-list.

A node receives its spec over a pipe. Only frozen dataclasses inside the packages of our own config groups
can be named there, so a spec cannot make a node run anything else. (``model=custom`` and ``data=custom``
import what their ``target`` field names; that is their purpose, and it is the user's own code.)
"""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin

import yaml

import smolcluster
from smolcluster.errors import ConfigError, Problem
from smolcluster.spec.run import RunSpec
from smolcluster.spec.schema import TARGET, Group, check, hints

PACKAGES: Mapping[str, str] = {
    "pipeline": "smolcluster.pipeline",
    "cluster": "smolcluster.cluster.inventory",
    "algo": "smolcluster.algo",
    "model": "smolcluster.model",
    "data": "smolcluster.data",
    "optim": "smolcluster.optim",
    "schedule": "smolcluster.train.schedule",
    "aggregator": "smolcluster.aggregator",
    "comms": "smolcluster.comms.transport",
    "tracking": "smolcluster.tracking",
    "logging": "smolcluster.tracking.logs",
}
"""Config group -> the package (or module) that its components live in."""


def conf_dir() -> Path:
    """conf/ as it is installed, or as it lies in a checkout."""
    package = Path(smolcluster.__file__).parent
    installed = package / "conf"
    return installed if installed.is_dir() else package.parent / "conf"


def option(group: str, name: str) -> Any:
    """The component of ``conf/<group>/<name>.yaml`` with its defaults."""
    known = sorted(file.stem for file in (conf_dir() / group).glob("*.yaml"))
    if name not in known:
        raise ConfigError([Problem(key=group, value=name, rule=f"must be one of {', '.join(known)}")])
    part = yaml.safe_load((conf_dir() / group / f"{name}.yaml").read_text())
    cls = component_class(group, part[TARGET])
    problems: list[Problem] = []
    component: Any = check(cls, part, group, problems) if cls is not None else None
    if problems or component is None:
        raise ConfigError(problems)
    return component


def options(group: str) -> dict[str, type]:
    """The options of a group by name, each with the class of its component."""
    found = {}
    for file in sorted((conf_dir() / group).glob("*.yaml")):
        cls = component_class(group, yaml.safe_load(file.read_text())[TARGET])
        assert cls is not None, file
        found[file.stem] = cls
    return found


def groups() -> dict[str, str]:
    """Field of :class:`RunSpec` -> config group, for the fields that hold a component."""
    found = {}
    for name, hint in hints(RunSpec).items():
        marks = get_args(hint)[1:] if get_origin(hint) is Annotated else ()
        for mark in marks:
            if isinstance(mark, Group):
                found[name] = mark.name
    return found


def component_class(group: str, target: object) -> type | None:
    """The class that ``target`` names, or None where the allow-list does not admit it."""
    package = PACKAGES[group]
    module_name, _, class_name = str(target).rpartition(".")
    if not (module_name == package or module_name.startswith(package + ".")):
        return None
    try:
        cls = getattr(importlib.import_module(module_name), class_name, None)
    except ModuleNotFoundError:
        return None
    return cls if isinstance(cls, type) and dataclasses.is_dataclass(cls) else None


def build(config: Mapping[str, Any]) -> RunSpec:
    """The typed spec, or :class:`ConfigError` with every value that is out of range, unknown or of the wrong type."""
    problems: list[Problem] = []
    spec = assemble(config, problems)
    if problems or spec is None:
        raise ConfigError(problems)
    return spec


def assemble(config: Mapping[str, Any], problems: list[Problem]) -> RunSpec | None:
    """Like :func:`build`, but adds to ``problems`` and goes on with defaults; None where that is not possible."""
    values, complete = dict(config), True
    for name, group in groups().items():
        part = config.get(name)
        if not isinstance(part, Mapping) or TARGET not in part:
            problems.append(Problem(key=name, value=part, rule=f"must be one of the options of conf/{group}/"))
            complete = False
            continue
        cls = component_class(group, part[TARGET])
        if cls is None:
            rule = f"must name a dataclass in {PACKAGES[group]} (arbitrary classes are never built)"
            problems.append(Problem(key=f"{name}.{TARGET}", value=part[TARGET], rule=rule))
            complete = False
            continue
        values[name] = check(cls, part, name, problems)
        complete = complete and values[name] is not None
    return check(RunSpec, values, "", problems) if complete else None

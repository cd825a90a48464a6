"""``package.module:function``: how a configuration names something of the user's own."""

from __future__ import annotations

import importlib
import inspect
import os
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from smolcluster.errors import ConfigError, Problem

RULE = "must be package.module:name, importable on every node"


def problems(key: str, target: str) -> Iterable[Problem]:
    """What is wrong with the form of ``target``; nothing is imported."""
    module, _, name = target.partition(":")
    words = [*module.split("."), *name.split(".")]
    if not all(word.isidentifier() for word in words):
        dotted = target.replace("/", ".").removesuffix(".py")
        if ":" not in dotted and "." in dotted:
            dotted = ":".join(dotted.rsplit(".", 1))
        yield Problem(key=key, value=target, rule=RULE, nearest=dotted if dotted != target else "")


def missing(key: str, target: str) -> Iterable[Problem]:
    """Whether the module of ``target`` is on this machine; nothing is imported, so its name is not looked at."""
    module = target.partition(":")[0]
    if not _is_there(module):
        rule = f"there is no module {module} here: neither in this folder ({os.getcwd()}) nor installed"
        yield Problem(key=key, value=target, rule=rule)


def _is_there(module: str) -> bool:
    """Nodes are started in this folder and find its modules, also where this command does not."""
    place: list[str] | None = [os.getcwd(), *sys.path]
    names = module.split(".")
    for depth in range(1, len(names) + 1):
        name = ".".join(names[:depth])
        found = (finder.find_spec(name, place) for finder in sys.meta_path if hasattr(finder, "find_spec"))
        spec = next((spec for spec in found if spec is not None), None)
        if spec is None:
            return False
        place = spec.submodule_search_locations
        if place is None:
            return depth == len(names)
    return True


def imported(key: str, target: str) -> Callable[..., Any]:
    """What ``target`` names; ConfigError where it is not there or cannot be called."""
    module, _, names = target.partition(":")
    try:
        found: Any = importlib.import_module(module)
        for name in names.split("."):
            found = getattr(found, name)
    except (ImportError, AttributeError) as error:
        raise ConfigError([Problem(key=key, value=target, rule=f"{RULE} ({error})")]) from error
    if not callable(found):
        raise ConfigError([Problem(key=key, value=target, rule=f"must name something callable, not {found!r}")])
    return found  # type: ignore[no-any-return]


def call(key: str, target: str, kwargs: Mapping[str, Any]) -> Any:
    """The result of calling it with ``kwargs``; ConfigError where it does not take them."""
    function = imported(key, target)
    try:
        inspect.signature(function).bind(**kwargs)
    except TypeError as error:
        problem = Problem(key=key, value=target, rule=f"does not take these arguments: {error}")
        raise ConfigError([problem]) from error
    return function(**kwargs)

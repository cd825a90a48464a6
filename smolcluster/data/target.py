"""``package.module:function``: how a configuration names something of the user's own."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from smolcluster.errors import ConfigError, Problem

RULE = "must be package.module:name, importable on every node"


def problems(key: str, target: str) -> Iterable[Problem]:
    """What is wrong with the form of ``target``; nothing is imported."""
    module, _, name = target.partition(":")
    words = [*module.split("."), *name.split(".")]
    if not all(word.isidentifier() for word in words):
        yield Problem(key=key, value=target, rule=RULE, nearest=target.replace("/", ".").removesuffix(".py"))


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

"""Configuration as typed dataclasses: checking a mapping against one, and saying everything that is wrong.

A component (an algorithm, a model, an optimizer ...) *is* its own schema: a frozen, keyword-only dataclass
whose fields carry their range in the annotation::

    lr: Annotated[float, Range(gt=0, le=10)] = 1e-3

:func:`check` turns a plain mapping into an instance and collects a :class:`~smolcluster.errors.Problem`
for every value out of range, of the wrong type, missing or unknown. Nothing here knows Hydra or torch.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import types
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from smolcluster.errors import Problem

T = TypeVar("T")
TARGET = "_target_"
MISSING = "???"
INTERNAL = "internal"
"""In the metadata of a field that is filled in, not typed: it is not among the keys that messages name."""


@dataclass(frozen=True, kw_only=True)
class Range:
    """The interval a number must lie in. ``unit`` is for people: ``seconds``, ``samples``, ``GB``."""

    ge: float | None = None
    gt: float | None = None
    le: float | None = None
    lt: float | None = None
    unit: str = ""

    def admits(self, value: float) -> bool:
        return (
            math.isfinite(value)
            and (self.ge is None or value >= self.ge)
            and (self.gt is None or value > self.gt)
            and (self.le is None or value <= self.le)
            and (self.lt is None or value < self.lt)
        )

    def __str__(self) -> str:
        signs = ((">=", self.ge), (">", self.gt), ("<=", self.le), ("<", self.lt))
        bounds = " and ".join(f"{sign} {bound:g}" for sign, bound in signs if bound is not None)
        return f"must be {bounds or 'finite'}" + (f" {self.unit}" if self.unit else "")

    def nearest(self, value: float, default: object) -> str:
        """The closed bound that ``value`` has passed, else the default: something that is surely valid."""
        low, high = self.ge, self.le
        if low is not None and value < low:
            return f"{low:g}"
        if high is not None and value > high:
            return f"{high:g}"
        return "" if default in (None, MISSING) or default is dataclasses.MISSING else str(default)


@dataclass(frozen=True, kw_only=True)
class Group:
    """Marks a field that holds a component of the config group ``name`` (its ``_target_`` says which)."""

    name: str


@dataclass(frozen=True)
class LocalPath:
    """Marks a text that names a file or a folder of this machine, or may do so: nodes elsewhere must have it, too."""


@dataclass(frozen=True)
class Importable:
    """Marks a text ``module:name``: nodes elsewhere must have that module, too."""


def closest(word: str, known: Iterable[str]) -> str:
    """The known word most like ``word``, or an empty string where none is like it.

    >>> closest("synps", ["syncps", "edp"])
    'syncps'
    """
    found = difflib.get_close_matches(str(word), list(known), n=1, cutoff=0.5)
    return found[0] if found else ""


def hints(cls: type) -> dict[str, Any]:
    """The resolved annotations of a dataclass, ranges included."""
    return get_type_hints(cls, include_extras=True)


def defaults(cls: type) -> dict[str, Any]:
    """Field name -> default, :data:`dataclasses.MISSING` where there is none."""
    found = {}
    for field in dataclasses.fields(cls):
        factory = field.default_factory
        found[field.name] = factory() if factory is not dataclasses.MISSING else field.default
    return found


def check(cls: type[T], mapping: Mapping[str, Any], path: str, problems: list[Problem]) -> T | None:
    """An instance of ``cls`` built from ``mapping``; what is wrong is added to ``problems``.

    A wrong value is replaced by its default in the instance (a text that must be set by an empty one), so that later
    checks (of combinations) can still run and all problems are reported together; None where there is no default.
    ``path`` is the key path of the mapping itself (empty at the root), so that messages name what to type.
    """
    known, fallback, buildable = hints(cls), defaults(cls), True
    given = {key: value for key, value in mapping.items() if key != TARGET}
    fields = [field for field in dataclasses.fields(cls) if field.init]  # type: ignore[arg-type]
    names = [field.name for field in fields]
    shown = sorted(field.name for field in fields if not field.metadata.get(INTERNAL))
    for key in given.keys() - set(names):
        rule = f"unknown key (known: {', '.join(shown)})"
        problems.append(Problem(key=join(path, key), value=given[key], rule=rule, nearest=closest(key, shown)))
    values = {}
    for name in names:
        before = len(problems)
        if name in given:
            values[name] = _value(known[name], given[name], join(path, name), fallback[name], problems)
        elif fallback[name] is dataclasses.MISSING:
            problems.append(Problem(key=join(path, name), value=MISSING, rule="is required and has no default"))
        if len(problems) > before and not dataclasses.is_dataclass(values.get(name)):  # those hold defaults already
            values.pop(name, None)
            if fallback[name] is dataclasses.MISSING and _bare(known[name]) is str:
                values[name] = ""  # nothing is built from it: it lets later checks run
            buildable = buildable and (name in values or fallback[name] is not dataclasses.MISSING)
    return cls(**values) if buildable else None


def takes(hint: Any, keys: Sequence[str]) -> bool:
    """Whether a value of that type may have a key in a key in it ...: fields of dataclasses, any key of a mapping.

    >>> takes(Mapping[str, Range], ["a", "unit"]), takes(Range, ["x"]), takes(int | None, ["x"])
    (True, False, False)
    """
    if not keys:
        return True
    if get_origin(hint) is Annotated:
        return takes(_bare(hint), keys)
    if get_origin(hint) in (Union, types.UnionType):
        return any(takes(kind, keys) for kind in get_args(hint))
    if get_origin(hint) in (dict, Mapping):
        return takes(get_args(hint)[1], keys[1:])
    return dataclasses.is_dataclass(hint) and keys[0] in hints(hint) and takes(hints(hint)[keys[0]], keys[1:])  # type: ignore[arg-type]


def _bare(hint: Any) -> Any:
    """A type without what marks it."""
    return get_args(hint)[0] if get_origin(hint) is Annotated else hint


def join(path: str, key: object) -> str:
    """``optim`` and ``lr`` make ``optim.lr``."""
    return f"{path}.{key}" if path else str(key)


def _value(hint: Any, value: Any, path: str, default: Any, problems: list[Problem]) -> Any:
    """``value`` as the type that ``hint`` asks for; adds to ``problems`` where it cannot be."""
    limits: tuple[Any, ...] = ()
    if get_origin(hint) is Annotated:
        hint, *extra = get_args(hint)
        limits = tuple(extra)
    if value == MISSING:
        return _wrong("must be set: it has no default", value, path, problems)
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        if value is None and type(None) in inner:
            return None
        return _union([kind for kind in inner if kind is not type(None)], limits, value, path, default, problems)
    if origin is Literal:
        return _choice(inner, value, path, problems)
    if hint in (int, float):
        return _number(hint, limits, value, path, default, problems)
    if hint is bool:
        if isinstance(value, bool):
            return value
        return _wrong("must be true or false", value, path, problems, nearest=str(default).lower())
    if hint is str:
        if isinstance(value, (str, int, float)) and not isinstance(value, bool) and value != MISSING:
            return str(value)
        return _wrong("must be a text", value, path, problems)
    if origin in (list, tuple):
        if isinstance(value, (list, tuple)):
            return tuple(_value(inner[0], v, join(path, i), None, problems) for i, v in enumerate(value))
        return _wrong("must be a list, written [a,b,c]", value, path, problems)
    if origin in (dict, Mapping):
        if isinstance(value, Mapping):
            return {str(k): _value(inner[1], v, join(path, k), None, problems) for k, v in value.items()}
        return _wrong("must be a mapping, written {a: 1, b: 2}", value, path, problems)
    if dataclasses.is_dataclass(hint):
        if isinstance(value, Mapping):
            return check(hint, value, path, problems)  # type: ignore[arg-type]
        return _wrong("must be a mapping", value, path, problems)
    return value


def _union(
    kinds: list[Any], limits: tuple[Any, ...], value: Any, path: str, default: Any, problems: list[Problem]
) -> Any:
    """The first member that takes the value; where none does, the problems of the last one tried."""
    attempt: list[Problem] = []
    for kind in kinds:
        attempt = []
        hint = Annotated[(kind, *limits)] if limits and get_origin(kind) is not Annotated else kind
        result = _value(hint, value, path, default, attempt)
        if not attempt:
            return result
    problems.extend(attempt)
    return None


def _choice(allowed: tuple[Any, ...], value: Any, path: str, problems: list[Problem]) -> Any:
    for option in allowed:
        if value == option or str(value).lower() == str(option).lower():
            return option
    words = [str(option) for option in allowed]
    return _wrong(f"must be one of {', '.join(words)}", value, path, problems, nearest=closest(str(value), words))


def _number(kind: type, limits: tuple[Any, ...], value: Any, path: str, default: Any, problems: list[Problem]) -> Any:
    """An int or a float within its range. ``"6e-4"`` counts as a number: YAML 1.1 reads it as a text."""
    word = "a whole number" if kind is int else "a number"
    bounds = next((limit for limit in limits if isinstance(limit, Range)), Range())
    rule = f"must be {word}" + (f", {bounds}" if limits else "")
    fallback = "" if default in (None, dataclasses.MISSING, MISSING) else str(default)
    if isinstance(value, bool):
        return _wrong(rule, value, path, problems, nearest=fallback)
    try:
        number = float(value)
    except (TypeError, ValueError):
        return _wrong(rule, value, path, problems, nearest=fallback)
    if kind is int and not number.is_integer():
        return _wrong(rule, value, path, problems, nearest=str(round(number)) if math.isfinite(number) else fallback)
    if not bounds.admits(number):
        return _wrong(str(bounds), value, path, problems, nearest=bounds.nearest(number, default))
    return int(value) if kind is int and not isinstance(value, str) else kind(number)


def _wrong(rule: str, value: Any, path: str, problems: list[Problem], nearest: str = "") -> None:
    problems.append(Problem(key=path, value=value, rule=rule, nearest=nearest))

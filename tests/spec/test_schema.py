"""Typed dataclasses from plain mappings: every problem found, with its key path, rule and nearest valid value."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smolcluster.errors import Problem
from smolcluster.spec.schema import Range, check, closest


@dataclass(frozen=True, kw_only=True)
class Inner:
    size: Annotated[int, Range(ge=1, le=10, unit="GB")] = 2


@dataclass(frozen=True, kw_only=True)
class Outer:
    rate: Annotated[float, Range(gt=0, lt=1)]
    count: Annotated[int | None, Range(ge=0)] = None
    kind: Literal["a", "b"] = "a"
    flag: bool = False
    name: str | None = None
    names: tuple[str, ...] = ()
    inner: Inner = field(default_factory=Inner)
    table: dict[str, Inner] = field(default_factory=dict)


def problems_of(mapping: dict[str, Any]) -> list[str]:
    found: list[Problem] = []
    check(Outer, mapping, "x", found)
    return [str(problem) for problem in found]


def test_right_values_become_the_declared_types() -> None:
    found: list[Problem] = []
    mapping = {"rate": "6e-4", "count": 3.0, "kind": "B", "names": ["u", "v"], "inner": {"size": 4}, "table": {"k": {}}}
    built = check(Outer, mapping, "", found)
    assert found == []
    assert built == Outer(
        rate=6e-4, count=3, kind="b", names=("u", "v"), inner=Inner(size=4), table={"k": Inner(size=2)}
    )


@pytest.mark.parametrize(
    ("mapping", "expected"),
    [
        ({"rate": 1.0}, "x.rate=1.0: must be > 0 and < 1"),
        ({"rate": float("nan")}, "x.rate=nan: must be > 0 and < 1"),
        ({"rate": float("inf")}, "x.rate=inf: must be > 0 and < 1"),
        ({"rate": True}, "x.rate=True: must be a number, must be > 0 and < 1"),
        ({"rate": 0.5, "count": 1.5}, "x.count=1.5: must be a whole number, must be >= 0; nearest valid: 2"),
        ({"rate": 0.5, "count": -4}, "x.count=-4: must be >= 0; nearest valid: 0"),
        ({"rate": 0.5, "kind": "c"}, "x.kind=c: must be one of a, b"),
        ({"rate": 0.5, "flag": "maybe"}, "x.flag=maybe: must be true or false; nearest valid: false"),
        ({"rate": 0.5, "names": "u"}, "x.names=u: must be a list, written [a,b,c]"),
        ({"rate": 0.5, "inner": {"size": 99}}, "x.inner.size=99: must be >= 1 and <= 10 GB; nearest valid: 10"),
        ({"rate": 0.5, "table": {"k": {"size": 0}}}, "x.table.k.size=0: must be >= 1 and <= 10 GB; nearest valid: 1"),
        ({"rate": 0.5, "cuont": 1}, "nearest valid: count"),
        ({"rate": "???"}, "x.rate=???: must be set: it has no default"),
        ({}, "x.rate=???: is required and has no default"),
    ],
)
def test_what_is_wrong_is_said(mapping: dict[str, Any], expected: str) -> None:
    (problem,) = problems_of(mapping)
    assert expected in problem


def test_all_problems_at_once() -> None:
    assert len(problems_of({"rate": 2, "count": -1, "kind": "z", "inner": {"size": 0}, "unknown": 1})) == 5


@given(st.dictionaries(st.text(max_size=5), st.none() | st.integers() | st.floats() | st.text() | st.lists(st.none())))
def test_nothing_crashes(mapping: dict[str, Any]) -> None:
    found: list[Problem] = []
    built = check(Outer, mapping, "", found)
    assert found or isinstance(built, Outer)


def test_closest() -> None:
    assert closest("synps", ["syncps", "edp"]) == "syncps"
    assert closest("zzzz", ["syncps", "edp"]) == ""

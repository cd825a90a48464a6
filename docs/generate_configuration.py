"""Writes the tables of configuration.md: from conf/, and from the dataclasses that are its schema.

Usage: python docs/generate_configuration.py (after any change of a key; a test compares the file with the code)
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import yaml
from hydra_plugins.smolcluster_launcher.config import SmolclusterLauncherConf

from smolcluster.cluster.inventory import SSH, Node
from smolcluster.spec.build import PACKAGES, component_class
from smolcluster.spec.compose import conf_dir
from smolcluster.spec.run import Train
from smolcluster.spec.schema import MISSING, TARGET, Range, defaults, hints

PAGE = Path(__file__).with_name("configuration.md")
SECTION = re.compile(r"<!-- begin (\w+) -->.*?<!-- end \1 -->", re.DOTALL)
WORDS = {int: "whole number", float: "number", bool: "true, false", str: "text"}
PARTS: Mapping[str, type] = {"train": Train, "node": Node, "ssh": SSH, "launcher": SmolclusterLauncherConf}
"""Sections that show one dataclass; all others show the options of the config group of that name."""


def render(page: str) -> str:
    """``page`` with every section between its markers written anew."""
    return SECTION.sub(
        lambda found: f"<!-- begin {found[1]} -->\n\n{_section(found[1])}\n\n<!-- end {found[1]} -->", page
    )


def _section(name: str) -> str:
    if name in PARTS:
        return _table(PARTS[name], defaults(PARTS[name]))
    if name not in PACKAGES:
        raise SystemExit(f"{PAGE.name}: there is no config group {name!r} (known: {', '.join(sorted(PACKAGES))})")
    return "\n\n".join(_options(name))


def _options(group: str) -> Iterator[str]:
    """One part per option, the default first; a schema that several options share is shown once."""
    chosen = _default_options()[group]
    files = sorted((conf_dir() / group).glob("*.yaml"), key=lambda file: (file.stem != chosen, file.stem))
    shown: dict[type, str] = {}
    for file in files:
        values = yaml.safe_load(file.read_text(encoding="utf-8"))
        cls = component_class(group, values[TARGET])
        assert cls is not None
        default = " (default)" if file.stem == chosen else ""
        yield f"#### `{group}={file.stem}`{default}\n\n{_heading(file)}"
        if cls in shown:
            yield f"Keys as with `{group}={shown[cls]}`; the values are in `conf/{group}/{file.name}`."
        elif dataclasses.fields(cls):
            yield _table(cls, values, _comments(file))
        shown.setdefault(cls, file.stem)


def _default_options() -> dict[str, str]:
    """Config group -> the option that stands in conf/config.yaml."""
    entries = yaml.safe_load((conf_dir() / "config.yaml").read_text(encoding="utf-8"))["defaults"]
    return {str(group): str(option) for entry in entries if isinstance(entry, dict) for group, option in entry.items()}


def _heading(file: Path) -> str:
    """The comment that a file begins with."""
    lines = file.read_text(encoding="utf-8").splitlines()
    end = next(place for place, line in enumerate(lines) if not line.startswith("#"))
    return " ".join(line.lstrip("# ") for line in lines[:end])


def _comments(file: Path) -> dict[str, str]:
    """Key -> the comment behind its value."""
    return dict(re.findall(r"^(\w+):.*?# (.*)$", file.read_text(encoding="utf-8"), re.MULTILINE))


def _table(cls: type, values: Mapping[str, Any], comments: Mapping[str, str] | None = None) -> str:
    """The fields of ``cls``: key, the value that stands in ``values``, what is allowed, what it means."""
    meanings = {**(comments or {}), **_docstrings(cls)}
    rows = ["| key | default | allowed | meaning |", "|---|---|---|---|"]
    for name, hint in hints(cls).items():
        if name not in {field.name for field in dataclasses.fields(cls)} - {TARGET}:
            continue
        cells = (f"`{name}`", _value(values.get(name)), _allowed(hint), meanings.get(name, ""))
        rows.append("| " + " | ".join(cell.replace("|", r"\|").replace("\n", " ") for cell in cells) + " |")
    return "\n".join(rows)


def _value(value: object) -> str:
    """A value as YAML writes it."""
    if value is dataclasses.MISSING or value == MISSING:
        return "required"
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    return f"`{value}`" if not isinstance(value, (tuple, list)) else f"`[{', '.join(map(str, value))}]`"


def _allowed(hint: Any, bounds: str = "") -> str:
    """The type and the range of a field in words."""
    if get_origin(hint) is Annotated:
        hint, *marks = get_args(hint)
        return _allowed(hint, "".join(_bounds(mark) for mark in marks if isinstance(mark, Range)))
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        kinds = [_allowed(kind, bounds) for kind in inner if kind is not type(None)]
        return ", or ".join([*kinds, "null"] if type(None) in inner else kinds)
    if origin is Literal:
        return ", ".join(f"`{option}`" for option in inner)
    if origin in (tuple, list):
        return "list of texts"
    return WORDS.get(hint, "mapping") + bounds


def _bounds(limits: Range) -> str:
    """`` >= 1, <= 65,536 (samples)``."""
    signs = ((">=", limits.ge), (">", limits.gt), ("<=", limits.le), ("<", limits.lt))
    shown = [f"{sign} {int(bound) if bound == int(bound) else bound:,}" for sign, bound in signs if bound is not None]
    return f" {', '.join(shown)}" + (f" ({limits.unit})" if limits.unit else "")


def _docstrings(cls: type) -> dict[str, str]:
    """Field -> the text that stands under it in the source."""
    (body,) = [node.body for node in ast.parse(inspect.getsource(cls)).body if isinstance(node, ast.ClassDef)]
    return {
        field.target.id: _one_line(text.value.value)
        for field, text in pairwise(body)
        if isinstance(field, ast.AnnAssign)
        and isinstance(field.target, ast.Name)
        and isinstance(text, ast.Expr)
        and isinstance(text.value, ast.Constant)
    }


def _one_line(text: object) -> str:
    return " ".join(str(text).replace("``", "`").split())


def sections(page: str) -> Sequence[str]:
    """Names of the sections that ``page`` has."""
    return [found[1] for found in SECTION.finditer(page)]


if __name__ == "__main__":
    PAGE.write_text(render(PAGE.read_text(encoding="utf-8")), encoding="utf-8")

"""What a run needs of this machine's files: so that it can be sent to machines that do not have it."""

from __future__ import annotations

import importlib.machinery
import os
import sys
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin

from smolcluster.spec.build import groups
from smolcluster.spec.run import Particular, RunSpec
from smolcluster.spec.schema import Importable, LocalPath, hints


@dataclass(frozen=True, kw_only=True)
class Needs:
    """``paths``: key of the spec -> the file or folder that it names. ``modules``: files and packages to import."""

    paths: dict[str, Path] = field(default_factory=dict)
    modules: tuple[Path, ...] = ()


def needs_of(spec: RunSpec, cache: Path, resume: str | None = None) -> Needs:
    """The local files that the components of ``spec`` name, what they find on this machine and might not find on
    others (written into ``cache``), and the checkpoint that the run starts from."""
    named = {key: Path(value).expanduser().absolute() for key, value in _marked(spec, LocalPath)}
    for name in groups():
        component: Any = getattr(spec, name)
        if isinstance(component, Particular):
            named |= {f"{name}.{key}": path for key, path in component.pinned(cache).items()}
    if resume is not None:
        named["resume"] = Path(resume)
    modules = {path for _, value in _marked(spec, Importable) if (path := module_file(value.partition(":")[0]))}
    return Needs(paths={key: path for key, path in named.items() if path.exists()}, modules=tuple(sorted(modules)))


def _marked(spec: RunSpec, mark: type) -> Iterator[tuple[str, str]]:
    """(key, text) of all components' fields that have that mark and are set."""
    for name in groups():
        component: Any = getattr(spec, name)
        for key, hint in hints(type(component)).items():
            marks = get_args(hint)[1:] if get_origin(hint) is Annotated else ()
            value = getattr(component, key, None)
            if value and any(isinstance(each, mark) for each in marks):
                yield f"{name}.{key}", str(value)


def module_file(module: str) -> Path | None:
    """The file of a module of the user's own, or the folder of its package; None where it is installed."""
    top = module.partition(".")[0]
    found = importlib.machinery.PathFinder.find_spec(top, [os.getcwd(), *sys.path])
    if found is None or found.origin in (None, "built-in", "frozen"):
        return None
    assert found.origin is not None
    path = Path(found.origin)
    installed = [Path(sysconfig.get_path(key)).resolve() for key in ("stdlib", "platstdlib", "purelib", "platlib")]
    if any(folder in path.resolve().parents for folder in installed):
        return None
    return path.parent if found.submodule_search_locations else path

"""All checks that need more than one value, run once, before any process starts.

What concerns one component stands with that component (its ``problems`` method); here is what concerns the
run as a whole. Everything found is reported in one message.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from smolcluster.errors import ConfigError, Problem
from smolcluster.spec.build import assemble, groups, options
from smolcluster.spec.run import Needy, RunSpec


def validated(config: Mapping[str, Any], found_before: Iterable[Problem] = (), *, here: bool = False) -> RunSpec:
    """The spec that ``config`` asks for, or ConfigError naming everything that is wrong with it.

    ``found_before`` are problems that composing the configuration has already shown. ``here``: what is missing on
    this machine is wrong too, if it is the one to run it.
    """
    problems = list(found_before)
    spec = assemble(config, problems)
    if spec is not None:
        named = {problem.key for problem in problems}  # a default stands in for such a value: no more to say of it
        problems.extend(problem for problem in combinations(spec) if problem.key not in named)
        if here and spec.cluster.is_local:
            problems.extend(missing(spec, known=named))
    if problems or spec is None:
        raise ConfigError(problems)
    return spec


def combinations(spec: RunSpec) -> list[Problem]:
    """What does not fit together in a spec whose single values are all in range."""
    found = list(_whole_run(spec))
    for name in groups():
        found.extend(getattr(spec, name).problems(spec))
    return found


def missing(spec: RunSpec, *, known: Iterable[str] = ()) -> list[Problem]:
    """What the components of ``spec`` need and this machine does not have.

    A component some of whose keys are ``known`` to be wrong is not asked.
    """
    wrong = {key.partition(".")[0] for key in known}
    components = (getattr(spec, name) for name in groups() if name not in wrong)
    return [problem for component in components if isinstance(component, Needy) for problem in component.missing()]


def either(names: Sequence[str]) -> str:
    """``a, b or c``."""
    return " or ".join(filter(None, (", ".join(names[:-1]), *names[-1:])))


def _whole_run(spec: RunSpec) -> Iterable[Problem]:
    """Rules that belong to no single component."""
    accepts, kind = spec.model.accepts, spec.data.kind
    if kind not in accepts and "any" not in (kind, *accepts):
        data = [name for name, cls in options("data").items() if getattr(cls, "kind", "") in accepts]
        models = [name for name, cls in options("model").items() if kind in getattr(cls, "accepts", ())]
        yield Problem(
            key="data",
            value=spec.choices.get("data", type(spec.data).__name__),
            rule=f"gives {kind}, but model={spec.choices.get('model', '?')} takes {' or '.join(accepts)}",
            nearest=f"data={either(data)}; or model={either(models)}",
        )
    if spec.epochs is None and spec.train.max_steps is None:
        yield Problem(
            key="train.epochs",
            value=None,
            rule=f"must be set: data={spec.choices.get('data', '?')} has no number of epochs of its own",
            nearest="train.epochs=1, or train.max_steps=1000",
        )

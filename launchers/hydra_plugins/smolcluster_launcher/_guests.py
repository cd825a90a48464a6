"""Whether machines may join a run while it is under way (``hydra.launcher.guests``)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from smolcluster.errors import Problem
from smolcluster.spec.build import options as component_classes
from smolcluster.spec.validate import either

if TYPE_CHECKING:
    from smolcluster.spec.run import RunSpec

KEY = "hydra.launcher.guests"
MAX_GUESTS = 64


def unwelcoming(spec: RunSpec, guests: int) -> Iterable[Problem]:
    """Why nobody can join a run of ``spec`` while it is under way."""
    if guests and not spec.algo.takes_guests:
        able = [name for name, cls in component_classes("algo").items() if getattr(cls, "takes_guests", False)]
        rule = f"must be 0 with algo={spec.choices.get('algo')}: its workers are there from the start"
        yield Problem(key=KEY, value=guests, rule=rule, nearest=f"algo={either(able)}")
    if guests and spec.cluster.nodes is None:
        rule = "must be 0 with nodes that only this machine reaches: name them with addresses (docs/cluster_setup.md)"
        yield Problem(key=KEY, value=guests, rule=rule, nearest="0")


def wrong_guests(options: Any) -> Iterable[Problem]:
    """What is wrong with the option itself."""
    if not 0 <= options.guests <= MAX_GUESTS:
        yield Problem(key=KEY, value=options.guests, rule=f"must be >= 0 and <= {MAX_GUESTS}", nearest="0")
    elif options.guests and options.max_concurrent > 1:
        rule = "must be 0 with hydra.launcher.max_concurrent > 1: a guest joins the one run that goes on"
        yield Problem(key=KEY, value=options.guests, rule=rule, nearest="0")

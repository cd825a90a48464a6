"""Which runs can be left going, and why others cannot. Pure functions of the configuration."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from hydra_plugins.smolcluster_launcher._guests import unwelcoming
from hydra_plugins.smolcluster_launcher._session import Options

from smolcluster.cluster import routes
from smolcluster.errors import Problem

if TYPE_CHECKING:
    from smolcluster.spec.run import RunSpec

KEY = "hydra.launcher.detach"
PIPELINES = ("train", "evaluate")
"""Pipelines that are one run."""


def wrong(options: Any, pipeline: str, total: int, sweeper: str) -> Iterable[Problem]:
    """Why the jobs of this command cannot be left going."""
    if total > 1:
        yield Problem(key=KEY, value=True, rule=f"leaves one run going; these words make {total}")
    if not sweeper.endswith(".BasicSweeper"):
        yield Problem(key=KEY, value=True, rule=f"leaves one run going; {sweeper} waits for what its runs come to")
    if pipeline not in PIPELINES:
        rule = f"leaves one run going; pipeline={pipeline} is none"
        yield Problem(key=KEY, value=True, rule=rule, nearest=" or ".join(f"pipeline={name}" for name in PIPELINES))
    if options.host is not None:
        rule = "leaves the run on the machine of its server: hydra.launcher.host cannot be another one"
        yield Problem(key=KEY, value=True, rule=rule, nearest="hydra.launcher.host=null")


def unfit(spec: RunSpec, names: Sequence[str], options: Options) -> Iterable[Problem]:
    """Why the nodes ``names`` (the owner of the weights first) cannot do without this machine."""
    yield from unwelcoming(spec, options.guests)
    cluster, owner = spec.cluster, names[0]
    if cluster.node(owner).is_here and os.name == "nt":
        rule = "leaves runs on machines with Linux or macOS; the server is this one, with Windows"
        yield Problem(key=KEY, value=True, rule=rule, nearest="cluster.server=<another node>")
    if cluster.is_local:
        return
    node, key = cluster.node(owner), f"cluster.nodes.{owner}"
    by_hand = [name for name in names if joins_by_hand(spec, name, options)]
    if owner in by_hand:
        rule = "must be reached by SSH to leave the run there (hydra.launcher.detach)"
        yield Problem(key=f"{key}.manual", value=True, rule=rule, nearest="cluster.server=<a node with SSH>")
    elif by_hand and options.env is not None:
        rule = f"cannot be made on {', '.join(by_hand)}, which joins by hand, with hydra.launcher.detach=true"
        yield Problem(key="hydra.launcher.env", value=options.env, rule=rule, nearest="hydra.launcher.env=null")
    if node.dials_only and len(names) > 1:
        rule = "must be false for the server of a detached run: the others join it there"
        yield Problem(key=f"{key}.dials_only", value=True, rule=rule)
    for name in names[1:]:
        if routes.shared(cluster.node(name), node) is None:
            rule = f"is on no network of {owner}'s, where it has to join the run (hydra.launcher.detach)"
            yield Problem(key=f"cluster.nodes.{name}.addresses", value=name, rule=rule)


def joins_by_hand(spec: RunSpec, name: str, options: Options) -> bool:
    """A person types there what makes it join."""
    node = spec.cluster.node(name)
    return node.manual or (options.session == "manual" and not node.is_here)

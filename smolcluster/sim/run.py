"""Simulate a run: how long a step takes, and what goes over the wire."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from smolcluster.errors import SmolclusterError
from smolcluster.ports import Member, View
from smolcluster.sim.figures import Figures
from smolcluster.sim.loop import VirtualClock, VirtualLoop, run_virtually
from smolcluster.sim.network import Network
from smolcluster.sim.node import Commit, Ring, SimJournal, SimLearner, SimPeers

if TYPE_CHECKING:
    from smolcluster.spec.run import RunSpec

WARMUP = 3
"""Steps that do not count."""
MIN_STEPS, MAX_STEPS = 12, 400
MIN_SECONDS = 8.0
"""Virtual time that is enough for bursts to be over."""


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """What a run is expected to take. A step is one optimizer step."""

    step_s: float
    samples_per_s: float
    wire_bytes_per_step: float


def enough(commits: Sequence[Commit]) -> bool:
    """Whether more steps would tell nothing new."""
    steps = len(commits) - WARMUP
    return steps >= MAX_STEPS or (steps >= MIN_STEPS and commits[-1].time - commits[WARMUP].time >= MIN_SECONDS)


def simulate(spec: RunSpec, members: Sequence[Member], figures: Figures) -> Forecast:
    """Run the roles of ``spec.algo`` on ``members`` in virtual time, for as many steps as it takes to know.

    RunFailed where the run would fail, or where there is too little to do.
    """
    endless = replace(spec.train, max_steps=None, epochs=10**6)
    return run_virtually(_simulate(replace(spec, train=endless), members, figures))


async def _simulate(spec: RunSpec, members: Sequence[Member], figures: Figures) -> Forecast:
    loop = asyncio.get_running_loop()
    assert isinstance(loop, VirtualLoop)
    network = Network(figures, loop)
    view = View(generation=1, members=tuple(members))
    ring = Ring(figures, len(members))
    peers: dict[str, SimPeers] = {}
    journal = SimJournal(enough, lambda: sum(each.sent for each in peers.values()))
    alone = len(members) == 1
    tasks: set[asyncio.Task[Any]] = set()
    for member in members:
        peers[member.name] = SimPeers(member, view, network, peers)
    for index, member in enumerate(members):
        role = spec.algo.role(spec, member, figures.num_samples, None)
        learner = SimLearner(figures, figures.nodes[member.name], ring, alone=alone)
        own = journal if index == 0 else SimJournal(lambda _: False, lambda: 0)
        tasks.add(asyncio.create_task(role.run(peers[member.name], learner, VirtualClock(loop), own)))
    over = asyncio.create_task(journal.over.wait())
    try:
        done, _ = await asyncio.wait({over, *tasks}, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        for task in {over, *tasks}:
            task.cancel()
        with contextlib.suppress(SmolclusterError):
            await asyncio.gather(over, *tasks, return_exceptions=True)
    return forecast(journal.commits)


def forecast(commits: Sequence[Commit]) -> Forecast:
    """From the steps that were made after the first few."""
    before, timed = commits[WARMUP - 1], commits[WARMUP:]
    seconds = timed[-1].time - before.time
    return Forecast(
        step_s=seconds / len(timed),
        samples_per_s=sum(commit.num_samples for commit in timed) / seconds,
        wire_bytes_per_step=(timed[-1].sent_bytes - before.sent_bytes) / len(timed),
    )

"""A whole run inside the test's process: real roles, learners, peers and journals, on the in-memory transport."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from smolcluster.cluster.controller import roster
from smolcluster.comms.security import Authority
from smolcluster.node.run import NodeProcess
from smolcluster.node.start import Start
from smolcluster.pipeline.job import cache_folder
from smolcluster.ports import Member
from smolcluster.spec.compose import validate_jobs
from smolcluster.spec.resume import checkpoint_of

QUIET = ("train.export=false", "comms=memory")


@dataclass
class Ran:
    """What came of a run."""

    code: int
    events: list[dict[str, Any]]
    weights: Mapping[str, Tensor] = field(default_factory=dict)
    digest: str = ""

    def of(self, kind: str) -> list[dict[str, Any]]:
        return [event for event in self.events if event["event"] == kind]

    def journal(self, kind: str) -> list[dict[str, Any]]:
        return [event for event in self.of("journal") if event["kind"] == kind]

    @property
    def spans(self) -> list[tuple[int, int, int]]:
        """All spans of samples that optimizer steps were made of."""
        return [tuple(span) for event in self.of("metrics") for span in event["spans"]]


class _NoCommands:
    """Stands for the controller's pipe: the first view comes at once, then ``later`` decides."""

    def __init__(self, view: Mapping[str, Any], later: Callable[[Callable[[Mapping[str, Any]], None]], None]) -> None:
        self.view, self.later = view, later

    def listen(self, loop: asyncio.AbstractEventLoop, take: Callable[[Mapping[str, Any]], None], _: float) -> None:
        loop.call_soon(take, self.view)
        self.later(take)


def run(
    folder: Path,
    *words: str,
    later: Callable[[Callable[[Mapping[str, Any]], None]], None] = lambda take: None,
    wrap: Callable[[Any], Any] | None = None,
    until: str | None = None,
) -> Ran:
    """Run the command line ``words`` (with comms=memory) in this process.

    ``later`` gets the function that takes commands, to send views or stop; ``wrap`` may replace each node's learner.
    When the node ``until`` has finished, so has the run: others may be waiting for what will not come.
    """
    (spec,) = validate_jobs([*QUIET, *words], None)
    members = [Member(name=m.name, role=m.role, rank=m.rank, joined=1) for m in roster(spec)]
    authority = Authority("test")
    start = Start(
        run="test",
        spec=spec,
        members=tuple(members),
        credentials=tuple(authority.issue(member.name, 1) for member in members),
        roster=tuple(members),
        host="127.0.0.1",
        listens_on="127.0.0.1",
        links=spec.algo.links,
        relays=(),
        folder=folder,
        cache=cache_folder(),
        threads=1,
        resume=str(checkpoint_of(spec.resume)) if spec.resume else None,
        purpose="train",
    )
    events: list[dict[str, Any]] = []

    def report(event: str, **fields: Any) -> None:
        events.append({"event": event, **fields})

    view = {
        "op": "view",
        "generation": 1,
        "members": [vars(member) for member in members],
        "addresses": {member.name: ["memory", 0] for member in members},
        "reason": "start",
    }
    learners: dict[str, Any] = {}

    async def main() -> int:
        def told(event: str, **fields: Any) -> None:
            report(event, **fields)
            if (event, fields.get("of")) == ("finished", until):
                asyncio.get_running_loop().call_soon(process.stop, f"{until} has finished")

        process = NodeProcess(start, _NoCommands(view, later), told)  # type: ignore[arg-type]
        if wrap is not None:
            for_process = process

            def build(node: Any) -> Any:
                made = type(node)._build(node)
                return (wrap(made[0]), *made[1:])

            loop = asyncio.get_running_loop()
            loop.call_soon(lambda: [setattr(n, "_build", lambda n=n: build(n)) for n in for_process.nodes])
        code = await process.run()
        learners.update({node.me.name: node.learner for node in process.nodes})
        process.thread.shutdown()
        return code

    code = asyncio.run(main())
    owner = learners[members[0].name]
    weights = {name: tensor.clone() for name, tensor in owner.flat.named_state().items()} if owner else {}
    return Ran(code, events, weights, owner.flat.digest() if owner else "")


def largest_difference(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> float:
    """max over tensors of max|a-b| / max|a|."""
    assert a.keys() == b.keys()
    return max(float((a[name] - b[name]).abs().max() / a[name].abs().max().clamp_min(1e-30)) for name in a)

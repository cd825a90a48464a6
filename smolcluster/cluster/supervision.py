"""What the controller does when something happens to a node: pure decisions, each with its reason.

:class:`Supervisor` is told of events with the time, and answers with actions. It starts nothing and kills nothing
itself; the controller carries the actions out and reports what came of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Literal

from smolcluster.cluster.session import ending
from smolcluster.ports import Member, View

LEAVING_S = 5.0
"""When the owner of the weights has finished, the others end within that time or are killed."""
PROGRESS_SHARE = 0.01
"""A node that builds and uses at least this share of a processor is at work, however long it takes. Reporting that
it lives costs a tenth of it; the slowest download costs more."""
MAX_TICK_S = 1.0
"""More time than that between two ticks was not the nodes' silence but ours."""


class Phase(Enum):
    """Where a node stands."""

    STARTING = "starting"
    LISTENING = "listening"
    FINISHED = "finished"
    GONE = "gone"


@dataclass(frozen=True, kw_only=True)
class StartNode:
    """Start the node's process; ``joined`` is the generation that its certificate shall name."""

    name: str
    joined: int


@dataclass(frozen=True, kw_only=True)
class PublishView:
    """Tell every node who takes part from now on."""

    view: View
    addresses: Mapping[str, Sequence[object]]
    reason: str


@dataclass(frozen=True, kw_only=True)
class KillNode:
    """End the node's process at once."""

    name: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class EndRun:
    """Nothing is left to do, or nothing can be done."""

    status: Literal["done", "failed", "interrupted"]
    reason: str


Action = StartNode | PublishView | KillNode | EndRun


@dataclass
class NodeState:
    """What the supervisor knows of a node."""

    member: Member
    phase: Phase = Phase.STARTING
    address: Sequence[object] | None = None
    deadline: float = 0.0
    quiet_s: float = 0.0
    """Since its last event; counted in ticks, so that a controller that was asleep blames nobody."""
    built: bool = False
    """Its model and its data are there."""
    stuck_s: float = 0.0
    """While it builds: since it last got on; counted in ticks."""
    computed_s: float = 0.0
    """Processor time that it had used when it last got on."""
    restarts: int = 0
    guest: bool = False
    """It came when the run was under way; it is not started again when it goes."""
    failure: str = ""


@dataclass(frozen=True, kw_only=True)
class Rules:
    """How much may go wrong."""

    survives_workers: bool
    """The algorithm goes on without a worker."""
    max_restarts: int
    """So often each worker is started again."""
    min_workers: int
    """With fewer that are there or coming, the run ends."""
    start_timeout_s: float
    """Until a node can be connected to; and the longest that its building may stand still."""
    silence_s: float
    """A node that reports nothing for so long, though it should every half second, hangs."""


@dataclass
class Supervisor:
    """The one authority on membership. ``generation`` grows with every change."""

    roster: Sequence[Member]
    rules: Rules
    generation: int = 0
    nodes: dict[str, NodeState] = field(default_factory=dict)
    published: bool = False
    ended: EndRun | None = None
    last_tick: float | None = None

    def begin(self, now: float) -> list[Action]:
        """Start everybody as members of generation 1."""
        self.generation = 1
        for member in self.roster:
            self.nodes[member.name] = NodeState(replace(member, joined=1), deadline=now + self.rules.start_timeout_s)
        return [StartNode(name=member.name, joined=1) for member in self.roster]

    def admit(self, member: Member, now: float) -> list[Action]:
        """A machine that nobody counted on offers itself: start a node there, as a member to be."""
        self.generation += 1
        joining = replace(member, joined=self.generation)
        self.nodes[member.name] = NodeState(joining, deadline=now + self.rules.start_timeout_s, guest=True)
        return [StartNode(name=member.name, joined=self.generation)]

    def heard(self, name: str) -> None:
        """The node has said something."""
        self.nodes[name].quiet_s = 0.0

    def got_on(self, name: str) -> None:
        """The node that builds has told of something new: a state, a line of its log."""
        self.nodes[name].stuck_s = 0.0

    def computed(self, name: str, seconds: float) -> None:
        """The node that builds has used so much processor time since it was started."""
        node = self.nodes[name]
        if seconds - node.computed_s >= PROGRESS_SHARE * self.rules.start_timeout_s:
            node.computed_s, node.stuck_s = seconds, 0.0

    def built(self, name: str) -> list[Action]:
        """The node has its model and its data: it can take part. The first view goes out when all can, so that
        no algorithm's deadline runs while somebody builds; later ones with each that joins."""
        self.nodes[name].built = True
        if self.published:
            self.generation += 1
            return list(self._publish(f"{name} {'has joined' if self.nodes[name].guest else 'is back'}"))
        return list(self._publish("all nodes are there")) if self._complete else []

    @property
    def _complete(self) -> bool:
        """Nobody is on the way any more."""
        return all(node.built or node.phase is Phase.GONE for node in self.nodes.values())

    def listening(self, name: str, address: Sequence[object]) -> list[Action]:
        """The node can be connected to."""
        node = self.nodes[name]
        node.phase, node.address = Phase.LISTENING, address
        return []

    def finished(self, name: str, now: float) -> list[Action]:
        """The node has done its part; its process will end by itself. When it is the owner of the weights, the
        run is over: the others have a moment to end too, and who was just being started is not needed."""
        self.nodes[name].phase = Phase.FINISHED
        if name != self.owner:
            return []
        for node in self.nodes.values():
            node.deadline = now + LEAVING_S
        starting = [n.member.name for n in self.nodes.values() if n.phase is Phase.STARTING]
        return [KillNode(name=other, reason="the run is over") for other in starting]

    @property
    def owner(self) -> str:
        """The node that holds the weights that count: the server, or the worker of rank 0."""
        return self.roster[0].name

    @property
    def over(self) -> bool:
        return self.nodes[self.owner].phase is Phase.FINISHED

    def failed(self, name: str, reason: str, *, final: bool = False) -> list[Action]:
        """The node says why it is about to end. What is ``final`` would only happen again: the run ends with it."""
        node = self.nodes[name]
        node.failure = reason
        if final and self.ended is None and not self.over:
            return [self._end("failed", f"{called(node.member)}: {reason}")]
        return []

    def silent(self, reporter: str, name: str, reason: str) -> list[Action]:
        """``reporter`` has no sign of life from ``name``. Only the server's word counts, and only on workers:
        a worker that cannot reach the server ends by itself."""
        node, witness = self.nodes.get(name), self.nodes.get(reporter)
        if node is None or witness is None or node.phase is not Phase.LISTENING:
            return []
        if witness.member.role != "server" or node.member.role != "worker":
            return []
        node.failure = f"{reporter} says: {name} {reason}"
        return [KillNode(name=name, reason=node.failure)]

    def loss(self, name: str, how: str) -> str:
        """What happened to a node whose process ended in the way ``how``, and whether it will not come back."""
        node, rules = self.nodes[name], self.rules
        how = node.failure or how
        if node.member.role == "server" or not rules.survives_workers or node.guest or self._again(node):
            return how
        return f"{how}; it is not started again (cluster.max_restarts={rules.max_restarts})"

    def exited(self, name: str, code: int, now: float, *, how: str = "") -> list[Action]:
        """The node's process has ended; ``how`` says more of it than the code, where more is known."""
        node = self.nodes[name]
        if node.phase is Phase.FINISHED and code == 0:
            return self._maybe_done()
        if self.over and name != self.owner:
            node.phase = Phase.GONE
            return self._maybe_done()
        how = node.failure or how or ending(code)
        node.phase = Phase.GONE
        who = called(node.member)
        if self.ended is not None:
            return []
        if node.member.role == "server" or not self.rules.survives_workers:
            return [self._end("failed", f"{who}: {how}")]
        return list(self._lose_worker(node, f"{who}: {how}", now))

    def tick(self, now: float) -> list[Action]:
        """Nodes that are not there in time, or do not leave in time, are ended; their exit does the rest."""
        if self.over:
            slow = [n.member.name for n in self.nodes.values() if n.phase is Phase.LISTENING and now >= n.deadline]
            return [KillNode(name=name, reason="the run is over") for name in slow]
        elapsed = 0.0 if self.last_tick is None else min(now - self.last_tick, MAX_TICK_S)
        self.last_tick = now
        hanging = [node for node in self.nodes.values() if not node.failure and self._hangs(node, now, elapsed)]
        return [KillNode(name=node.member.name, reason=node.failure) for node in hanging]

    def _hangs(self, node: NodeState, now: float, elapsed: float) -> bool:
        """Whether ``node`` has to be given up; its ``failure`` then says why."""
        limit = self.rules.start_timeout_s
        if node.phase is Phase.STARTING and now >= node.deadline:
            node.failure = f"not ready within {limit:g} s (cluster.start_timeout_s) and was killed"
        elif node.phase is Phase.LISTENING:
            node.quiet_s += elapsed
            node.stuck_s += 0.0 if node.built else elapsed
            if node.quiet_s >= self.rules.silence_s:
                node.failure = f"has reported nothing for {node.quiet_s:.1f} s and was killed"
            elif node.stuck_s >= limit:
                what = "building the model and the data has not got on"
                node.failure = f"{what} for {limit:g} s (cluster.start_timeout_s) and was killed"
        return bool(node.failure)

    def _lose_worker(self, node: NodeState, why: str, now: float) -> Iterator[Action]:
        """Go on without a worker, and start it again if it may be."""
        self.generation += 1
        again = self._again(node)
        left = [n for n in self.nodes.values() if n.member.role == "worker" and n.phase is not Phase.GONE]
        if len(left) + again < self.rules.min_workers:
            remain = "1 worker is" if len(left) == 1 else f"{len(left)} workers are"
            yield self._end("failed", f"{why}; {remain} left, {self.rules.min_workers} needed")
            return
        if self.published:
            yield from self._publish(why)
        if again:
            self.generation += 1
            member = replace(node.member, joined=self.generation)
            deadline = now + self.rules.start_timeout_s
            self.nodes[member.name] = NodeState(member, deadline=deadline, restarts=node.restarts + 1)
            yield StartNode(name=member.name, joined=self.generation)
        elif not self.published and self._complete:
            yield from self._publish(why)

    def _again(self, node: NodeState) -> bool:
        """Whether a worker that is gone is started once more."""
        return not node.guest and node.restarts < self.rules.max_restarts

    def _publish(self, reason: str) -> Iterator[Action]:
        self.published = True
        there = [n for n in self.nodes.values() if n.built and n.phase in (Phase.LISTENING, Phase.FINISHED)]
        view = View(generation=self.generation, members=tuple(node.member for node in there))
        addresses = {node.member.name: node.address or [] for node in there}
        yield PublishView(view=view, addresses=addresses, reason=reason)

    def _maybe_done(self) -> list[Action]:
        if self.ended is None and all(n.phase in (Phase.FINISHED, Phase.GONE) for n in self.nodes.values()):
            return [self._end("done", "")]
        return []

    def _end(self, status: Literal["done", "failed"], reason: str) -> EndRun:
        self.ended = EndRun(status=status, reason=reason)
        return self.ended


def called(member: Member) -> str:
    """A node's name, with its role where the name does not say it.

    >>> called(Member(name="worker1", role="worker", rank=1)), called(Member(name="mini1", role="server", rank=0))
    ('worker1', 'mini1 (server)')
    """
    return member.name if member.name.startswith(member.role) else f"{member.name} ({member.role})"

"""The ports between an algorithm and everything else. An algorithm's role sees these and nothing more.

The same role runs over TCP between machines, in memory in tests and in virtual time in a simulation,
because all of those implement the same four small interfaces: :class:`Peers`, :class:`Learner`,
:class:`Clock` and :class:`Journal`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Protocol, TypeVar, runtime_checkable

if TYPE_CHECKING:
    from torch import Tensor

    from smolcluster.messages import Message

T = TypeVar("T")


class Span(NamedTuple):
    """Positions ``start`` to ``stop`` (exclusive) in the sample order of ``epoch``."""

    epoch: int
    start: int
    stop: int

    @property
    def size(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True, kw_only=True)
class Member:
    """A node that takes part. ``joined`` is the generation that it came in with: a restarted node is a new member."""

    name: str
    role: str
    rank: int
    joined: int = 0


@dataclass(frozen=True, kw_only=True)
class View:
    """Who takes part, as the controller last said. Every change makes a new ``generation``."""

    generation: int
    members: tuple[Member, ...]

    def get(self, name: str) -> Member | None:
        return next((member for member in self.members if member.name == name), None)

    def named(self, role: str) -> tuple[Member, ...]:
        """The members with that role, by rank."""
        return tuple(sorted((m for m in self.members if m.role == role), key=lambda m: m.rank))


class Received(NamedTuple):
    """A message that has passed every check of the comms layer, and who sent it."""

    sender: Member
    message: Message


class ViewChanged(NamedTuple):
    """The membership changed; ``lost`` and ``joined`` are names, ``reason`` says why."""

    view: View
    lost: tuple[str, ...]
    joined: tuple[str, ...]
    reason: str


class Delivery(Protocol):
    """A message on its way. Its tensors must not be written to before :meth:`wait` has returned."""

    @property
    def done(self) -> bool: ...

    async def wait(self, within: float) -> None:
        """Return when the peer has received all of it, or is no longer a member; PeerLost after ``within`` seconds."""


class Peers(Protocol):
    """The other nodes. Messages of one sender arrive in the order sent, each exactly once."""

    me: Member

    @property
    def view(self) -> View: ...

    def send(self, to: str, message: Message) -> Delivery:
        """Queue ``message`` for ``to``. A message to a node that is no longer a member is dropped and counted."""

    async def next(self, until: float, waiting_for: str) -> Received | ViewChanged | None:
        """The next message or change of membership, or None at the time ``until`` (seconds on the clock).

        ``waiting_for`` says what the role expects and from whom; it stands in the error and in the live view.
        Raises PeerLost when the server of this run can no longer be reached.
        """

    @property
    def waited_s(self) -> float:
        """Seconds that this node's role has spent in :meth:`next` so far."""

    def traffic(self) -> Mapping[str, int]:
        """Bytes ``sent`` and ``received`` at the sockets so far, and ``uncompressed``: what they would have been."""


class Clock(Protocol):
    """Time, passed in so that it can be virtual."""

    def now(self) -> float: ...

    async def sleep(self, seconds: float) -> None: ...


class Weights(NamedTuple):
    """A consistent copy of all parameters (shape ``[num_params]``) and buffers (``[num_buffers]`` or None)."""

    parameters: Tensor
    buffers: Tensor | None


@dataclass(frozen=True, kw_only=True)
class Gradient:
    """The mean gradient over ``num_items`` items (samples, or target tokens for a language model).

    ``flat`` has shape ``[num_params]`` and stays valid until the next call of :meth:`Learner.gradient`.
    """

    flat: Tensor
    buffers: Tensor | None
    loss: float
    num_samples: int
    num_items: int
    seconds: float
    norms: Mapping[str, float] = field(default_factory=dict)


class Applied(NamedTuple):
    """What an optimizer step did.

    ``grad_norm`` is the gradient's norm before clipping, ``clip`` the factor that clipping applied, and
    ``skipped`` says that the gradient was not finite and nothing was changed.
    """

    grad_norm: float
    clip: float
    skipped: bool
    lr: float
    norms: Mapping[str, float]


class Learner(Protocol):
    """The model on this node's device. Every method runs in the node's one compute thread."""

    version: int
    """Optimizer steps that the weights have seen."""
    num_steps: int
    """Optimizer steps of the whole run, for the learning rate schedule; the role that steps sets it."""
    num_samples: int
    """Samples in the training set."""
    max_items: int
    """Items (samples, or target tokens) that one sample has at most."""
    num_params: int
    """Trained parameters: the length of a flat gradient."""
    fingerprint: str
    """Hash of the model's manifest and of the data: equal on all nodes of a run."""

    async def gradient(self, spans: Sequence[Span], *, step: int, rank: int) -> Gradient:
        """The gradient over ``spans`` at the present weights, in micro-batches of at most ``train.batch_size``."""

    async def apply(self, gradient: Tensor, *, buffers: Tensor | None = None, lr_scale: float = 1.0) -> Applied:
        """One optimizer step with ``gradient`` (clipped if configured); ``version`` goes up by one.

        A gradient that is not finite changes nothing but the version, and says so.
        """

    async def load(self, weights: Weights, *, blend: float = 1.0) -> None:
        """Local weights become ``blend * weights + (1 - blend) * local``."""

    async def load_buffers(self, buffers: Tensor) -> None:
        """Take over what is not trained (running statistics), and leave the parameters."""

    async def snapshot(self) -> Weights:
        """A copy of the present weights that no later step changes."""

    async def compute(self, work: Callable[[], T], *, passes: float = 1.0) -> T:
        """Run ``work`` there too: whatever takes longer than a heartbeat may wait.

        ``passes``: how many copies of a flat gradient take about as long; a simulation charges that.
        """


@runtime_checkable
class GroupLearner(Learner, Protocol):
    """A learner whose gradients torch.distributed averages while backward runs."""

    async def open_group(self) -> tuple[str, int]:
        """Rank 0: open the meeting point; returns where the others find it."""

    async def join_group(self, host: str, port: int, rank: int, world_size: int) -> None:
        """Meet there; returns when all have."""

    async def gradient_in_group(self, spans: Sequence[Span], *, step: int, rank: int, scale: float) -> Gradient:
        """Like :meth:`Learner.gradient`, times ``scale`` and averaged over all ranks.

        Loss and counts in the result are this rank's own.
        """

    def loopback_bytes(self) -> int | None:
        """Bytes that this machine has sent to itself so far, torch's among them; None where the system does not say."""

    async def leave_group(self) -> None: ...


@dataclass(frozen=True, kw_only=True)
class Step:
    """What a role knows of the optimizer step it has just committed; it becomes a line of ``metrics.jsonl``."""

    version: int
    loss: float
    num_samples: int
    num_items: int
    spans: Sequence[Span]
    applied: Applied
    wait_share: float
    details: Mapping[str, Any] = field(default_factory=dict)


class Journal(Protocol):
    """Where a role says what it did. Metrics, evaluation and checkpoints follow from that."""

    async def commit(self, step: Step, state: AlgorithmState) -> None:
        """To be called after each optimizer step, when the weights are those of ``step.version``.

        ``state`` is the algorithm's own after that step. Logs, evaluates and saves where that is due. Raises
        Interrupted where the user wants to stop, after saving.
        """

    def event(self, kind: str, **fields: Any) -> None:
        """A line of ``events.jsonl``: joined, lost, late, rejected, retried ... with node, step and reason."""


@dataclass(frozen=True, kw_only=True)
class AlgorithmState:
    """What an algorithm must find again after a restart, besides weights and optimizer state."""

    plain: Mapping[str, Any]
    tensors: Mapping[str, Tensor] = field(default_factory=dict)


class Aggregator(Protocol):
    """A rule that makes one update of several."""

    def __call__(self, updates: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
        """``updates`` are flat tensors of one shape, in rank order; ``weights`` their numbers of items."""


class Role(Protocol):
    """What one node does in an algorithm."""

    async def run(self, peers: Peers, learner: Learner, clock: Clock, journal: Journal) -> None: ...


class Algorithm(Protocol):
    """What an option of the config group ``algo`` is, besides a component with parameters of its own."""

    links: ClassVar[str]
    """Who talks to whom: ``star`` (workers and server), ``full``, or ``none``."""
    has_server: ClassVar[bool]
    max_workers: ClassVar[int | None] = None
    survives_workers: ClassVar[bool] = True
    """A run goes on when a worker dies."""
    takes_guests: ClassVar[bool] = False
    """Workers that nobody counted on may join a run that is under way."""
    averaged_by_torch: ClassVar[bool] = False
    """Gradients travel through torch.distributed, not through :class:`Peers`."""
    sparing: ClassVar[Mapping[str, Any]] = {}
    """Settings with which less travels, for forecasts beside the plain ones; empty: there are none."""
    server_trains: bool = False

    @property
    def min_workers(self) -> int:
        """With fewer workers a run ends."""
        return 1

    def batches_per_step(self, num_workers: int) -> int:
        """Batches of ``train.batch_size`` that make one optimizer step."""
        ...

    def gradient_bytes(self, num_params: int) -> int | None:
        """Bytes of a gradient on the wire where it is encoded; None where it travels as it is."""
        return None

    def role(self, spec: Any, me: Member, num_samples: int, state: AlgorithmState | None) -> Role:
        """What the node ``me`` does in a run of ``spec`` (a RunSpec); ``state`` is what a checkpoint kept."""
        ...


class Reporter(Protocol):
    """The way up to the controller: one JSON object per event."""

    def __call__(self, event: str, **fields: Any) -> None: ...

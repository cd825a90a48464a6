"""What nodes say to each other: one frozen dataclass per message, and its translation to and from plain data.

A message has plain fields (whole numbers, floats, texts, lists of whole numbers) and tensors. A tensor
field names its *layout*: a size and a type that both sides agreed on at join, so that a receiver knows before it
allocates anything how many bytes may follow. ``sender`` is the role that may send it. Nothing here knows sockets, and
nothing is pickled.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias, get_args

from smolcluster.errors import PeerProtocolError

if TYPE_CHECKING:
    from torch import Tensor

MAX_TEXT = 4096
"""Longest text field in characters: an error message with its cause fits, a flood does not."""
MAX_LIST = 4096
"""Longest list field: 1,365 spans, far more than a step is ever cut into."""
ANYBODY = "any"
"""The ``sender`` of a message that every role may send."""
MAX_INT = 2**53
"""Largest whole number: what every language's msgpack and JSON agree on."""


def tensor(layout: str, *, optional: bool = False) -> Any:
    """A dataclass field that holds a flat tensor of the agreed ``layout`` (``parameters``, ``gradient`` ...)."""
    if optional:
        return field(default=None, metadata={"layout": layout, "optional": True})
    return field(metadata={"layout": layout, "optional": False})


@dataclass(frozen=True, kw_only=True)
class Join:
    """A worker to the server: I am ready. ``fingerprint`` is the hash of the model's manifest and of the data."""

    code: ClassVar[int] = 16
    sender: ClassVar[str] = "worker"
    fingerprint: str


@dataclass(frozen=True, kw_only=True)
class Work:
    """SyncPS, server to worker: what to compute in ``step``, and the weights where they are due.

    ``spans`` are (epoch, start, stop) triples, flattened; empty means that this worker has no share.
    ``blend`` is the server's share in the new local weights (``polyak_alpha``; 1 replaces them).
    """

    code: ClassVar[int] = 17
    sender: ClassVar[str] = "server"
    step: int
    version: int
    blend: float
    spans: tuple[int, ...]
    parameters: Tensor | None = tensor("parameters", optional=True)
    buffers: Tensor | None = tensor("buffers", optional=True)


@dataclass(frozen=True, kw_only=True)
class Update:
    """SyncPS, worker to server: the mean gradient over ``spans``, taken at weights of ``version``."""

    code: ClassVar[int] = 18
    sender: ClassVar[str] = "worker"
    step: int
    version: int
    spans: tuple[int, ...]
    num_samples: int
    num_items: int
    loss: float
    compute_s: float
    wait_s: float
    gradient: Tensor = tensor("gradient")
    buffers: Tensor | None = tensor("buffers", optional=True)


@dataclass(frozen=True, kw_only=True)
class Grant:
    """EDP, server to worker: batches to compute, as (lease, epoch, start, stop) quadruples, flattened."""

    code: ClassVar[int] = 19
    sender: ClassVar[str] = "server"
    leases: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Push:
    """EDP, worker to server: the gradient of one leased batch, taken at weights of ``version``."""

    code: ClassVar[int] = 20
    sender: ClassVar[str] = "worker"
    lease: int
    version: int
    num_samples: int
    num_items: int
    loss: float
    compute_s: float
    wait_s: float
    gradient: Tensor = tensor("gradient")
    buffers: Tensor | None = tensor("buffers", optional=True)


@dataclass(frozen=True, kw_only=True)
class Pull:
    """EDP, worker to server: send me the weights. ``version`` is what I have."""

    code: ClassVar[int] = 21
    sender: ClassVar[str] = "worker"
    version: int


@dataclass(frozen=True, kw_only=True)
class Params:
    """Server to worker: the weights of ``version``; ``reason`` says why they come unasked, if they do.

    Without ``parameters`` the worker has them already.
    """

    code: ClassVar[int] = 22
    sender: ClassVar[str] = "server"
    version: int
    reason: str
    parameters: Tensor | None = tensor("parameters", optional=True)
    buffers: Tensor | None = tensor("buffers", optional=True)


@dataclass(frozen=True, kw_only=True)
class Finish:
    """Server to worker: there is nothing left to do."""

    code: ClassVar[int] = 23
    sender: ClassVar[str] = "server"
    reason: str


@dataclass(frozen=True, kw_only=True)
class Rendezvous:
    """DDP, rank 0 to the others: where torch.distributed meets."""

    code: ClassVar[int] = 24
    sender: ClassVar[str] = "worker"
    host: str
    port: int


@dataclass(frozen=True, kw_only=True)
class Report:
    """DDP, a worker to rank 0: its part of one step's loss and time."""

    code: ClassVar[int] = 25
    sender: ClassVar[str] = "worker"
    step: int
    num_samples: int
    num_items: int
    loss: float
    compute_s: float
    wait_s: float


@dataclass(frozen=True, kw_only=True)
class Busy:
    """Server to worker, now and then while it evaluates or saves: it is alive, have patience."""

    code: ClassVar[int] = 26
    sender: ClassVar[str] = "server"
    reason: str


@dataclass(frozen=True, kw_only=True)
class Order:
    """Survey, server to worker: measure ``what``; ``peer`` is the node at the other end of a link, or empty."""

    code: ClassVar[int] = 27
    sender: ClassVar[str] = "server"
    number: int
    what: str
    peer: str


@dataclass(frozen=True, kw_only=True)
class Carried:
    """Survey, worker to server: order ``number`` is carried out, or could not be for the ``reason``."""

    code: ClassVar[int] = 28
    sender: ClassVar[str] = "worker"
    number: int
    reason: str


@dataclass(frozen=True, kw_only=True)
class Probe:
    """Survey, any node to any other: part ``index`` of measurement ``number``; ``last`` asks for an echo."""

    code: ClassVar[int] = 29
    sender: ClassVar[str] = ANYBODY
    number: int
    index: int
    last: int
    chunk: Tensor | None = tensor("chunk", optional=True)


@dataclass(frozen=True, kw_only=True)
class Echo:
    """Survey, the answer to the last :class:`Probe` of a measurement."""

    code: ClassVar[int] = 30
    sender: ClassVar[str] = ANYBODY
    number: int
    index: int


Training: TypeAlias = Join | Work | Update | Grant | Push | Pull | Params | Finish | Rendezvous | Report | Busy
Message: TypeAlias = Training | Order | Carried | Probe | Echo
BY_CODE: Mapping[int, type[Message]] = {cls.code: cls for cls in get_args(Message)}


def plain_fields(message: Message) -> list[Any]:
    """The values of the plain fields, in the order of declaration."""
    return [getattr(message, f.name) for f in dataclasses.fields(message) if "layout" not in f.metadata]


def tensor_fields(message: Message) -> list[tuple[str, Tensor]]:
    """(layout, tensor) of every tensor that this message carries, in the order of declaration."""
    found = [
        (f.metadata["layout"], getattr(message, f.name)) for f in dataclasses.fields(message) if "layout" in f.metadata
    ]
    return [(layout, value) for layout, value in found if value is not None]


def parse(code: int, plain: Any, layouts: Sequence[str]) -> tuple[type[Message], dict[str, Any]]:
    """The class of a message and its checked plain fields, before any tensor has been received.

    Raises :class:`PeerProtocolError` with the reason ``unknown type``, ``malformed`` or ``wrong tensors``.
    """
    cls = BY_CODE.get(code)
    if cls is None:
        raise PeerProtocolError("unknown type", f"message code {code} (known: {sorted(BY_CODE)})")
    fields = dataclasses.fields(cls)
    names = [f for f in fields if "layout" not in f.metadata]
    if not isinstance(plain, list) or len(plain) != len(names):
        raise PeerProtocolError("malformed", f"{cls.__name__} has {len(names)} plain fields")
    values = {f.name: _checked(cls, f, value) for f, value in zip(names, plain, strict=True)}
    wanted = [f.metadata["layout"] for f in fields if "layout" in f.metadata]
    required = [f.metadata["layout"] for f in fields if f.metadata.get("optional") is False]
    if [layout for layout in wanted if layout in layouts] != list(layouts) or not set(required) <= set(layouts):
        raise PeerProtocolError("wrong tensors", f"{cls.__name__} carries {wanted}, got {list(layouts)}")
    return cls, values


def with_tensors(cls: type[Message], plain: dict[str, Any], tensors: Mapping[str, Tensor]) -> Message:
    """The finished message; ``tensors`` are by layout."""
    for f in dataclasses.fields(cls):
        if f.metadata.get("layout") in tensors:
            plain[f.name] = tensors[f.metadata["layout"]]
    return cls(**plain)


def _checked(cls: type, f: dataclasses.Field[Any], value: Any) -> Any:
    """``value`` as the type that the field declares (annotations are texts here), within its bounds."""
    kind = f.type
    if kind == "int" and type(value) is int and -1 <= value <= MAX_INT:
        return value
    if kind == "float" and type(value) in (int, float):
        return float(value)
    if kind == "str" and type(value) is str and len(value) <= MAX_TEXT:
        return value
    if (
        kind == "tuple[int, ...]"
        and type(value) is list
        and len(value) <= MAX_LIST
        and all(type(v) is int and -1 <= v <= MAX_INT for v in value)
    ):
        return tuple(value)
    raise PeerProtocolError("malformed", f"{cls.__name__}.{f.name} must be {kind} within bounds")

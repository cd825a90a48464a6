"""What has been measured of a cluster: the input of a simulation. Plain data, from and to JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True, kw_only=True)
class NodeFigures:
    """How long a node takes, in seconds. ``gradient``: of one batch; ``together``: while all workers compute."""

    gradient_s: float
    together_s: float
    apply_s: float = 0.0
    """One optimizer step."""
    snapshot_s: float = 0.0
    """A copy of the weights for others."""
    load_s: float = 0.0
    """Taking over others' weights."""
    pass_s: float = 0.0
    """A copy of a flat gradient."""


@dataclass(frozen=True, kw_only=True)
class Channel:
    """What a link, or all links of a node in one direction, carry: ``bytes_per_s`` steadily, a burst before that."""

    bytes_per_s: float
    burst_bytes: float = 0.0
    """So much passes at ``peak_per_s`` after a rest."""
    peak_per_s: float = 0.0

    @property
    def peak(self) -> float:
        return max(self.peak_per_s, self.bytes_per_s)


@dataclass(frozen=True, kw_only=True)
class LinkFigures:
    """One direction of a link between two nodes."""

    round_trip_s: float
    channel: Channel


@dataclass(frozen=True, kw_only=True)
class Figures:
    """A cluster with a model and data on it."""

    num_params: int
    num_samples: int
    max_items: int
    batch_size: int
    tensor_bytes: Mapping[str, int]
    """Bytes on the wire of each kind of tensor: ``parameters``, ``gradient``, ``buffers``."""
    nodes: Mapping[str, NodeFigures]
    links: Mapping[tuple[str, str], LinkFigures] = field(default_factory=dict)
    """(from, to) -> that direction."""
    outlets: Mapping[str, Channel] = field(default_factory=dict)
    """What a node sends at most, to all others together, where that was measured."""
    inlets: Mapping[str, Channel] = field(default_factory=dict)
    handling_s: float = 0.0
    """What a gradient costs its receiver besides all of that: waking up, checking, telling of it."""

    def plain(self) -> dict[str, Any]:
        """For JSON; pairs of names become ``a -> b``."""
        return {**asdict(self), "links": {f"{one} -> {other}": asdict(v) for (one, other), v in self.links.items()}}

    @classmethod
    def of(cls, plain: Mapping[str, Any]) -> Figures:
        """The other way round."""
        links = {
            tuple(key.split(" -> ")): LinkFigures(round_trip_s=v["round_trip_s"], channel=Channel(**v["channel"]))
            for key, v in plain["links"].items()
        }
        nodes = {name: NodeFigures(**v) for name, v in plain["nodes"].items()}
        doors = {key: {name: Channel(**v) for name, v in plain[key].items()} for key in ("outlets", "inlets")}
        return cls(**{**plain, "links": links, "nodes": nodes, **doors})

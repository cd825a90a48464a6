"""What trackers plot: the names and values that an event holds.

=================  ==========================================================================
``train/``         loss, lr, grad_norm, epoch, samples, and any other number of a metrics event
``throughput/``    samples_per_s, tokens_per_s, wait_share
``wire/``          sent_bytes, received_bytes, uncompressed_bytes: of the node that owns the weights
``staleness/``     mean, max ... in versions
``gradients/``     the norm of each layer's gradient (``train.track_gradients``)
``validation/``    loss, accuracy or perplexity
``nodes/<name>/``  samples_per_s, wait_share, sent_bytes, received_bytes, rss_bytes of one node
=================  ==========================================================================
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from smolcluster.tracking.fields import finite, number, table, text, whole
from smolcluster.tracking.tracker import Event

STAMPS = frozenset({"event", "node", "role", "rank", "t", "step", "num_steps", "best"})
"""Fields that say what a number belongs to and are no numbers to plot."""
THROUGHPUT = frozenset({"samples_per_s", "tokens_per_s", "wait_share"})
TABLES = {"wire": "wire", "staleness": "staleness", "grad_norms": "gradients"}
"""Field that holds a table of numbers -> the prefix of their names."""
BYTES = frozenset({"sent", "received", "uncompressed"})
NODE_INTERVAL_S = 5.0
"""A tracker gets a node's measurements that often: a plot needs no more, and a server is spared the rest."""


def scalars(event: Event) -> dict[str, float]:
    """Name -> value of everything in ``event`` that can be plotted over its step."""
    kind = event.get("event")
    if kind == "metrics":
        return _metrics(event)
    if kind == "evaluation":
        return _numbers("validation", event)
    if kind == "node":
        return _numbers(f"nodes/{text(event.get('node'))}", event)
    return {}


def step_of(event: Event) -> int:
    return whole(event.get("step")) or 0


def _metrics(event: Event) -> dict[str, float]:
    throughput = {key: event[key] for key in THROUGHPUT if key in event}
    train = {key: value for key, value in event.items() if key not in THROUGHPUT}
    found = _numbers("train", train) | _numbers("throughput", throughput)
    for field, prefix in TABLES.items():
        found |= _numbers(prefix, table(event.get(field)))
    return found


def _numbers(prefix: str, fields: Mapping[str, Any]) -> dict[str, float]:
    values = ((key, number(value)) for key, value in fields.items() if key not in STAMPS)
    return {f"{prefix}/{_named(key)}": value for key, value in values if value is not None}


def _named(key: str) -> str:
    return f"{key}_bytes" if key in BYTES else key


class Thinning:
    """Lets every event pass but a node's measurements, of which one in ``NODE_INTERVAL_S`` seconds."""

    def __init__(self) -> None:
        self._passed: dict[str, float] = {}

    def passes(self, event: Event) -> bool:
        if event.get("event") != "node":
            return True
        name, now = text(event.get("node")), finite(event.get("t")) or 0.0
        if now - self._passed.get(name, float("-inf")) < NODE_INTERVAL_S:
            return False
        self._passed[name] = now
        return True

"""One record of a run, added up from its events: ``summary.json``."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from smolcluster.tracking.counts import Counter, Mean, Traffic
from smolcluster.tracking.fields import finite, number, table, text, whole
from smolcluster.tracking.logs import timestamp
from smolcluster.tracking.tracker import Event, NodeInfo, RunInfo

Status: TypeAlias = Literal["done", "failed", "interrupted"]
QUALITIES = ("loss", "accuracy", "perplexity")


@dataclass
class _Node:
    """What one node has done so far."""

    name: str
    role: str
    rank: int
    host: str
    device: str
    steps: int = 0
    samples: Counter = field(default_factory=Counter)
    says_samples: bool = False
    wait: Mean = field(default_factory=Mean)

    def record(self, traffic: Traffic) -> dict[str, Any]:
        sent, received = traffic.of(self.name)
        return {
            "name": self.name,
            "role": self.role,
            "rank": self.rank,
            "host": self.host,
            "device": self.device or None,
            "steps": self.steps,
            "samples": self.samples.total if self.says_samples else None,
            "sent": sent,
            "received": received,
            "wait_share": self.wait.mean,
        }


class Summary:
    """Takes the events of a run and can say at any time what came of it.

    Speeds are averages between the first and the last logged step: starting up is not in them, pauses for
    evaluation and checkpoints are.
    """

    def __init__(self, run: RunInfo, *, started: float) -> None:
        self._run, self._started = run, started
        self._nodes = {node.name: _node(node) for node in run.nodes}
        self._traffic = Traffic()
        self._first: Event | None = None
        self._last: Event | None = None
        self._rates = {"samples_per_s": Mean(), "tokens_per_s": Mean()}
        self._final: dict[str, Any] | None = None
        self._best: dict[str, Any] | None = None
        self._wait, self._staleness, self._stalest = Mean(), Mean(), Mean()
        self._checkpoint: Event = {}
        self._steps = 0

    def on_event(self, event: Event) -> None:
        take = {
            "metrics": self._on_metrics,
            "node": self._on_node,
            "evaluation": self._on_evaluation,
            "checkpoint": self._on_checkpoint,
            "state": self._on_state,
            "ready": self._on_ready,
        }.get(text(event.get("event")))
        if take is not None:
            take(event)

    def result(self, status: Status, reason: str, *, now: float, digest: str | None = None) -> dict[str, Any]:
        """The record. ``digest`` is the sha256 of the final weights, where the caller knows it."""
        speed, tokens = self._speeds()
        return {
            "status": status,
            "reason": reason,
            "run_id": self._run.run_id,
            "project": self._run.project,
            "purpose": self._run.purpose,
            "started": timestamp(self._started),
            "algo": self._run.algo,
            "model": self._run.model,
            "data": self._run.data,
            "steps": self._steps,
            "seconds": round(now - self._started, 3),
            "samples_per_s": speed,
            "tokens_per_s": tokens,
            "final": self._final or self._last_loss(),
            "best": self._best,
            "wire_bytes": self._traffic.total(),
            "wait_share": self._wait_share(),
            "staleness": {"mean": self._staleness.mean, "max": self._stalest.largest if self._stalest.count else None},
            "nodes": [node.record(self._traffic) for node in self._nodes.values()],
            "checkpoint": self._checkpoint.get("path"),
            "digest": digest or self._checkpoint.get("digest"),
        }

    def _on_metrics(self, event: Event) -> None:
        self._seen_step(event)
        self._first = self._first or event
        self._last = event
        self._traffic.see(text(event.get("node")), table(event.get("wire")))
        self._wait.see(event.get("wait_share"))
        for key, mean in self._rates.items():
            mean.see(event.get(key))
        staleness = table(event.get("staleness"))
        self._staleness.see(staleness.get("mean"))
        self._stalest.see(staleness.get("max"))

    def _on_node(self, event: Event) -> None:
        node = self._node(event)
        step = whole(event.get("step")) or 0
        node.steps = max(node.steps, step)
        if step > 0:
            node.wait.see(event.get("wait_share"))
        if "samples" in event:
            node.says_samples = True
            node.samples.see(event["samples"])
        self._traffic.see(node.name, event)

    def _on_evaluation(self, event: Event) -> None:
        self._seen_step(event)
        quality = {key: number(event.get(key)) for key in QUALITIES if key in event}
        self._final = {"step": event.get("step"), **quality}
        loss = finite(event.get("loss"))
        if loss is not None and (self._best is None or loss < self._best["loss"]):
            self._best = self._final

    def _on_checkpoint(self, event: Event) -> None:
        self._seen_step(event)
        self._checkpoint = event

    def _on_state(self, event: Event) -> None:
        node = self._node(event)
        if event.get("state") == "starting":
            node.samples.restart()
            self._traffic.restart(node.name)

    def _on_ready(self, event: Event) -> None:
        node = self._node(event)
        node.device = text(table(event.get("hardware")).get("device")) or node.device

    def _node(self, event: Event) -> _Node:
        """The node that said it, which may have joined after the run began."""
        name = text(event.get("node"))
        if name not in self._nodes:
            rank, host = whole(event.get("rank")) or 0, text(event.get("host")) or name
            self._nodes[name] = _Node(name=name, role=text(event.get("role")), rank=rank, host=host, device="")
        return self._nodes[name]

    def _seen_step(self, event: Event) -> None:
        self._steps = max(self._steps, whole(event.get("step")) or 0)

    def _last_loss(self) -> dict[str, Any] | None:
        """Without any evaluation, the loss of the last logged step has to do; ``training`` says so."""
        if self._last is None:
            return None
        return {"step": self._last.get("step"), "loss": number(self._last.get("loss")), "training": True}

    def _speeds(self) -> tuple[float | None, float | None]:
        """Samples and tokens per second over the whole of training."""
        reported, tokens = self._rates["samples_per_s"].mean, self._rates["tokens_per_s"].mean
        speed = self._average_speed() or reported
        if not speed or not reported or tokens is None:
            return speed, None
        return speed, speed * tokens / reported

    def _average_speed(self) -> float | None:
        if self._first is None or self._last is None:
            return None
        since = [(finite(e.get("t")) or 0.0, finite(e.get("samples")) or 0.0) for e in (self._first, self._last)]
        (began, before), (ended, after) = since
        return (after - before) / (ended - began) if ended > began and after > before else None

    def _wait_share(self) -> float | None:
        """The mean over the workers (over all nodes where none is called so) of the share of time spent waiting."""
        waits = [(node.role, node.wait.mean) for node in self._nodes.values() if node.wait.mean is not None]
        found = [wait for role, wait in waits if role == "worker"] or [wait for _, wait in waits]
        return sum(found) / len(found) if found else self._wait.mean


def _node(node: NodeInfo) -> _Node:
    return _Node(name=node.name, role=node.role, rank=node.rank, host=node.host, device=node.device)

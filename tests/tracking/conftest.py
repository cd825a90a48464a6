"""A run of one server and two workers, and its events."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from smolcluster.tracking.tracker import NodeInfo, RunInfo

START = 1_000_000.0
ROLES = {"mini1": ("server", 0), "mini2": ("worker", 0), "mini3": ("worker", 1)}
Say = Callable[..., dict[str, Any]]


@pytest.fixture
def run(tmp_path: Path) -> RunInfo:
    nodes = tuple(
        NodeInfo(name=name, role=role, rank=rank, host=name, device="mps") for name, (role, rank) in ROLES.items()
    )
    return RunInfo(
        path=tmp_path / "outputs" / "0",
        run_id="20261121-0",
        project="smolcluster",
        algo="SyncPS",
        model="simplenn",
        data="digits",
        lr=0.001,
        batch_size=32,
        nodes=nodes,
    )


@pytest.fixture
def say() -> Say:
    """``say("mini1", "metrics", after=1.5, step=3, ...)``: an event as the controller stamps it."""

    def build(node: str, event: str, *, after: float = 0.0, **fields: Any) -> dict[str, Any]:
        role, rank = ROLES.get(node, ("worker", 9))
        return {"event": event, "node": node, "role": role, "rank": rank, "t": START + after, **fields}

    return build


@pytest.fixture
def metrics(say: Say) -> Say:
    """``metrics(step, loss)``: what the server says of a step, one second after the last."""

    def build(step: int, loss: float, **fields: Any) -> dict[str, Any]:
        wire = {"sent": 1000 * step, "received": 900 * step, "uncompressed": 4000 * step}
        usual = {
            "step": step,
            "num_steps": 10,
            "epoch": 0,
            "loss": loss,
            "lr": 0.001,
            "grad_norm": 0.5,
            "samples": 64 * step,
            "samples_per_s": 60.0,
            "tokens_per_s": None,
            "wire": wire,
            "wait_share": 0.1,
            "staleness": None,
            "grad_norms": None,
        }
        return say("mini1", "metrics", after=float(step), **{**usual, **fields})

    return build


@pytest.fixture
def story(say: Say, metrics: Say) -> list[dict[str, Any]]:
    """All events of a short run in which one worker is lost for a while."""
    events = [say(name, "state", state="starting", detail="") for name in ROLES]
    events += [say(name, "link", peer="mini1", up=True, reason="") for name in ("mini2", "mini3")]
    events += [say(name, "state", state="training", detail="") for name in ROLES]
    for step in range(1, 11):
        events.append(metrics(step, 2.0 / step))
        for name, wait in (("mini1", 0.5), ("mini2", 0.1), ("mini3", 0.3)):
            counts = {"sent": 1000 * step, "received": 900 * step, "samples": 32 * step}
            speed = {"samples_per_s": 30.0, "wait_share": wait, "rss_bytes": 10**8}
            events.append(say(name, "node", after=step + 0.1, step=step, **counts, **speed))
        if step % 5 == 0:
            events.append(say("mini1", "evaluation", after=step + 0.2, step=step, loss=2.5 / step, accuracy=step / 16))
            path = f"checkpoints/step-{step}"
            events.append(say("mini1", "checkpoint", after=step + 0.3, step=step, path=path, best=True))
    events.append(say("mini1", "journal", after=10.4, kind="late", step=10, reason="no answer in 5 s", peer="mini3"))
    events.append(say("mini3", "log", after=10.5, level="INFO", message="hello", logger="smolcluster.node", step=10))
    return events

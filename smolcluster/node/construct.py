"""Building what is heavy: device, data, model, and the state of the checkpoint that a run starts from."""

from __future__ import annotations

import os
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.utils.deterministic

from smolcluster.data.dataset import Context
from smolcluster.errors import CheckpointError
from smolcluster.node.hardware import describe
from smolcluster.ports import AlgorithmState, Member, Reporter
from smolcluster.train.checkpoint import load
from smolcluster.train.device import fabric_for
from smolcluster.train.learner import FabricLearner

if TYPE_CHECKING:
    from smolcluster.node.start import Start
    from smolcluster.spec.run import RunSpec


class Built(NamedTuple):
    """A learner, the algorithm's state (where a run is resumed) and what the journal finds again."""

    learner: FabricLearner
    algorithm: AlgorithmState | None
    before: dict[str, Any]
    hardware: dict[str, Any]


def construct(start: Start, me: Member, thread: ThreadPoolExecutor, report: Reporter) -> Built:
    """Runs in the compute thread."""
    prepare_torch(start.spec, start.threads)
    node = start.spec.cluster.node(me.name)
    spec = start.spec
    if node.precision is not None:
        spec = replace(spec, train=replace(spec.train, precision=node.precision))

    def say(text: str) -> None:
        report("log", level="INFO", logger="smolcluster.data", message=text, step=None)

    context = Context(seq_length=spec.seq_length, seed=spec.seed, cache=start.cache, say=say)
    dataset = spec.data.load(context)
    fabric = fabric_for(node.device, spec.train.precision)
    learner: FabricLearner
    if spec.algo.averaged_by_torch:
        from smolcluster.train.ddp import GroupedLearner

        learner = grouped = GroupedLearner(spec, dataset, fabric, thread)
        grouped.prepare_group(start.host, spec.comms.timeout_s * 4)
    else:
        learner = FabricLearner(spec, dataset, fabric, thread)
    state, before = resume(learner, start)
    return Built(learner, state, before, describe(str(fabric.device), start.threads))


def prepare_torch(spec: RunSpec, threads: int) -> None:
    """Process-wide settings: threads, determinism, and warnings that a user cannot act on."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.set_num_threads(threads)
    if spec.train.precision == "64":  # Fabric converts a model's output to the default type
        torch.set_default_dtype(torch.float64)
    if spec.train.deterministic:
        torch.set_deterministic_debug_mode("warn")  # use_deterministic_algorithms would import torch's compiler
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    warnings.filterwarnings("ignore", module="lightning_fabric")


def resume(learner: FabricLearner, start: Start) -> tuple[AlgorithmState | None, dict[str, Any]]:
    """Put the checkpoint's weights, optimizer state and version in place."""
    if start.resume is None:
        return None, {}
    checkpoint = load(Path(start.resume))
    what = f"the checkpoint {start.resume}"
    learner.flat.load_named_state(checkpoint.model, what)
    plain = dict(checkpoint.plain)
    if start.purpose == "train" and plain.get("data", learner.dataset.fingerprint) != learner.dataset.fingerprint:
        counts = f"{plain['num_samples']} training samples then, {learner.num_samples} now"
        raise CheckpointError(
            f"{what} was trained on other data ({counts}): what has been seen of an epoch means nothing here; "
            "go on with the same data.* keys"
        )
    same_optimizer = plain.get("optim") == start.spec.choices.get("optim")
    if same_optimizer and learner.load_optimizer_named_state(checkpoint.optimizer, what):
        learner.optimizer_steps = plain["optimizer_steps"]
    learner.version = checkpoint.step
    if plain.get("algo") == start.spec.choices.get("algo"):
        return AlgorithmState(plain=plain["algorithm"], tensors=checkpoint.algorithm), plain
    # another algorithm takes over where the run stands in its samples, and nothing else
    common = {key: plain["algorithm"][key] for key in ("cursor", "backlog", "step")}
    return AlgorithmState(plain=common), plain

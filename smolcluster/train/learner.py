"""The model on this node's device: gradients, optimizer steps, evaluation. Lightning Fabric does the device.

Everything runs in one compute thread, so that sockets, heartbeats and deadlines never wait for a kernel, and
two calls never meet. Randomness is counter-based: dropout in step t on rank r is a function of the seed, t, r and the
first sample's position.
"""

from __future__ import annotations

import asyncio
import hashlib
import math
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from smolcluster.data.order import sample_ids
from smolcluster.errors import Interrupted
from smolcluster.ports import Applied, Gradient, Span, Weights
from smolcluster.spec.seeds import derive
from smolcluster.train.device import Fabric
from smolcluster.train.flat import FlatModel
from smolcluster.train.loss_scale import LossScale

if TYPE_CHECKING:
    from smolcluster.data.dataset import Dataset
    from smolcluster.spec.run import RunSpec

T = TypeVar("T")
IGNORE = -100
"""Target of a padding position."""


class FabricLearner:
    """Implements :class:`smolcluster.ports.Learner` and the node's side of evaluation and checkpoints."""

    def __init__(self, spec: RunSpec, dataset: Dataset, fabric: Fabric, thread: ThreadPoolExecutor) -> None:
        self.spec, self.dataset, self.fabric, self._thread = spec, dataset, fabric, thread
        self.version = 0
        self.optimizer_steps = 0
        self.num_steps = 1
        self.computed_samples = self.last_step = self.last_epoch = 0
        self.last_loss = math.nan
        self.num_samples = len(dataset.train)
        self.max_items = dataset.info.seq_length or 1
        torch.manual_seed(derive(spec.seed, "initial weights"))
        self.module: nn.Module = spec.model.build(dataset.info)
        self._forward: Any = fabric.setup(self.module)
        self.flat = FlatModel(self.module)
        self.num_params = self.flat.manifest.numel
        self._optimizer_state = {name: torch.zeros_like(self.flat.parameters) for name in spec.optim.state_names}
        self._halted = threading.Event()
        self._loss_scale = LossScale.for_precision(spec.train.precision, fabric.device.type)
        self.fingerprint = self._fingerprint()

    def _fingerprint(self) -> str:
        parts = (self.flat.manifest.fingerprint(), self.flat.buffer_manifest.fingerprint(), self.dataset.fingerprint)
        return hashlib.sha256("".join(parts).encode()).hexdigest()

    async def compute(self, work: Callable[[], T], *, passes: float = 1.0) -> T:
        """Run ``work`` in the compute thread."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    # --- the port ----------------------------------------------------------------------------------------

    async def gradient(self, spans: Sequence[Span], *, step: int, rank: int) -> Gradient:
        return await self.compute(lambda: self._gradient(spans, step, rank))

    async def apply(self, gradient: Tensor, *, buffers: Tensor | None = None, lr_scale: float = 1.0) -> Applied:
        return await self.compute(lambda: self._apply(gradient, buffers, lr_scale))

    async def load(self, weights: Weights, *, blend: float = 1.0) -> None:
        await self.compute(lambda: self._load(weights, blend))

    async def load_buffers(self, buffers: Tensor) -> None:
        await self.compute(lambda: self.flat.load_buffers(buffers))

    async def snapshot(self) -> Weights:
        return await self.compute(self._snapshot)

    # --- for the node ------------------------------------------------------------------------------------

    async def evaluate(self) -> dict[str, float]:
        """Loss, and accuracy or perplexity, on the validation set: sums over items, not means of means."""
        return await self.compute(self._evaluate)

    async def halt(self) -> None:
        """Return when nothing is being computed any more; an evaluation is broken off."""
        self._halted.set()
        await self.compute(lambda: None)

    # --- in the compute thread -----------------------------------------------------------------------------

    def _gradient(self, spans: Sequence[Span], step: int, rank: int) -> Gradient:
        started = time.perf_counter()
        ids = sample_ids(spans, self.spec.seed, self.num_samples)
        size = self.spec.batch_size
        batches = [self.dataset.train.batch(ids[start : start + size]) for start in range(0, len(ids), size)]
        num_items = sum(int(np.count_nonzero(targets != IGNORE)) for _, targets in batches)
        start = spans[0].start if spans else 0  # a span that is done again in the same step has masks of its own
        seed = derive(self.spec.seed, "dropout", step, rank, start)
        before, after = self._mean_factors(num_items)
        loss = after * self._backward(batches, before, seed)
        while not self._loss_scale.unscale(self.flat.gradients):
            loss = after * self._backward(batches, before, seed)
        if after != 1.0:
            self.flat.gradients.mul_(after)
        self.computed_samples, self.last_step, self.last_loss = self.computed_samples + len(ids), step, loss
        self.last_epoch = spans[-1].epoch if spans else self.last_epoch
        flat = self.flat.gradients
        norms = self._norms(flat) if self.spec.train.track_gradients else {}
        if self.spec.train.clip == "worker":
            clip_(flat, self.spec.train.grad_clip_norm)
        return Gradient(
            flat=flat.cpu() if flat.device.type != "cpu" else flat,
            buffers=self.flat.buffers(),
            loss=loss,
            num_samples=len(ids),
            num_items=num_items,
            seconds=time.perf_counter() - started,
            norms=norms,
        )

    def _mean_factors(self, num_items: int) -> tuple[float, float]:
        """Factors on the summed loss and on its gradient that make a mean of the sum.

        The first is a power of two, and so changes no digit on the way back through the model. Then the gradient of a
        whole batch differs from that of its parts only by the roundings of adding them up, however many share it.
        """
        if num_items == 0:
            return 1.0, 1.0
        before = 2.0 ** -round(math.log2(num_items))
        return before, 1.0 / (num_items * before)

    def _backward(self, batches: Sequence[tuple[Any, Any]], factor: float, seed: int) -> float:
        """Leave the gradient of ``factor`` times the summed loss in the flat buffer; returns that loss."""
        torch.manual_seed(seed)
        self.module.train()
        self.flat.gradients.zero_()
        loss = 0.0
        for inputs, targets in batches:
            part = self._loss_sum(inputs, targets) * factor
            self.fabric.backward(part * self._loss_scale.factor, model=self._forward)
            loss += float(part.detach())
        return loss

    def _loss_sum(self, inputs: Any, targets: Any) -> Tensor:
        """Cross-entropy summed over the items of a batch: inputs [B, ...], targets [B] or [B, T]."""
        device = self.fabric.device
        logits = self._forward(torch.from_numpy(inputs).to(device))
        goal = torch.from_numpy(targets).to(device).reshape(-1)
        return F.cross_entropy(logits.reshape(goal.numel(), -1), goal, reduction="sum", ignore_index=IGNORE)

    def _apply(self, gradient: Tensor, buffers: Tensor | None, lr_scale: float) -> Applied:
        train = self.spec.train
        gradient = gradient.to(self.flat.parameters.device, self.flat.parameters.dtype)
        norms = self._norms(gradient) if train.track_gradients else {}
        norm = float(torch.linalg.vector_norm(gradient))
        self.version += 1
        if not math.isfinite(norm):
            return Applied(grad_norm=norm, clip=0.0, skipped=True, lr=0.0, norms=norms)
        clip = clip_(gradient, train.grad_clip_norm, norm) if train.clip == "global" else 1.0
        lr = self.spec.schedule.lr(self.spec.optim.lr, self.version - 1, self.num_steps) * lr_scale
        self.optimizer_steps += 1  # not the version: a resumed run with another optimizer starts that one afresh
        count, state = self.optimizer_steps, self._optimizer_state
        with torch.no_grad():
            self.spec.optim.step(self.flat.parameters, gradient, state, count=count, lr=lr)
            self.flat.load_buffers(buffers)
        return Applied(grad_norm=norm, clip=clip, skipped=False, lr=lr, norms=norms)

    def _norms(self, flat: Tensor) -> Mapping[str, float]:
        names, views = zip(*self.flat.manifest.views(flat), strict=True)
        return {name: float(norm) for name, norm in zip(names, torch._foreach_norm(list(views)), strict=True)}

    def _load(self, weights: Weights, blend: float) -> None:
        with torch.no_grad():
            if blend == 1.0:
                self.flat.parameters.copy_(weights.parameters)
            else:
                self.flat.parameters.lerp_(weights.parameters.to(self.flat.parameters.device), blend)
            self.flat.load_buffers(weights.buffers)

    def _snapshot(self) -> Weights:
        return Weights(self.flat.parameters.detach().to("cpu", copy=True), self.flat.buffers())

    @torch.no_grad()
    def _evaluate(self) -> dict[str, float]:
        self.module.eval()
        samples, limit = self.dataset.validation, self.spec.train.eval_samples
        count = len(samples) if limit is None else min(limit, len(samples))
        size = self.spec.batch_size if self.dataset.info.kind == "tokens" else max(256, self.spec.batch_size)
        loss, correct, num_items = 0.0, 0, 0
        for start in range(0, count, size):
            if self._halted.is_set():
                raise Interrupted("evaluation broken off")
            inputs, targets = samples.batch(np.arange(start, min(start + size, count)))
            device = self.fabric.device
            logits = self._forward(torch.from_numpy(inputs).to(device))
            goal = torch.from_numpy(targets).to(device).reshape(-1)
            logits = logits.reshape(goal.numel(), -1)
            loss += float(F.cross_entropy(logits, goal, reduction="sum", ignore_index=IGNORE))
            counted = goal != IGNORE
            correct += int((logits.argmax(-1) == goal)[counted].sum())
            num_items += int(counted.sum())
        mean = loss / max(num_items, 1)
        result = {"loss": mean, "num_items": float(num_items)}
        if self.dataset.info.kind == "tokens":
            return {**result, "perplexity": math.exp(mean) if mean < 700 else math.inf}
        return {**result, "accuracy": correct / max(num_items, 1)}

    # --- checkpoints -------------------------------------------------------------------------------------

    def optimizer_named_state(self) -> dict[str, Tensor]:
        """The optimizer's tensors by logical name: ``exp_avg/<parameter>``."""
        return {
            f"{kind}/{name}": view.cpu()
            for kind, flat in self._optimizer_state.items()
            for name, view in self.flat.manifest.views(flat)
        }

    def load_optimizer_named_state(self, state: Mapping[str, Tensor], what: str) -> bool:
        """Whether ``state`` was that of the same optimizer; otherwise the present one starts afresh."""
        kinds = {name.partition("/")[0] for name in state}
        if kinds != set(self._optimizer_state):
            return False
        for kind, flat in self._optimizer_state.items():
            part = {name.partition("/")[2]: tensor for name, tensor in state.items() if name.startswith(f"{kind}/")}
            self.flat.manifest.fill(flat, part, what)
        return True


def clip_(flat: Tensor, max_norm: float, norm: float | None = None) -> float:
    """Scale ``flat`` in place to a norm of at most ``max_norm`` (torch's formula); returns the factor."""
    norm = float(torch.linalg.vector_norm(flat)) if norm is None else norm
    factor = min(1.0, max_norm / (norm + 1e-6))
    if factor < 1.0:
        flat.mul_(factor)
    return factor

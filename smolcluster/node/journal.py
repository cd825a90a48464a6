"""What a node makes of its role's reports: metrics, evaluations, checkpoints, and stopping when asked to."""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from smolcluster.errors import Interrupted, RunFailed
from smolcluster.messages import Busy
from smolcluster.train.checkpoint import Checkpoint, save

if TYPE_CHECKING:
    from smolcluster.ports import AlgorithmState, Peers, Reporter, Step
    from smolcluster.spec.run import RunSpec
    from smolcluster.train.learner import FabricLearner

BUSY_S = 10.0
"""How often workers are asked for patience while their server evaluates or saves."""


def wire(spec: RunSpec, peers: Peers) -> dict[str, int | None]:
    """Bytes at this node's sockets so far; null where torch's own sockets carry the gradients, which nobody counts."""
    counts = peers.traffic()
    return dict.fromkeys(counts) if spec.algo.averaged_by_torch else dict(counts)


class NodeJournal:
    """Implements :class:`smolcluster.ports.Journal`."""

    def __init__(
        self,
        spec: RunSpec,
        learner: FabricLearner,
        peers: Peers,
        report: Reporter,
        folder: Path,
        before: dict[str, Any],
    ) -> None:
        self.spec, self.learner, self.peers, self.report, self.folder = spec, learner, peers, report, folder
        self.samples: int = before.get("samples", 0)
        self.best = math.inf
        """Smallest validation loss of this run: ``checkpoints/best`` is always one of its own."""
        self.stop_reason: str | None = None
        self.step = learner.version
        self._committed: tuple[Step, AlgorithmState] | None = None
        self._evaluated_at = self._saved_at = self._logged_at = -1
        self._writing: asyncio.Task[None] | None = None
        self._logged = (time.monotonic(), self.samples, 0)
        self._items = 0

    @property
    def last(self) -> Step | None:
        """The last committed step, on the node that commits."""
        return self._committed[0] if self._committed else None

    async def commit(self, step: Step, state: AlgorithmState) -> None:
        train = self.spec.train
        self._committed, self.step = (step, state), step.version
        self.samples += step.num_samples
        self._items += step.num_items
        last = step.version >= self.learner.num_steps  # evaluated and saved by finish(), once
        if step.version % train.log_steps == 0 or last:
            self._log(step)
        better = False
        if train.eval_steps and step.version % train.eval_steps == 0 and not last:
            better = await self.evaluate()
        if better or (train.checkpoint_steps and step.version % train.checkpoint_steps == 0 and not last):
            await self.save(best=better)
        if self.stop_reason is not None:
            await self.save(best=False)
            raise Interrupted(f"stopped at step {step.version}: {self.stop_reason}")

    def event(self, kind: str, **fields: Any) -> None:
        self.report("journal", kind=kind, **fields)

    def stop(self, reason: str) -> None:
        """Raise Interrupted at the next commit."""
        self.stop_reason = reason

    async def finish(self) -> None:
        """The run is over: evaluate and save the last weights, unless that has just been done."""
        if self._committed is None:
            raise RunFailed("there was nothing to do: no sample is left (raise train.epochs or train.max_steps)")
        if self._logged_at != self.step:
            self._log(self._committed[0])
        better = False
        if self._evaluated_at != self.step:
            better = await self.evaluate()
        if self._saved_at != self.step or better:
            await self.save(best=better)

    async def evaluate(self) -> bool:
        """Evaluate the present weights; whether they are the best so far."""
        self.report("state", state="evaluating", detail="")
        began, step = time.monotonic(), self.step
        async with self._busy("evaluating"):
            result = await self.learner.evaluate()
        self._evaluated_at = step
        self.report("evaluation", step=step, seconds=time.monotonic() - began, **result)
        self.report("state", state="training", detail="")
        better = bool(result["loss"] < self.best)  # never so where it is not a number
        self.best = min(self.best, result["loss"]) if better else self.best
        return better

    async def save(self, *, best: bool) -> None:
        """Write a checkpoint of the last committed step, off the event loop. Being cancelled does not cut it short."""
        await self.settle()
        if self._committed is None or (self._saved_at == self.step and not best):
            return
        step, state = self._committed
        self.report("state", state="saving", detail=f"step {step.version}")
        checkpoint = Checkpoint(
            step=step.version,
            plain={
                "samples": self.samples,
                "optimizer_steps": self.learner.optimizer_steps,
                "seed": self.spec.seed,
                "data": self.learner.dataset.fingerprint,
                "num_samples": self.learner.num_samples,
                "algo": self.spec.choices.get("algo"),
                "model_option": self.spec.choices.get("model"),
                "data_option": self.spec.choices.get("data"),
                "optim": self.spec.choices.get("optim"),
                "algorithm": dict(state.plain),
            },
            model=self.learner.flat.named_state(),
            optimizer=self.learner.optimizer_named_state(),
            algorithm=state.tensors,
        )
        self._writing = asyncio.create_task(self._write(checkpoint, best))
        async with self._busy("saving"):
            await asyncio.shield(self._writing)

    async def settle(self) -> None:
        """Return when no checkpoint is being written any more."""
        if self._writing is not None:
            writing, self._writing = self._writing, None
            await writing

    async def _write(self, checkpoint: Checkpoint, best: bool) -> None:
        keep = self.spec.train.keep_checkpoints
        path = await asyncio.to_thread(save, self.folder, checkpoint, keep=keep, best=best)
        self._saved_at = checkpoint.step
        self.report("checkpoint", step=checkpoint.step, path=f"{self.folder.name}/{path.name}", best=best)
        self.report("state", state="training", detail="")

    @contextlib.asynccontextmanager
    async def _busy(self, what: str) -> AsyncIterator[None]:
        """Ask the workers for patience meanwhile, where this is their server."""

        async def ask() -> None:
            while self.peers.me.role == "server":
                await asyncio.sleep(BUSY_S)
                for member in self.peers.view.named("worker"):
                    self.peers.send(member.name, Busy(reason=what))

        asking = asyncio.create_task(ask(), name=what)
        try:
            yield
        finally:
            asking.cancel()

    def _log(self, step: Step) -> None:
        self._logged_at = step.version
        now = time.monotonic()
        then, samples, items = self._logged
        seconds = max(now - then, 1e-9)
        self._logged = (now, self.samples, self._items)
        per_s = (self.samples - samples) / seconds
        tokens = self.learner.dataset.info.kind == "tokens"
        details = dict(step.details)
        self.report(
            "metrics",
            step=step.version,
            num_steps=self.learner.num_steps,
            epoch=step.spans[-1].epoch if step.spans else None,
            loss=step.loss,
            lr=step.applied.lr,
            grad_norm=step.applied.grad_norm,
            skipped=step.applied.skipped,
            samples=self.samples,
            samples_per_s=per_s,
            tokens_per_s=(self._items - items) / seconds if tokens else None,
            step_s=seconds,
            wire=wire(self.spec, self.peers),
            wait_share=None if self.spec.algo.averaged_by_torch else step.wait_share,
            staleness=details.pop("staleness", None),
            grad_norms=dict(step.applied.norms) or None,
            spans=[list(span) for span in step.spans],
            **details,
        )

"""A node's life: build the model and the data, wait for the view, do the role's work, leave."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import shutil
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from smolcluster.comms.buffers import Layout
from smolcluster.comms.membership import dialler
from smolcluster.comms.peers import NodePeers, Patience
from smolcluster.errors import Interrupted, RunFailed
from smolcluster.node.hardware import peak_rss_bytes, rss_bytes
from smolcluster.node.journal import NodeJournal, wire
from smolcluster.ports import AlgorithmState, Member, Role, View

if TYPE_CHECKING:
    from smolcluster.node.run import NodeProcess

logger = logging.getLogger("smolcluster.node")
HEARTBEAT_S = 0.5
"""How often a node reports its step, speed, traffic and memory."""
LONG_STEP_S = 30.0
"""A node that has computed nothing new for so long is slower than it was."""
FLUSH_S = 2.0
"""After its work a node waits so long for what it has sent to arrive; after a failure not at all."""
GRACE = 0.6
"""Part of the stop timeout that the role has to reach its next commit; the rest is for saving."""


class Node:
    """One member: its peers, its learner, its role."""

    def __init__(self, process: NodeProcess, me: Member, transport: Any) -> None:
        self.process, self.me, self.start = process, me, process.start
        self.spec = process.start.spec
        comms = self.spec.comms
        patience = Patience(connect_s=comms.connect_timeout_s, silent_s=comms.lost_after_s, lost_s=comms.timeout_s)
        self.peers = NodePeers(self.start.run, me, transport, patience, self.report)
        self.journal: NodeJournal | None = None
        self.learner: Any = None
        self._viewed = asyncio.Event()
        self._work: asyncio.Task[None] | None = None
        self._seen, self._figures = (time.monotonic(), 0, 0.0), (0.0, 0.0)
        self._logged_step = -1

    def report(self, event: str, **fields: Any) -> None:
        """An event in this node's name."""
        self.process.report(event, of=self.me.name, **fields)

    def change_view(self, command: Mapping[str, Any]) -> None:
        """Take over the controller's view, and hold links to whom the algorithm talks to.

        A node that joins hears first how things stand without it: what it would say on the strength of that, the others
        would refuse.
        """
        members = tuple(Member(**each) for each in command["members"])
        if not self._viewed.is_set() and self.me not in members:
            return
        passive, links = frozenset(command.get("passive", ())), []
        for member in members:
            if self.talks_to(member):
                where = command["addresses"].get(member.name)
                ours = dialler(self.me, member, passive) == self.me
                links.append((member, (str(where[0]), int(where[1])) if ours and where else None))
        view = View(generation=command["generation"], members=members)
        self.peers.change_view(view, links, command["reason"], command.get("curve_keys"))
        self._viewed.set()

    def talks_to(self, other: Member) -> bool:
        kinds = {self.me.role, other.role}
        pattern = self.start.links
        return other.name != self.me.name and (pattern == "full" or (pattern == "star" and len(kinds) == 2))

    @property
    def owns_weights(self) -> bool:
        """This node makes the optimizer steps that count: it evaluates, saves and exports."""
        return self.me.name == self.start.roster[0].name

    @property
    def step(self) -> int | None:
        return None if self.learner is None else self._progress()[1]

    def stop(self, reason: str) -> None:
        """Stop at the next commit, or after a part of the stop timeout wherever the role is."""
        if self.journal is not None and self.owns_weights:
            self.journal.stop(reason)
            grace = GRACE * self.spec.cluster.stop_timeout_s
            asyncio.get_running_loop().call_later(grace, self._cancel)
        else:
            self._cancel()

    def _cancel(self) -> None:
        if self._work is not None:
            self._work.cancel()

    async def run(self) -> None:
        """From building to leaving."""
        self._work = asyncio.create_task(self._life(), name=f"life of {self.me.name}")
        if self.process.stopping is not None:
            self._work.cancel()
        pulse = asyncio.create_task(self._pulse(), name=f"pulse of {self.me.name}")
        flush_within = 0.0
        try:
            await self._work
            flush_within = FLUSH_S
        except asyncio.CancelledError:
            await self._save_what_stands()
            raise Interrupted(f"{self.me.name}: {self.process.stopping}") from None
        finally:
            pulse.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await pulse
            await self.peers.close(flush_within)

    async def _life(self) -> None:
        self.report("state", state="starting", detail="building the model and the data")
        loop = asyncio.get_running_loop()
        self.learner, algorithm, before = await loop.run_in_executor(self.process.thread, self._build)
        self.peers.agree(self._layouts())
        self.journal = NodeJournal(
            self.spec, self.learner, self.peers, self.report, self.start.folder / "checkpoints", before
        )
        logger.info("%s: model of %d parameters on %s", self.me.name, self.learner.num_params, self._hardware["device"])
        self.report(
            "ready", hardware=self._hardware, fingerprint=self.learner.fingerprint, params=self.learner.num_params
        )
        self.report("state", state="connecting", detail="")
        await self._viewed.wait()
        self.report("state", state="training", detail="")
        if self.start.purpose == "evaluate":
            await self.journal.evaluate()
        else:
            await self._role(algorithm).run(self.peers, self.learner, _LoopClock(loop), self.journal)
        if self.start.purpose == "train" and self.owns_weights:
            await self.journal.finish()
            await self._export()
        if self.start.purpose != "survey" and self.owns_weights:
            self.report("result", digest=await self.learner.compute(self.learner.flat.digest), step=self.journal.step)
        self._beat()
        self.report("state", state="finished", detail="")
        self.report("finished", refusals={f"{p}/{r}": n for (p, r), n in sorted(self.peers.refusals.items())})

    def _role(self, algorithm: AlgorithmState | None) -> Role:
        """What this node does: its part in the algorithm, or in a survey."""
        if self.start.purpose == "survey":
            from smolcluster.node.survey import Surveyor

            sizes = {name: layout.num_bytes for name, layout in self.peers.layouts.items()}
            return Surveyor(self.spec, self.me, sizes)
        return self.spec.algo.role(self.spec, self.me, self.learner.num_samples, algorithm)

    def _build(self) -> tuple[Any, AlgorithmState | None, dict[str, Any]]:
        """Everything heavy, in the compute thread: device, data, model, and the checkpoint to start from."""
        from smolcluster.node.construct import construct

        built = construct(self.start, self.me, self.process.thread, self.report)
        self._hardware = built.hardware
        return built.learner, built.algorithm, built.before

    def _layouts(self) -> dict[str, Layout]:
        """The kinds of tensor of this run: parameters, gradients (encoded, perhaps) and buffers."""
        flat = self.learner.flat
        dtype = str(flat.parameters.dtype).removeprefix("torch.")
        dense = Layout(dtype, flat.manifest.numel)
        encoded_bytes = self.spec.algo.gradient_bytes(flat.manifest.numel)
        gradient = Layout("uint8", encoded_bytes, dense.num_bytes) if encoded_bytes else dense
        layouts = {"parameters": dense, "gradient": gradient}
        if flat.buffer_manifest.numel:
            layouts["buffers"] = Layout("float64", flat.buffer_manifest.numel)
        if self.start.purpose == "survey":
            from smolcluster.node.survey import CHUNK

            layouts["chunk"] = CHUNK
        return layouts

    async def _export(self) -> None:
        if self.spec.train.export:
            self.report("state", state="saving", detail="export/")
            await self.learner.compute(self._write_export)

    def _write_export(self) -> None:
        """Fill export/, or leave none: half of a model is worse than no model."""
        folder = self.start.folder / "export"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self.spec.model.export(self.learner.module, folder, self.learner.dataset)
        except OSError as error:
            shutil.rmtree(folder, ignore_errors=True)
            raise RunFailed(f"{self.me.name}: export to {folder}: {error.strerror or error}") from error

    async def _save_what_stands(self) -> None:
        """After a cancelled wait: the last committed step, unless a step was being made at that moment."""
        journal = self.journal
        if journal is None or not self.owns_weights:
            return
        await journal.settle()
        await self.learner.halt()
        if self.learner.version == journal.step:
            await journal.save(best=False)

    async def _pulse(self) -> None:
        while True:
            await asyncio.sleep(HEARTBEAT_S)
            self._beat()

    def _progress(self) -> tuple[int, int, float]:
        """(epoch, step, training loss): of the last committed step, or of this worker's last gradient."""
        last = self.journal.last if self.journal is not None else None
        if last is None:
            return self.learner.last_epoch, self.learner.last_step, self.learner.last_loss
        return (last.spans[-1].epoch if last.spans else 0), last.version, last.loss

    def _beat(self) -> None:
        """Report step, speed, waiting, traffic and memory; a line in the log where the step is another one."""
        if self.learner is None:
            self.report("alive", cpu_s=time.process_time())
            return
        epoch, step, loss = self._progress()
        if step != self._logged_step and not math.isnan(loss):
            self._logged_step = step
            logger.info("Epoch %d, step %d: loss %.4f", epoch, step, loss)
        speed, wait_share = self._pace(time.monotonic())
        self.report(
            "node",
            step=step,
            samples=self.learner.computed_samples,
            samples_per_s=speed,
            wait_share=None if self.spec.algo.averaged_by_torch else wait_share,
            **wire(self.spec, self.peers),
            rss_bytes=rss_bytes(),
            peak_rss_bytes=peak_rss_bytes(),
        )

    def _pace(self, now: float) -> tuple[float, float]:
        """(samples per second, share of time spent waiting) from one gradient to another: a step may take long."""
        computed, waited = self.learner.computed_samples, self.peers.waited_s
        then, before, waited_before = self._seen
        if computed != before or computed == 0 or now - then > LONG_STEP_S:
            seconds = max(now - then, 1e-9)
            self._figures = (computed - before) / seconds, min(1.0, (waited - waited_before) / seconds)
            self._seen = (now, computed, waited)
        return self._figures


class _LoopClock:
    """Implements :class:`smolcluster.ports.Clock` on the event loop's time."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.now = loop.time

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

"""The learner of ``algo=ddp``: the same model under torch's DistributedDataParallel, with its defaults."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from smolcluster.ports import Gradient, Span
from smolcluster.train.learner import FabricLearner

COLLECTIVE_TIMEOUT = timedelta(minutes=30)
BACKEND = "gloo_here"
"""Gloo as it is, but for the address that it listens at."""


class GroupedLearner(FabricLearner):
    """Implements :class:`smolcluster.ports.GroupLearner`. Gloo on the CPU, NCCL where the device is CUDA."""

    def prepare_group(self, host: str, timeout_s: float) -> None:
        """``host``: the address that the other ranks reach this node at; they must be there after ``timeout_s``."""
        self._host, self._timeout = host, timedelta(seconds=timeout_s)
        self._store: Any = None
        self._scale = 1.0

    async def open_group(self) -> tuple[str, int]:
        store = dist.TCPStore(  # type: ignore[attr-defined]
            self._host, 0, is_master=True, wait_for_workers=False, timeout=self._timeout
        )
        self._store = store
        return self._host, store.port

    async def join_group(self, host: str, port: int, rank: int, world_size: int) -> None:
        await self.compute(lambda: self._join(host, port, rank, world_size))

    def _join(self, host: str, port: int, rank: int, world_size: int) -> None:
        if self._store is None:
            self._store = dist.TCPStore(  # type: ignore[attr-defined]
                host, port, is_master=False, timeout=self._timeout
            )
        cuda = self.fabric.device.type == "cuda"
        if not cuda:
            self._offer_gloo()
        # torch's own timeout of half an hour: rank 0 may evaluate for long, and the controller notices who dies
        dist.init_process_group(
            "nccl" if cuda else BACKEND, store=self._store, rank=rank, world_size=world_size, timeout=COLLECTIVE_TIMEOUT
        )
        ids = [self.fabric.device.index] if cuda else None
        self._forward = self.fabric.setup(DistributedDataParallel(self.module, device_ids=ids))

    def _offer_gloo(self) -> None:
        """Left to itself, Gloo listens at what this machine's name resolves to, often an address for itself alone."""

        def make(store: Any, rank: int, size: int, timeout: timedelta) -> Any:
            options = dist.ProcessGroupGloo._Options()  # type: ignore[attr-defined]
            options._timeout = timeout
            options._devices = [dist.ProcessGroupGloo.create_device(hostname=self._host)]
            return dist.ProcessGroupGloo(store, rank, size, options)

        dist.Backend.register_backend(BACKEND, make, devices=["cpu"])

    async def gradient_in_group(self, spans: Sequence[Span], *, step: int, rank: int, scale: float) -> Gradient:
        self._scale = scale
        gradient = await self.gradient(spans, step=step, rank=rank)
        return replace(gradient, loss=gradient.loss / scale if scale else 0.0)

    def _mean_factors(self, num_items: int) -> tuple[float, float]:
        return 1.0 / max(num_items, 1), 1.0  # all before torch averages: ranks differ in their numbers of items

    def _loss_sum(self, inputs: Any, targets: Any) -> Any:
        return super()._loss_sum(inputs, targets) * self._scale

    def loopback_bytes(self) -> int | None:
        """From Linux's counters of the interface, TCP headers included: torch's sockets are not ours to count."""
        try:
            lines = Path("/proc/net/dev").read_text().splitlines()
        except OSError:
            return None
        loopback = next((line for line in lines if line.strip().startswith("lo:")), None)
        return None if loopback is None else int(loopback.partition(":")[2].split()[0])

    async def leave_group(self) -> None:
        await self.compute(dist.destroy_process_group)

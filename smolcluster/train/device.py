"""Devices and precision, by Lightning Fabric; imported without torch's compiler.

Fabric imports the whole of ``torch._dynamo`` for one name, the class of compiled modules, which it then looks for in
what it wraps. Nobody compiles here, our optimizers are not torch's (which would import it, too), and it takes as long
as torch itself: a second on a desktop, several on a Raspberry Pi, and 70 MB for each node.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import torch
from torch import nn

COMPILER = "torch._dynamo"
FABRIC_PRECISION = {"32": "32-true", "64": "64-true", "bf16-mixed": "bf16-mixed", "16-mixed": "16-mixed"}


class OptimizedModule(nn.Module):
    """Stands for the class of compiled modules: nothing is one."""


@contextlib.contextmanager
def without_compiler() -> Iterator[None]:
    """What is imported meanwhile does without torch's compiler, unless that has been imported before."""
    if COMPILER in sys.modules:
        yield
        return
    stand_in: Any = ModuleType(COMPILER)
    stand_in.OptimizedModule = OptimizedModule
    sys.modules[COMPILER] = stand_in
    try:
        yield
    finally:
        del sys.modules[COMPILER]


with without_compiler():
    from lightning_fabric import Fabric
    from lightning_fabric.plugins import MixedPrecision

__all__ = ["Fabric", "fabric_for"]


def fabric_for(device: str, precision: str) -> Fabric:
    """Lightning Fabric on ``auto``, ``cpu``, ``mps`` or ``cuda:k``."""
    kind, _, index = device.partition(":")
    devices: Any = [int(index)] if index else 1
    if precision != "16-mixed":
        return Fabric(accelerator=kind, devices=devices, precision=FABRIC_PRECISION[precision])  # type: ignore[arg-type]
    device_type = Fabric(accelerator=kind, devices=devices).device.type
    if device_type == "cpu":  # has no fp16 kernels to speak of: Fabric computes in bfloat16 there, and so do we
        return fabric_for(device, "bf16-mixed")
    # Fabric's own scaler would scale the loss a second time, and is meant for optimizers that Fabric steps
    plugin = MixedPrecision("16-mixed", device_type, scaler=torch.amp.GradScaler(device_type, enabled=False))
    return Fabric(accelerator=kind, devices=devices, plugins=[plugin])

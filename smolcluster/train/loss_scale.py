"""Dynamic loss scaling for 16-mixed: fp16 gradients below 6e-8 would vanish, so the loss is scaled up.

Every node scales on its own and sends unscaled float32 gradients, so the others never see the factor. A
gradient that overflowed arrives as not finite, is rejected and counted there, and halves the factor here.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

GROWTH_INTERVAL = 2000
"""Finite gradients in a row until the factor doubles (torch.amp.GradScaler's default)."""


@dataclass
class LossScale:
    """The factor of this node; 1 for every other precision."""

    factor: float = 1.0
    dynamic: bool = False
    finite_in_a_row: int = 0

    @classmethod
    def for_precision(cls, precision: str, device_type: str) -> LossScale:
        """fp16 exists on accelerators only: Fabric computes in bfloat16 on a CPU, which needs no scaling."""
        return cls(factor=2.0**16, dynamic=True) if precision == "16-mixed" and device_type != "cpu" else cls()

    def unscale(self, gradients: Tensor) -> Tensor:
        """``gradients`` divided by the factor, in place; adapts the factor."""
        if not self.dynamic:
            return gradients
        gradients.mul_(1.0 / self.factor)
        if not bool(torch.isfinite(gradients).all()):
            self.factor, self.finite_in_a_row = max(self.factor / 2, 1.0), 0
        else:
            self.finite_in_a_row += 1
            if self.finite_in_a_row == GROWTH_INTERVAL:
                self.factor, self.finite_in_a_row = self.factor * 2, 0
        return gradients

"""Dynamic loss scaling for 16-mixed: fp16 gradients below 6e-8 would vanish, so the loss is scaled up.

Every node scales on its own and sends unscaled float32 gradients, so the others never see the factor. A gradient
that overflows is computed again with half the factor, so no batch is lost to it; one that is not finite at a factor of
1 is not finite by itself, and whoever it is sent to refuses it. (Micikevicius et al., arXiv 1710.03740.)
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

    def unscale(self, gradients: Tensor) -> bool:
        """Divide ``gradients`` by the factor, in place, and adapt it. False: they overflowed, compute them again."""
        if not self.dynamic:
            return True
        gradients.mul_(1.0 / self.factor)
        if not bool(torch.isfinite(gradients).all()):
            self.finite_in_a_row = 0
            self.factor, again = max(self.factor / 2, 1.0), self.factor > 1
            return not again
        self.finite_in_a_row += 1
        if self.finite_in_a_row == GROWTH_INTERVAL:
            self.factor, self.finite_in_a_row = self.factor * 2, 0
        return True

"""Data and a model whose steps take time without computing: its forward sleeps. For ``tests/bench/beside.py``."""

from __future__ import annotations

import time
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

Part: TypeAlias = tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]


def load() -> tuple[Part, Part]:
    """Two classes of points; 256 for training and 16 for validation."""
    rng = np.random.default_rng(0)
    y = rng.integers(0, 2, 272)
    x = (rng.normal(size=(272, 8)) + y[:, None]).astype(np.float32)
    return (x[:256], y[:256]), (x[256:], y[256:])


class Napping(nn.Module):
    """A linear classifier that rests for ``nap_s`` seconds in each forward pass of training."""

    def __init__(self, nap_s: float) -> None:
        super().__init__()
        self.nap_s, self.linear = nap_s, nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            time.sleep(self.nap_s)
        logits: Tensor = self.linear(x)
        return logits


def net(nap_s: float) -> nn.Module:
    return Napping(nap_s)

"""A linear layer on sequences that uses the faster of torch's two matrix libraries.

On x86 torch multiplies float32 matrices with MKL, which takes its AVX-512 kernels on Intel's processors only;
oneDNN, which torch uses for convolutions, has them for all. A linear layer *is* a convolution with a kernel of
one, so where AVX-512 is to be had it is computed as one. Measured on one core of a Zen 5, 4096 x 256 to 1024:
forward 23 ms as a product, 10 ms as a convolution; backward 50 ms and 25 ms. The result is the same sum in another order.
"""

from __future__ import annotations

from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

FEWEST_POSITIONS = 256
"""Below so many positions the weights' change of layout costs more than the faster kernel gains."""


class Linear(nn.Linear):
    """``nn.Linear`` for inputs of shape ``[batch, length, features]``: the same parameters, the same function."""

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``x @ weight.T + bias``: ``[batch, length, k]`` and ``[n, k]`` make ``[batch, length, n]``."""
    if not _as_convolution(x):
        return F.linear(x, weight, bias)
    image = x.unsqueeze(1).permute(0, 3, 1, 2)  # [batch, k, 1, length], channels last: a view
    return F.conv2d(image, weight[:, :, None, None], bias).permute(0, 2, 3, 1).squeeze(1)


def _as_convolution(x: Tensor) -> bool:
    """Decided by type, shape and processor alone, so that a run's arithmetic never changes from step to step."""
    return (
        x.device.type == "cpu"
        and x.dtype == torch.float32
        and x.ndim == 3
        and x.shape[0] > 1
        and x.shape[0] * x.shape[1] >= FEWEST_POSITIONS
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
        and _has_faster_convolution()
    )


@lru_cache(maxsize=1)
def _has_faster_convolution() -> bool:
    return torch.backends.mkldnn.is_available() and torch.backends.cpu.get_cpu_capability() == "AVX512"

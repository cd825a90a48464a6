"""A linear layer that uses the faster of torch's two matrix libraries.

On x86 torch multiplies float32 matrices with MKL, which takes its AVX-512 kernels on Intel's processors only;
oneDNN, which torch uses for convolutions, has them for all. A linear layer *is* a convolution with a kernel of
one, so where AVX-512 is to be had it is computed as one. Measured on one core of a Zen 5, 4096 x 256 to 1024:
forward 23 ms as a product, 10 ms as a convolution; backward 50 ms and 25 ms. The result is the same sum in
another order.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

NUM_IMAGES = 16
"""The positions are laid out as so many images: with fewer, torch on one thread does not give the work to oneDNN."""
FEWEST_POSITIONS = 256
"""Below so many positions the weights' change of layout costs more than the faster kernel gains."""


class Linear(nn.Linear):
    """``nn.Linear``: the same parameters, the same function."""

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``x @ weight.T + bias``: ``[..., k]`` and ``[n, k]`` make ``[..., n]``."""
    if not _as_convolution(x):
        return F.linear(x, weight, bias)
    images = x.reshape(NUM_IMAGES, 1, -1, x.shape[-1]).permute(0, 3, 1, 2)  # [images, k, 1, width], channels last
    product = F.conv2d(images, weight[:, :, None, None], bias)  # [images, n, 1, width]
    return product.permute(0, 2, 3, 1).reshape(*x.shape[:-1], -1)


def _as_convolution(x: Tensor) -> bool:
    """Decided by type, shape and processor alone, so that a run's arithmetic never changes from step to step."""
    num_positions = math.prod(x.shape[:-1])
    return (
        x.device.type == "cpu"
        and x.dtype == torch.float32
        and num_positions >= FEWEST_POSITIONS
        and num_positions % NUM_IMAGES == 0
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
        and _has_faster_convolution()
    )


@lru_cache(maxsize=1)
def _has_faster_convolution() -> bool:
    has_onednn: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    return has_onednn and torch.backends.cpu.get_cpu_capability() == "AVX512"

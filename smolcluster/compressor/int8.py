"""Symmetric 8-bit quantisation in chunks with stochastic rounding: a quarter of the bytes, unbiased.

Each chunk of c numbers is scaled by s = max|x| / 127 and rounded up or down at random so that the expectation
is exact: q = floor(x/s + u), u ~ U[0,1); E[s q] = x, and the variance per number is at most s^2/4. A chunk of
zeros has s = 0 and stays zero; so does one of numbers below 1.5e-36. d numbers take d + 4 ceil(d/c) bytes.
(docs/algorithms.md, "int8".)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from smolcluster.spec.schema import Range
from smolcluster.spec.seeds import derive

if TYPE_CHECKING:
    from torch import Tensor

LEVELS = 127


@dataclass(frozen=True, kw_only=True)
class Int8:
    """The codec. Random numbers are a function of (seed, rank, counter), never of what was drawn before."""

    chunk: Annotated[int, Range(ge=1, le=2**20, unit="numbers")] = 256
    """Numbers that share a scale."""

    def encoded_bytes(self, numel: int) -> int:
        """Size of an encoding of ``numel`` numbers."""
        return numel + 4 * -(-numel // self.chunk)

    def encode(self, dense: Tensor, *, seed: int, rank: int, counter: int) -> Tensor:
        """uint8 [encoded_bytes]: the scales (float32), then the quantised numbers. ``dense``: float, finite."""
        import torch

        chunks, padding = self._chunks(dense.float())
        scales = chunks.abs().amax(dim=1) / LEVELS
        scales[scales < torch.finfo(torch.float32).tiny] = 0.0  # its inverse would be infinite
        generator = torch.Generator().manual_seed(derive(seed, "stochastic rounding", rank, counter))
        inverse = torch.where(scales > 0, 1 / scales, 0)
        noise = torch.rand(chunks.shape, generator=generator)
        levels = (chunks * inverse[:, None] + noise).floor_().clamp_(-LEVELS, LEVELS).to(torch.int8)
        flat = levels.view(-1)[: levels.numel() - padding]
        return torch.cat([scales.view(torch.uint8), flat.view(torch.uint8)])

    def decode(self, encoded: Tensor, numel: int) -> Tensor:
        """float32 [numel] of what :meth:`encode` made."""
        import torch

        num_scales = -(-numel // self.chunk)
        scales = encoded[: 4 * num_scales].clone().view(torch.float32)
        chunks, padding = self._chunks(encoded[4 * num_scales :].view(torch.int8).to(torch.float32))
        dense = (chunks * scales[:, None]).view(-1)
        return dense[: dense.numel() - padding]

    def _chunks(self, flat: Tensor) -> tuple[Tensor, int]:
        """``flat`` as [num_chunks, chunk], zeros at the end, and how many zeros."""
        import torch

        padding = -flat.numel() % self.chunk
        return torch.nn.functional.pad(flat, (0, padding)).view(-1, self.chunk), padding

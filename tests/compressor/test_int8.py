"""Stochastic 8-bit rounding: unbiased, bounded, exact for zeros, as many bytes as it says."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from smolcluster.compressor.int8 import Int8


@given(st.integers(1, 2000), st.sampled_from([1, 3, 256]), st.integers(0, 1000))
@settings(deadline=None)
def test_round_trip(numel: int, chunk: int, seed: int) -> None:
    dense = torch.randn(numel, generator=torch.Generator().manual_seed(seed)) * 3
    codec = Int8(chunk=chunk)
    encoded = codec.encode(dense, seed=seed, rank=0, counter=1)
    assert encoded.dtype == torch.uint8
    assert encoded.numel() == codec.encoded_bytes(numel) == numel + 4 * -(-numel // chunk)
    decoded = codec.decode(encoded, numel)
    scales = torch.stack([part.abs().max() / 127 for part in dense.split(chunk)]).repeat_interleave(chunk)[:numel]
    assert decoded.shape == dense.shape
    assert bool(((decoded - dense).abs() <= scales * 1.001 + 1e-12).all()), "off by less than one level"
    again = codec.encode(dense, seed=seed, rank=0, counter=1)
    assert torch.equal(encoded, again), "random numbers are a function of (seed, rank, counter)"


def test_unbiased() -> None:
    dense, codec, draws = torch.randn(4096), Int8(), 400
    total = torch.zeros(4096, dtype=torch.float64)
    for counter in range(draws):
        total += codec.decode(codec.encode(dense, seed=1, rank=2, counter=counter), 4096)
    scales = torch.stack([part.abs().max() / 127 for part in dense.split(256)]).repeat_interleave(256)
    assert float(((total / draws - dense).abs() / (5 * scales / (2 * draws**0.5))).max()) <= 1


def test_zeros_and_signs() -> None:
    codec = Int8()
    assert torch.equal(codec.decode(codec.encode(torch.zeros(300), seed=0, rank=0, counter=0), 300), torch.zeros(300))
    narrow = torch.full((256,), -1e-6)
    assert codec.decode(codec.encode(narrow, seed=0, rank=0, counter=0), 256).mean().item() == pytest.approx(
        -1e-6, rel=1e-3
    )


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_does_not_become_finite(bad: float) -> None:
    dense = torch.ones(10)
    dense[3] = bad
    decoded = Int8().decode(Int8().encode(dense, seed=0, rank=0, counter=0), 10)
    assert not bool(torch.isfinite(decoded).all())


def test_numbers_too_small_to_scale_are_zero() -> None:
    dense = torch.tensor([1e-37, 0.0, -1e-40, 1.0, 0.5, 0.0])
    codec = Int8(chunk=3)
    assert codec.decode(codec.encode(dense, seed=0, rank=0, counter=0), 6)[:3].tolist() == [0.0, 0.0, 0.0]

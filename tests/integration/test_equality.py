"""Two rows of the grid of tests/integration/equality.py: real processes, TCP, TLS, random delays."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.integration.equality import LIMITS, compare


@pytest.mark.parametrize(
    ("model", "optim", "clip", "shape", "precision"),
    [("simplenn", "sgd", "off", "31 samples, 3 workers", "64"), ("gpt", "adamw", "global", "2 workers", "32")],
)
def test_equals_one_process_over_the_network(
    model: str, optim: str, clip: str, shape: str, precision: str, tmp_path: Path
) -> None:
    row = compare(model, optim, clip, shape, precision, tmp_path)
    assert row.difference <= LIMITS[precision]
    assert row.sent_bytes > 50 * 4 * 1000, "the weights really went over the network"

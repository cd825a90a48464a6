"""Real files that may lie beside the checkout. A test that needs them is not collected where they are not there."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

REAL = Path(__file__).parents[1].parent / "shared" / "data"
T = TypeVar("T", bound=Callable[..., object])


def with_real(*names: str) -> Callable[[T], T]:
    """For a test that reads ``REAL / name`` for each of ``names``."""

    def mark(test: T) -> T:
        test.__test__ = all((REAL / name).is_dir() for name in names)  # type: ignore[attr-defined]
        return test

    return mark

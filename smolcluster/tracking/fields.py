"""Reading the fields of an event, whatever a node has put there: a wrong type reads as a missing field."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from smolcluster.messages import MAX_INT


def whole(value: object) -> int | None:
    """``value`` as a whole number that every JSON reader agrees on, None where it is none."""
    return value if isinstance(value, int) and not isinstance(value, bool) and abs(value) <= MAX_INT else None


def number(value: object) -> float | None:
    """``value`` as a float, NaN and infinity included; None where it is no number.

    >>> number(3), number("3"), number(True)
    (3.0, None, None)
    """
    if isinstance(value, float):
        return value
    integer = whole(value)
    return None if integer is None else float(integer)


def finite(value: object) -> float | None:
    """Like :func:`number`, but None for NaN and infinity too."""
    found = number(value)
    return found if found is not None and math.isfinite(found) else None


def table(value: object) -> Mapping[str, Any]:
    """``value`` as a mapping, empty where it is none."""
    return value if isinstance(value, Mapping) else {}


def text(value: object) -> str:
    """``value`` as a text, empty where there is none."""
    return "" if value is None else str(value)

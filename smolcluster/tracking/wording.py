"""Numbers, times and texts as people read them. What a node has said is made harmless here before it is shown."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Mapping, Sequence
from itertools import pairwise

NOTHING = "–"
"""Stands where there is no number (yet)."""
NOT_COUNTED = "not counted (torch's own sockets)"
"""Stands where bytes pass that nobody counts."""
BARS = "▁▂▃▄▅▆▇█"


def clean(value: object, limit: int = 200) -> str:
    """``value`` on one line, without anything that steers a terminal, cut to ``limit`` characters.

    >>> clean("a\\x1b[31mb\\nc")
    'a·[31mb c'
    """
    words = str(value)[: 4 * limit]
    shown = "".join(" " if c in "\n\t" else "·" if unicodedata.category(c)[0] == "C" else c for c in words).strip()
    return shown if len(shown) <= limit else shown[: limit - 1] + "…"


def number(value: float | None) -> str:
    """Four significant digits.

    >>> number(0.123456), number(1234567.0), number(3e-5), number(None), number(float("nan")), number(2)
    ('0.1235', '1,234,567', '3e-05', '–', 'nan', '2')
    """
    if value is None:
        return NOTHING
    if not math.isfinite(value):
        return str(value)
    if value == 0 or 1e-3 <= abs(value) < 1000:
        return f"{value:.4g}"
    return f"{value:,.0f}" if 1000 <= abs(value) < 1e9 else f"{value:.3g}"


def count(value: int | float | None) -> str:
    """A whole number, short.

    >>> count(999), count(12345), count(3_400_000), count(None)
    ('999', '12.3k', '3.4M', '–')
    """
    return NOTHING if value is None else _scaled(value, 1000, ("", "k", "M", "G", "T"), "")


def byte_count(value: float | None) -> str:
    """Bytes in decimal units.

    >>> byte_count(512), byte_count(1536), byte_count(1.234e9)
    ('512 B', '1.5 kB', '1.2 GB')
    """
    return NOTHING if value is None else _scaled(value, 1000, ("B", "kB", "MB", "GB", "TB"), " ")


def megabytes(value: float | None) -> str:
    """Bytes as megabytes in at most five characters.

    >>> megabytes(0), megabytes(1234), megabytes(12_345_678), megabytes(1.5e9)
    ('0', '0.00', '12.3', '1500')
    """
    if not value:
        return NOTHING if value is None else "0"
    size = value / 1e6
    return f"{size:.2f}" if size < 10 else f"{size:.1f}" if size < 100 else f"{size:.0f}"


def times_less(total: Mapping[str, int | None]) -> float | None:
    """How many times less was sent than without compression; None where that is next to nothing, or not known.

    >>> times_less({"sent": 10, "uncompressed": 39})
    3.9
    """
    sent, plain = total["sent"], total["uncompressed"]
    return plain / sent if sent and plain and plain > 1.05 * sent else None


def share(value: float | None) -> str:
    """
    >>> share(0.042), share(None)
    ('4 %', '–')
    """
    return NOTHING if value is None or not math.isfinite(value) else f"{100 * value:.0f} %"


def accuracy(value: float | None) -> str:
    """
    >>> accuracy(0.98765)
    '98.77 %'
    """
    return NOTHING if value is None or not math.isfinite(value) else f"{100 * value:.2f} %"


def duration(seconds: float | None) -> str:
    """
    >>> duration(4.21), duration(83), duration(3725), duration(200000)
    ('4.2 s', '1:23', '1:02:05', '2 d 07:33')
    """
    if seconds is None or not math.isfinite(seconds):
        return NOTHING
    if seconds < 60:
        return f"{max(0.0, seconds):.1f} s"
    minutes, left = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours >= 48:
        return f"{hours // 24} d {hours % 24:02}:{minutes:02}"
    return f"{hours}:{minutes:02}:{left:02}" if hours else f"{minutes}:{left:02}"


def elapsed(seconds: float) -> str:
    """Time since the start, always of one form.

    >>> elapsed(83.9)
    '0:01:23'
    """
    whole = max(0, int(seconds))
    return f"{whole // 3600}:{whole // 60 % 60:02}:{whole % 60:02}"


def sparkline(values: Sequence[float], width: int) -> str:
    """The course of ``values`` in at most ``width`` characters; each stands for the mean of its part.

    >>> sparkline([8, 7, 6, 5, 4, 3, 2, 1], 4)
    '█▆▃▁'
    """
    points = [mean for mean in _means([v for v in values if math.isfinite(v)], width) if math.isfinite(mean)]
    if not points:
        return ""
    low, high = min(points) / 2, max(points) / 2  # halves: the distance of two floats may be too large for one
    top = len(BARS) - 1
    return "".join(BARS[round((point / 2 - low) / (high - low) * top) if high > low else 0] for point in points)


def _means(values: list[float], width: int) -> list[float]:
    """``values`` in at most ``width`` parts of nearly one size, and the mean of each."""
    parts = min(width, len(values))
    edges = [round(i * len(values) / parts) for i in range(parts + 1)] if parts else []
    return [sum(values[a:b]) / (b - a) for a, b in pairwise(edges)]


def _scaled(value: float, base: int, units: Sequence[str], gap: str) -> str:
    if not math.isfinite(value):
        return str(value)
    place = 0
    while abs(value) >= 999.5 and place < len(units) - 1:
        value, place = value / base, place + 1
    digits = f"{value:.0f}" if place == 0 or abs(value) >= 99.5 else f"{value:.1f}"
    return f"{digits}{gap}{units[place]}"

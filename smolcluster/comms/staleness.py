"""Whether a gradient is too old: pure functions that return their reason."""

from __future__ import annotations

from typing import Literal

Verdict = Literal["accept", "stale", "future"]


def admit(version: int, pulled: int, bound: int | None) -> tuple[Verdict, int, str]:
    """Judge a gradient taken at weights of version ``pulled`` when the server stands at ``version``.

    Returns the verdict, the staleness in versions (optimizer steps) and the reason. ``bound`` None admits any age.

    >>> admit(10, 8, 5)
    ('accept', 2, '')
    >>> admit(10, 2, 5)
    ('stale', 8, 'staleness 8 > bound 5')
    """
    staleness = version - pulled
    if staleness < 0:
        return "future", staleness, f"taken at version {pulled}, but the server stands at {version}"
    if bound is not None and staleness > bound:
        return "stale", staleness, f"staleness {staleness} > bound {bound}"
    return "accept", staleness, ""

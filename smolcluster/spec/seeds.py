"""Counter-based randomness: every random number is a function of a run's seed, a purpose and counters.

Nothing depends on what was drawn before, so a run resumes, or moves to other nodes, without any generator
state (../docs/algorithms.md, "Randomness").
"""

from __future__ import annotations

import hashlib


def derive(seed: int, purpose: str, *counters: int) -> int:
    """A 63-bit seed for a generator.

    >>> derive(42, "dropout", 7, 0) == derive(42, "dropout", 7, 0)
    True
    >>> derive(42, "dropout", 7, 0) == derive(42, "dropout", 7, 1)
    False
    """
    words = ":".join([str(seed), purpose, *map(str, counters)])
    return int.from_bytes(hashlib.blake2b(words.encode(), digest_size=8).digest(), "big") >> 1

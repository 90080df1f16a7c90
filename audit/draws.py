"""Random numbers that belong to a row, not to a place in a stream.

A draw is a hash of the seed, its purpose and the row's ids. So a selection does not depend on the order of the rows, on
shards, or on what else was drawn before: the same pair under the same seed meets the same fate.
"""

from __future__ import annotations

import hashlib

_BITS = 53  # of a float64's mantissa


def unit(seed: int, purpose: str, *ids: str) -> float:
    """A number uniform on [0, 1), independent between different arguments (SHA-256 as the random function)."""
    text = "\0".join([str(seed), purpose, *ids])
    head = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")
    return (head >> (64 - _BITS)) / float(1 << _BITS)


def side(seed: int, *ids: str) -> str:
    """Which rollout stands on the left: `a` or `b`, each with probability 1/2."""
    return "a" if unit(seed, "side", *ids) < 0.5 else "b"

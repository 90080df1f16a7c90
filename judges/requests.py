"""A request: one pair in one order. Judges see slots (first and second); votes are in terms of rollouts (a and b)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from judges.backends.base import Subject
from judges.pairs import Pair
from store.hashing import short_id

Order = Literal["ab", "ba"]
ORDERS: tuple[Order, Order] = ("ab", "ba")


@dataclass(frozen=True)
class Request:
    """`order`: which rollout is shown first."""

    pair: Pair
    order: Order

    @property
    def subject(self) -> Subject:
        pair = self.pair
        both = (pair.response_a, pair.response_b)
        return Subject(pair.prompt, both if self.order == "ab" else both[::-1], pair.reference, pair.group)


def sampling_seed(seed: int, *what: str) -> int:
    """A seed for one call alone, in 0..2^31-1: an answer does not depend on what is asked beside it."""
    return int(short_id("vote", seed, *what), 16) % 2**31

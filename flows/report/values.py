"""Values of the page from what stages wrote as JSON: a figure that is not there, or is no figure, is None."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

STATUSES = ("scored", "tie", "abstain", "parse_failure", "error")


@dataclass(frozen=True)
class Estimate:
    """A mean with its interval; the interval or the sample size may be unknown."""

    mean: float
    low: float | None = None
    high: float | None = None
    n: int | None = None


@dataclass(frozen=True)
class VoteCount:
    """What became of attempted votes. `None` where the stage did not say."""

    attempted: int
    scored: int
    tie: int
    abstain: int
    parse_failure: int
    error: int

    @property
    def parts(self) -> tuple[int, ...]:
        return (self.scored, self.tie, self.abstain, self.parse_failure, self.error)

    @property
    def balanced(self) -> bool:
        """attempted = scored + tie + abstain + parse_failure + error (docs/architecture.md, law 4)."""
        return self.attempted == sum(self.parts)


def mapping(value: Any) -> Mapping[str, Any]:
    """`value` where it is a mapping, else an empty one."""
    return value if isinstance(value, Mapping) else {}


def real(value: Any) -> float | None:
    """A finite number, or None for anything else: a stage that has no number must not be given one."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if math.isfinite(value) else None


def integer(value: Any) -> int | None:
    number = real(value)
    return int(number) if number is not None and number.is_integer() else None


_MEANS = ("mean", "accuracy", "rate", "value", "estimate")


def estimate(value: Any) -> Estimate | None:
    """From a plain number, or from {mean | accuracy | rate | value, low, high, n}."""
    if not isinstance(value, Mapping):
        mean = real(value)
        return None if mean is None else Estimate(mean)
    for name in _MEANS:
        mean = real(value.get(name))
        if mean is not None:
            return Estimate(mean, real(value.get("low")), real(value.get("high")), integer(value.get("n")))
    return None


def estimates(value: Any) -> dict[str, Estimate]:
    if not isinstance(value, Mapping):
        return {}
    found = {str(name): estimate(item) for name, item in value.items()}
    return {name: item for name, item in found.items() if item is not None}


def vote_count(value: Any) -> VoteCount | None:
    """From a mapping with the attempted votes and all five outcomes; None where one of them is missing."""
    if not isinstance(value, Mapping):
        return None
    numbers = [integer(value.get(name)) for name in ("attempted", *STATUSES)]
    known = [number for number in numbers if number is not None]
    return VoteCount(*known) if len(known) == len(numbers) else None


def vote_counts(value: Any, name: str) -> dict[str, VoteCount]:
    """From one mapping of counts (called `name`), or from one for each judge."""
    single = vote_count(value)
    if single is not None:
        return {name: single}
    if not isinstance(value, Mapping):
        return {}
    found = {str(judge): vote_count(item) for judge, item in value.items()}
    return {judge: item for judge, item in found.items() if item is not None}

"""Simulated auditors: programs that play people in the demo and in tests. Every row says so.

An auditor of accuracy q follows the oracle with probability q and else errs: it names the other response, or, where the
oracle sees no difference, one of both by a coin. A troll always errs; a left-clicker names what stands on the left.
Left out on purpose: errors that grow with difficulty, fatigue. The times are plausible and random too: reading at 4
words a second, then thinking, log-normal.

`simulate` asks them directly: everything is a function of the seed and the pairs, and the clock is a constant in the
past that nobody takes for real. `audit.simulated_http` lets the same auditors answer through a server, as people do.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from statistics import NormalDist
from typing import NamedTuple

import pyarrow as pa

from audit.draws import side, unit
from audit.names import SIMULATED_PREFIX
from audit.verdicts import Verdict
from store.hashing import short_id

START = datetime(2000, 1, 1, tzinfo=UTC)
"""Simulated auditors start work here, so that the same seed gives the same bytes."""

_NO_DIFFERENCE = 1e-9
_THINKING_S, _WORDS_PER_S, _SPREAD = 4.0, 4.0, 0.4


class Pair(NamedTuple):
    """What a simulated auditor sees; `reference` may be None."""

    pair_id: str
    prompt: str
    response_a: str
    response_b: str
    reference: str | None
    group: str


ScoreDifference = Callable[[Sequence[Pair]], Sequence[float | None]]
"""The oracle's score of response a minus that of b, a pair; None or NaN where it has none, which becomes a skip."""


@dataclass(frozen=True)
class Auditor:
    """`name` without the prefix. `accuracy`: share of verdicts that follow the oracle, 0..1, for kind `follows`."""

    name: str
    accuracy: float = 1.0
    kind: str = "follows"


def simulate(
    pairs: pa.Table,
    chances: dict[str, float],
    auditors: Sequence[Auditor],
    oracle: ScoreDifference,
    seed: int,
    overlap: int = 1,
    start: datetime = START,
) -> list[Verdict]:
    """`overlap` verdicts, of different auditors chosen at random, on each pair that `chances` has, in the pairs' order.

    `chances`: pair id to inclusion probability, NaN for a gold item that nobody drew. An auditor's verdicts follow each
    other in time from `start` on.
    """
    asked = [Pair(*row.values()) for row in pairs.select(list(Pair._fields)).to_pylist() if row["pair_id"] in chances]
    clocks = {auditor.name: start for auditor in auditors}
    verdicts = []
    for pair, difference in zip(asked, oracle(asked) if asked else [], strict=True):
        for auditor in _assigned(pair, auditors, overlap, seed):
            seconds = time_taken(pair, auditor, seed)
            clocks[auditor.name] += timedelta(seconds=seconds)
            name = SIMULATED_PREFIX + auditor.name
            left = side(seed, pair.pair_id, name)
            verdicts.append(
                Verdict(
                    verdict_id=short_id("simulated", seed, pair.pair_id, name),
                    pair_id=pair.pair_id,
                    auditor=name,
                    winner=choose(pair, auditor, difference, left, seed),
                    shown_left=left,
                    seconds=seconds,
                    created_at=clocks[auditor.name],
                    inclusion_probability=chances[pair.pair_id],
                    simulated=True,
                )
            )
    return verdicts


def _assigned(pair: Pair, auditors: Sequence[Auditor], overlap: int, seed: int) -> list[Auditor]:
    return sorted(auditors, key=lambda auditor: unit(seed, "assignment", pair.pair_id, auditor.name))[:overlap]


def choose(pair: Pair, auditor: Auditor, difference: float | None, left: str, seed: int) -> str | None:
    """The auditor's winner: a, b, tie, or None for a skip. `left`: the rollout on the left."""
    if auditor.kind == "left":
        return left
    if difference is None or math.isnan(difference):
        return None
    accuracy = 0.0 if auditor.kind == "troll" else auditor.accuracy
    follows = unit(seed, "follows oracle", pair.pair_id, auditor.name) < accuracy
    if abs(difference) <= _NO_DIFFERENCE:
        coin = "a" if unit(seed, "error on a tie", pair.pair_id, auditor.name) < 0.5 else "b"
        return "tie" if follows else coin
    return "a" if (difference > 0) == follows else "b"


def time_taken(pair: Pair, auditor: Auditor, seed: int) -> float:
    """Seconds, as if a person had read the pair."""
    words = sum(len(text.split()) for text in (pair.prompt, pair.response_a, pair.response_b))
    # Kept off 0, where the normal quantile is minus infinity.
    z = NormalDist().inv_cdf(max(unit(seed, "seconds", pair.pair_id, auditor.name), 1e-9))
    return round((_THINKING_S + words / _WORDS_PER_S) * math.exp(_SPREAD * z), 1)

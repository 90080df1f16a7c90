"""How often each judge, and the panel, agrees with people, corrected for how the audited pairs were chosen.

A judge is right on a pair when its order-averaged opinion is on the people's side; exactly 1/2 is not right. Pairs
on which people see a tie or disagree evenly, and pairs on which the judge has no opinion, are counted and left out.

Three figures, side by side:

    naive    sum y_i / n over the audited pairs: biased as soon as doubtful pairs are audited more often;
    hajek    sum (y_i / pi_i) / sum (1 / pi_i): consistent for the mean over all judged pairs (Hajek 1971; Saerndal,
             Swensson and Wretman 1992, Model Assisted Survey Sampling, 5.7), with the linearised standard error of
             Poisson sampling, sqrt(sum (1 - pi_i) ((y_i - hajek) / pi_i)^2) / sum (1 / pi_i);
    uniform  the plain share in the uniform stratum, with its Wilson interval (Wilson 1927).

Precondition: which of the drawn pairs people answered does not depend on y. Reports should show the response rate.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from scipy.stats import binomtest

from audit.opinions import Bools, Floats, Opinions
from audit.selection import UNIFORM
from audit.verdicts import from_table, in_force
from store.errors import UsageError

PANEL = "panel"


@dataclass(frozen=True)
class Accuracy:
    """Agreement of one judge (or the panel) with people. Shares in 0..1, None where there is nothing to count.

    `audited`: pairs with a decided verdict and an opinion. `unanswered`: decided pairs without an opinion of the judge.
    `uniform_*`: the same on the uniform stratum; `low` and `high` are its 95 % Wilson interval.
    """

    judge: str
    fingerprint: str | None
    audited: int
    unanswered: int
    naive: float | None
    hajek: float | None
    hajek_std_error: float | None
    uniform_audited: int
    uniform_right: int
    uniform: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Estimates:
    """`decided`, `undecided`: pairs with a winner, and those with a tie or an even split. `skipped`: skips."""

    decided: int
    undecided: int
    skipped: int
    panel: Accuracy
    judges: tuple[Accuracy, ...]

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"judges": [asdict(judge) for judge in self.judges]}


def estimate(opinions: Opinions, selection: pa.Table, verdicts: pa.Table) -> Estimates:
    """Raises UsageError for a verdict on a pair that the selection lacks or that it could not have drawn."""
    share_for_a, skipped = people(verdicts)
    rows = {pair_id: row for row, pair_id in enumerate(opinions.pair_ids)}
    chances, strata = _design(selection)
    for pair_id in [*share_for_a, *skipped]:
        if pair_id not in rows or not chances.get(pair_id, 0) > 0:
            raise UsageError(
                f"A verdict is on pair {pair_id!r}, which the selection could not have drawn: "
                "give the votes, selection and verdicts of one audit."
            )
    decided = [pair_id for pair_id in opinions.pair_ids if share_for_a.get(pair_id, 0.5) != 0.5]
    index = np.array([rows[pair_id] for pair_id in decided], dtype=np.int64)
    for_a = np.array([share_for_a[pair_id] > 0.5 for pair_id in decided], dtype=np.bool_)
    chance = np.array([chances[pair_id] for pair_id in decided], dtype=np.float64)
    uniform = np.array([strata[pair_id] == UNIFORM for pair_id in decided], dtype=np.bool_)

    def of(name: str, fingerprint: str | None, p_a: Floats) -> Accuracy:
        return accuracy(name, fingerprint, p_a[index], for_a, chance, uniform)

    judges = zip(opinions.judges, opinions.fingerprints, opinions.p_a.T, strict=True)
    return Estimates(
        decided=len(decided),
        undecided=len(share_for_a) - len(decided),
        skipped=len(skipped),
        panel=of(PANEL, None, opinions.panel),
        judges=tuple(of(name, fingerprint, p_a) for name, fingerprint, p_a in judges),
    )


def accuracy(name: str, fingerprint: str | None, p_a: Floats, for_a: Bools, chance: Floats, uniform: Bools) -> Accuracy:
    """All arrays are over the n decided pairs: opinion (NaN for none), whether people chose a, pi_i, uniform or not."""
    given = ~np.isnan(p_a)
    right = np.where(for_a, p_a > 0.5, p_a < 0.5)[given]
    weighted, error = hajek(right.astype(np.float64), chance[given])
    in_uniform = right[uniform[given]]
    n, k = len(in_uniform), int(in_uniform.sum())
    low, high = wilson(k, n)
    return Accuracy(
        judge=name,
        fingerprint=fingerprint,
        audited=len(right),
        unanswered=int((~given).sum()),
        naive=float(right.mean()) if len(right) else None,
        hajek=weighted,
        hajek_std_error=error,
        uniform_audited=n,
        uniform_right=k,
        uniform=k / n if n else None,
        low=low,
        high=high,
    )


def hajek(y: Floats, chance: Floats) -> tuple[float | None, float | None]:
    """The weighted mean of y and its standard error under Poisson sampling; None without observations.

    Below about 10 observations, or with all of them equal, the standard error is not to be relied on: it may be 0.
    """
    if len(y) == 0:
        return None, None
    weight = 1 / chance
    mean = float((weight * y).sum() / weight.sum())
    error = math.sqrt(float(((1 - chance) * (weight * (y - mean)) ** 2).sum())) / float(weight.sum())
    return mean, error


def wilson(right: int, n: int) -> tuple[float | None, float | None]:
    """The 95 % Wilson interval of a proportion, without continuity correction; None for n = 0."""
    if n == 0:
        return None, None
    interval = binomtest(right, n).proportion_ci(confidence_level=0.95, method="wilson")
    return float(interval.low), float(interval.high)


def people(verdicts: pa.Table) -> tuple[dict[str, float], list[str]]:
    """The share of people for a, by pair (a tie counts half), and the pair ids of all skips, from verdicts in force."""
    given: dict[str, list[float]] = {}
    skipped = []
    value = {"a": 1.0, "tie": 0.5, "b": 0.0}
    for verdict in in_force(from_table(verdicts)):
        if verdict.winner is None:
            skipped.append(verdict.pair_id)
        else:
            given.setdefault(verdict.pair_id, []).append(value[verdict.winner])
    return {pair_id: sum(values) / len(values) for pair_id, values in given.items()}, skipped


def _design(selection: pa.Table) -> tuple[Mapping[str, float], Mapping[str, str]]:
    pair_ids = selection["pair_id"].to_pylist()
    chances = dict(zip(pair_ids, selection["inclusion_probability"].to_pylist(), strict=True))
    return chances, dict(zip(pair_ids, selection["stratum"].to_pylist(), strict=True))

"""How often each judge, and the panel, agrees with people, corrected for how the audited pairs were chosen.

A judge is right on a pair when its order-averaged opinion is on the people's side; exactly 1/2 is not right. Pairs
on which people see a tie or disagree evenly, and pairs on which the judge has no opinion, are counted and left out.

Four figures, side by side:

    naive      sum y_i / n over the audited pairs: biased as soon as doubtful pairs are audited more often;
    hajek      sum (y_i / pi_i) / sum (1 / pi_i): consistent for the mean over all judged pairs (Hajek 1971; Saerndal,
               Swensson and Wretman 1992, Model Assisted Survey Sampling, 5.7);
    corrected  the same, drawn to what the panel says on all judged pairs: `audit.estimates.means` has the formula. The
               prediction f_i of "this judge is right" is the panel's probability of the side that the judge chose, and
               of the panel's losing side where it chose none (0 would be exact, but residuals of 0 on so many pairs
               leave the variance to too few others);
    uniform    the plain share in the uniform stratum, with its Wilson interval (Wilson 1927). It does not know that the
               judged pairs are finite in number, so it is too wide where many of them are audited.

All intervals are of 95 %, for the mean over the judged pairs. naive's is Wilson's as if the pairs were drawn uniformly:
it is there to show what goes wrong. Precondition: which of the drawn pairs people answered does not depend on y.
Reports should show the response rate.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from audit.estimates.means import Mean, corrected_mean, hajek_mean
from audit.estimates.people import Said, people
from audit.opinions import Bools, Floats, Opinions
from audit.selection import UNIFORM
from store.errors import UsageError
from store.statistics import wilson as _wilson

PANEL = "panel"


@dataclass(frozen=True)
class Accuracy:
    """Agreement of one judge (or the panel) with people. Shares in 0..1, None where there is nothing to count.

    `audited`: pairs with a decided verdict and an opinion. `unanswered`: decided pairs without an opinion of the judge.
    `uniform_*`: the same on the uniform stratum; `low` and `high` are its 95 % Wilson interval. `corrected_tuning`:
    lambda, 0 where the panel's opinions did not help.
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
    naive_low: float | None = None
    naive_high: float | None = None
    hajek_low: float | None = None
    hajek_high: float | None = None
    corrected: float | None = None
    corrected_std_error: float | None = None
    corrected_low: float | None = None
    corrected_high: float | None = None
    corrected_tuning: float | None = None


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


@dataclass(frozen=True)
class Audit:
    """The n answered pairs, ties among them: rows among the N judged ones, whether people chose a, whether they chose
    at all, pi_i, and whether the pair is in the uniform stratum."""

    rows: np.ndarray[tuple[int], np.dtype[np.int64]]
    for_a: Bools
    decided: Bools
    chance: Floats
    uniform: Bools


def estimate(
    opinions: Opinions, selection: pa.Table, verdicts: pa.Table, reliability: Mapping[str, float] | None = None
) -> Estimates:
    """`reliability`: auditor -> q, to weigh people who differ; equal without.

    Raises UsageError for a verdict on a pair that the selection lacks or that it could not have drawn.
    """
    said = people(verdicts, reliability)
    found = answered(opinions.pair_ids, selection, said)
    panel = opinions.panel

    def of(name: str, fingerprint: str | None, p_a: Floats) -> Accuracy:
        return accuracy(name, fingerprint, p_a, panel, found)

    judges = zip(opinions.judges, opinions.fingerprints, opinions.p_a.T, strict=True)
    decided = int(found.decided.sum())
    return Estimates(
        decided=decided,
        undecided=len(found.rows) - decided,
        skipped=len(said.skipped),
        panel=of(PANEL, None, panel),
        judges=tuple(of(name, fingerprint, p_a) for name, fingerprint, p_a in judges),
    )


def answered(pair_ids: list[str], selection: pa.Table, said: Said) -> Audit:
    """Raises UsageError for a verdict on a pair that the selection lacks or that it could not have drawn."""
    row_of = {pair_id: row for row, pair_id in enumerate(pair_ids)}
    chances, strata = _design(selection)
    for pair_id in [*said.share_for_a, *said.skipped]:
        if pair_id not in row_of or not chances.get(pair_id, 0) > 0:
            raise UsageError(
                f"A verdict is on pair {pair_id!r}, which the selection could not have drawn: "
                "give the votes, selection and verdicts of one audit."
            )
    found = [pair_id for pair_id in pair_ids if pair_id in said.share_for_a]
    share = np.array([said.share_for_a[pair_id] for pair_id in found], dtype=np.float64)
    return Audit(
        rows=np.array([row_of[pair_id] for pair_id in found], dtype=np.int64),
        for_a=share > 0.5,
        decided=share != 0.5,
        chance=np.array([chances[pair_id] for pair_id in found], dtype=np.float64),
        uniform=np.array([strata[pair_id] == UNIFORM for pair_id in found], dtype=np.bool_),
    )


def accuracy(name: str, fingerprint: str | None, p_a: Floats, panel: Floats, audit: Audit) -> Accuracy:
    """p_a, panel: [N] opinions of the judge and of the panel on all judged pairs, NaN for none."""
    has = ~np.isnan(p_a)
    given = has[audit.rows]
    rows, counts = audit.rows[given], audit.decided[given]
    mine = p_a[rows]
    right = np.where(audit.for_a[given], mine > 0.5, mine < 0.5) & counts
    side_right = np.where(p_a > 0.5, panel, np.where(p_a < 0.5, 1 - panel, np.minimum(panel, 1 - panel)))
    y, chance = right.astype(np.float64), audit.chance[given]
    weighted = hajek_mean(y, chance, int(has.sum()), counts)
    corrected = corrected_mean(y, chance, side_right[rows], side_right[has], counts)
    in_uniform = right[audit.uniform[given] & counts]
    n, k = len(in_uniform), int(in_uniform.sum())
    audited, right_ones = int(counts.sum()), int(right.sum())
    low, high = wilson(k, n)
    naive_low, naive_high = wilson(right_ones, audited)
    return Accuracy(
        judge=name,
        fingerprint=fingerprint,
        audited=audited,
        unanswered=int((audit.decided & ~given).sum()),
        naive=right_ones / audited if audited else None,
        uniform_audited=n,
        uniform_right=k,
        uniform=k / n if n else None,
        low=low,
        high=high,
        naive_low=naive_low,
        naive_high=naive_high,
        corrected_tuning=corrected.tuning if corrected else None,
        **_columns("hajek", weighted),
        **_columns("corrected", corrected),
    )


def wilson(right: int, n: int) -> tuple[float | None, float | None]:
    """The 95 % Wilson interval of a proportion, without continuity correction; None for n = 0."""
    return _wilson(right, n) if n else (None, None)


def _columns(name: str, mean: Mean | None) -> dict[str, Any]:
    columns = (name, f"{name}_std_error", f"{name}_low", f"{name}_high")
    values = (mean.value, mean.std_error, mean.low, mean.high) if mean else (None,) * 4
    return dict(zip(columns, values, strict=True))


def _design(selection: pa.Table) -> tuple[Mapping[str, float], Mapping[str, str]]:
    pair_ids = selection["pair_id"].to_pylist()
    chances = dict(zip(pair_ids, selection["inclusion_probability"].to_pylist(), strict=True))
    return chances, dict(zip(pair_ids, selection["stratum"].to_pylist(), strict=True))

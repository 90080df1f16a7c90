"""How much of the votes behind labels is the slot and the length: for `rlaif labels report --sway`.

Reads the votes and pairs that a finished aggregate stage names in its manifest, and fits
`judges.aggregation.covariates` to them, which says what its figures mean and need.
"""

from __future__ import annotations

from pathlib import Path

from judges.aggregation.covariates import rate_with_covariates
from judges.preferences.inputs import votes_behind
from store.errors import UsageError
from store.manifest import need_manifest
from store.statistics import Z_95


def sway(folder: Path) -> dict[str, dict[str, float | None]]:
    """`slot` and `length`: `log_odds` of being shown first rather than second, and of being twice as long, at equal
    ratings, with their 95 % interval `low`, `high`; None where votes do not vary in it.

    Raises UsageError where the stage had no pairs table, or its votes or pairs are gone or are not what they were.
    """
    manifest = need_manifest(folder)
    votes, pairs = votes_behind(manifest)
    if pairs is None:
        raise UsageError(
            f"{folder} was made without a pairs table, so lengths are not known: give --pairs to the stage."
        )
    found = rate_with_covariates(pairs, votes)
    return {
        # The covariate is +1 for the one order and -1 for the other: first against second is twice its coefficient.
        name: _interval(factor * found.beta[name], factor * found.beta_error[name])
        for name, factor in (("slot", 2.0), ("length", 1.0))
    }


def _interval(value: float, error: float) -> dict[str, float | None]:
    if error == float("inf"):
        return {"log_odds": None, "low": None, "high": None}
    return {"log_odds": value, "low": value - Z_95 * error, "high": value + Z_95 * error}

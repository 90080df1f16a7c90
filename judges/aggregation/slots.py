"""Votes as numbers: the log-odds of each judge on each pair, by slot and over both slots.

A vote in order `ab` shows a first, one in order `ba` shows b first. A judge that likes the first slot by c log-odds
says x + c in the one and x - c in the other. What a judge deserves in each slot is known from symmetry, without gold:
were a and b to change places, every label would have to be mirrored, so in any linear rule both slots must weigh the
same and there can be no intercept. What differs between slots is only the constant c, and votes alone give it:

    c_j = (mean of x_j over order ab - mean of x_j over order ba) / 2 * n / (n + 10)

with n the smaller number of votes of the two. It needs that the order in which a pair was shown has nothing to do with
the pair (true of both orders, and of one drawn at random); a judge that saw one order only keeps c = 0. Where a pair
was judged in both orders c cancels; where one vote is missing, a vote for the favoured slot counts less.

Votes may carry how much longer a is than b (`lengths.with_lengths`); it is handed on.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from judges.aggregation.labels import is_valid
from judges.aggregation.lengths import LENGTH

Array = npt.NDArray[np.float64]

CLIP = 0.02
"""A vote is never read as surer than 98 %: hard votes and overconfident judges have infinite log-odds otherwise."""

COLUMNS = ("pair_id", "fingerprint", "order", "status", "p_a")

BIAS_PRIOR_VOTES = 10
"""A slot preference seen in few votes is mostly chance: so many votes without any stand against it."""


@dataclass(frozen=True)
class SlotVotes:
    """`pairs`: sorted pair ids with a valid vote. `judges`: sorted fingerprints. `log_odds`: [2, pairs, judges] that a
    is better, order ab then ba, nan where there is no valid vote. `length`: [pairs] log-ratio of the lengths of a and
    b, 0 where it is not known; None where it is known of no pair."""

    pairs: pa.Array
    judges: list[str]
    log_odds: Array
    length: Array | None = None


def slot_votes(votes: pa.Table) -> SlotVotes:
    """The valid votes; a tie has log-odds 0. Several votes of a judge on one pair in one order are averaged."""
    votes = votes.select([*COLUMNS, *([LENGTH] if LENGTH in votes.column_names else [])])
    valid = votes.filter(is_valid(votes)).combine_chunks()
    pairs, row = _coded(valid["pair_id"])
    judges, column = _coded(valid["fingerprint"])
    order = pc.equal(valid["order"], "ba").to_numpy().astype(np.int64)
    p = pc.fill_null(valid["p_a"], 0.5).to_numpy()
    limit = math.log(1 - CLIP) - math.log(CLIP)
    with np.errstate(divide="ignore"):
        # log(p / (1 - p)) in a form that is odd to the last bit: opposite votes must cancel exactly.
        odds = np.clip(2 * np.arctanh(2 * p - 1), -limit, limit)
    shape = (2, len(pairs), len(judges))
    at = np.ravel_multi_index((order, row, column), shape)
    size = int(np.prod(shape))
    total = np.bincount(at, odds, minlength=size).reshape(shape)
    count = np.bincount(at, minlength=size).reshape(shape)
    log_odds = np.divide(total, count, out=np.full(shape, np.nan), where=count > 0)
    return SlotVotes(pairs, judges.to_pylist(), log_odds, _length(valid, row, len(pairs)))


def _length(valid: pa.Table, row: npt.NDArray[np.int64], pairs: int) -> Array | None:
    if LENGTH not in valid.column_names:
        return None
    length = np.zeros(pairs)
    length[row] = pc.fill_null(valid[LENGTH], 0.0).to_numpy()  # all votes on a pair have the same
    return length if length.any() else None


def slot_preference(votes: SlotVotes) -> Array:
    """c [judges] in log-odds, positive for the first slot. See the module."""
    known = ~np.isnan(votes.log_odds)
    count = known.sum(axis=1)
    mean = np.divide(np.nansum(votes.log_odds, axis=1), count, out=np.zeros(count.shape), where=count > 0)
    fewer = count.min(axis=0)
    return np.asarray((mean[0] - mean[1]) / 2 * fewer / (fewer + BIAS_PRIOR_VOTES), dtype=np.float64)


def over_slots(votes: SlotVotes, preference: Array) -> Array:
    """x [pairs, judges]: mean log-odds over a judge's valid orders less its slot preference; nan without any."""
    return over_orders(np.stack([votes.log_odds[0] - preference, votes.log_odds[1] + preference]))


def over_orders(level: Array) -> Array:
    """[pairs, judges]: mean of `level` [2, pairs, judges] over the orders that are not nan; nan without any."""
    known = ~np.isnan(level)
    count = known.sum(axis=0)
    # One sum of two terms, so that opposite votes cancel to an exact zero: a tie stays a tie.
    total = np.where(known[0], level[0], 0.0) + np.where(known[1], level[1], 0.0)
    mean: Array = np.divide(total, count, out=np.full(count.shape, np.nan), where=count > 0)
    return mean


def _coded(column: pa.ChunkedArray) -> tuple[pa.Array, npt.NDArray[np.int64]]:
    """The sorted distinct values, and for each row the index of its own."""
    coded = pc.dictionary_encode(column)
    coded = coded.combine_chunks() if isinstance(coded, pa.ChunkedArray) else coded
    by_value = pc.sort_indices(coded.dictionary)
    rank = np.empty(len(by_value), dtype=np.int64)
    rank[by_value.to_numpy()] = np.arange(len(by_value))
    return coded.dictionary.take(by_value), rank[coded.indices.to_numpy()]

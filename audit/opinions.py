"""From votes to one opinion a judge and pair: the order-averaged probability that response a is better.

Takes a pairs table and a votes table, gives arrays of N pairs x J judges. A judge is its fingerprint. Votes without an
answer (abstain, parse failure, error) have no part in an opinion, and a judge without any answer on a pair has no
opinion there (NaN): nothing is imputed.

Averaging over the two orders removes a position bias that is constant on the log-odds scale to first order: Lee et al.
2023, RLAIF (arXiv 2309.00267), section 2.1.2.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from store.errors import UsageError
from store.schemas import Status

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class Opinions:
    """What each of J judges thinks of each of N pairs, in the row order of the pairs table.

    judges:       J names; where two fingerprints share a name, the first 8 digits of the fingerprint follow it.
    fingerprints: J fingerprints.
    p_a:          [N, J] order-averaged probability in 0..1 that a is better, NaN without an answer.
    both_orders:  [N, J] the judge answered in both orders.
    flipped:      [N, J] it did, and preferred a different rollout in each.
    """

    pair_ids: list[str]
    judges: list[str]
    fingerprints: list[str]
    p_a: Floats
    both_orders: Bools
    flipped: Bools

    @property
    def panel(self) -> Floats:
        """[N] mean of the judges' opinions, NaN where no judge has one."""
        return _mean(np.nansum(self.p_a, axis=1), self.answered.sum(axis=1))

    @property
    def answered(self) -> Bools:
        """[N, J] the judge has an opinion on the pair."""
        return ~np.isnan(self.p_a)


def opinions(pairs: pa.Table, votes: pa.Table) -> Opinions:
    """Raises UsageError for votes on pairs that are not there, an unknown order, or an answer outside 0..1."""
    pair_ids: list[str] = pairs["pair_id"].to_pylist()
    rows = pc.index_in(votes["pair_id"], value_set=pairs["pair_id"].combine_chunks())
    if rows.null_count:
        foreign = votes.filter(pc.is_null(rows))["pair_id"][0].as_py()
        raise UsageError(
            f"{rows.null_count} votes are on pairs that the pairs table lacks, the first on {foreign!r}: "
            "give the pairs and votes of the same judge stage."
        )
    labels, fingerprints = _label(votes)

    answers = pc.is_in(votes["status"], value_set=pa.array([Status.SCORED.value, Status.TIE.value]))
    votes = votes.append_column("row", rows).filter(answers)
    pair = votes["row"].to_numpy().astype(np.int64)
    judge = pc.index_in(votes["fingerprint"], value_set=pa.array(fingerprints, pa.string())).to_numpy().astype(np.int64)
    by_order = _by_order(pair, judge, _orders(votes), _probabilities(votes), (len(pair_ids), len(labels)))

    given = ~np.isnan(by_order)
    both: Bools = np.logical_and(given[..., 0], given[..., 1])
    lean = np.sign(np.nan_to_num(by_order, nan=0.5) - 0.5)
    flipped: Bools = both & (lean[..., 0] * lean[..., 1] < 0)
    p_a = _mean(np.nansum(by_order, axis=2), given.sum(axis=2))
    return Opinions(pair_ids, labels, fingerprints, p_a, both, flipped)


def _label(votes: pa.Table) -> tuple[list[str], list[str]]:
    """The judges' labels and fingerprints, sorted. Two names of one fingerprint are one judge, under the first name."""
    names: dict[str, str] = {}
    for row in votes.select(["judge", "fingerprint"]).group_by(["judge", "fingerprint"]).aggregate([]).to_pylist():
        known = names.setdefault(row["fingerprint"], row["judge"])
        names[row["fingerprint"]] = min(known, row["judge"])
    judges = sorted((name, fingerprint) for fingerprint, name in names.items())
    used = [name for name, _ in judges]
    labels = [f"{name}@{fingerprint[:8]}" if used.count(name) > 1 else name for name, fingerprint in judges]
    return labels, [fingerprint for _, fingerprint in judges]


def _orders(votes: pa.Table) -> NDArray[np.int64]:
    index = pc.index_in(votes["order"], value_set=pa.array(["ab", "ba"]))
    if index.null_count:
        wrong = votes.filter(pc.is_null(index))
        raise UsageError(
            f"Vote {wrong['vote_id'][0].as_py()!r} has order {wrong['order'][0].as_py()!r}: it must be ab or ba."
        )
    return np.asarray(index.to_numpy(), dtype=np.int64)


def _probabilities(votes: pa.Table) -> Floats:
    """p_a where the vote has one, else what its winner says: a is 1, b is 0, a tie 1/2."""
    tie = pc.equal(votes["status"], Status.TIE.value)
    stated = pc.case_when(
        pc.make_struct(tie, pc.equal(votes["winner"], "a"), pc.equal(votes["winner"], "b")),
        pa.scalar(0.5),
        pa.scalar(1.0),
        pa.scalar(0.0),
    )
    values = pc.coalesce(votes["p_a"], stated)
    p: Floats = values.to_numpy().astype(np.float64)
    wrong = np.flatnonzero(~((p >= 0) & (p <= 1)))
    if len(wrong):
        vote = votes.slice(int(wrong[0]), 1).select(["vote_id", "status", "p_a", "winner"]).to_pylist()[0]
        raise UsageError(
            f"Vote {vote['vote_id']!r} is {vote['status']} with p_a {vote['p_a']} and winner {vote['winner']!r}: "
            "an answer needs a p_a in 0..1 or a winner a or b."
        )
    return p


def _by_order(
    pair: NDArray[np.int64], judge: NDArray[np.int64], order: NDArray[np.int64], p: Floats, shape: tuple[int, int]
) -> Floats:
    """[N, J, 2] mean answer in each order, NaN where there is none."""
    n, j = shape
    cell = (pair * j + judge) * 2 + order
    total: Floats = np.bincount(cell, weights=p, minlength=n * j * 2).astype(np.float64)
    count = np.bincount(cell, minlength=n * j * 2)
    return _mean(total, count).reshape(n, j, 2)


def _mean(total: Floats, count: NDArray[np.int_]) -> Floats:
    out = np.full(total.shape, np.nan)
    np.divide(total, count, out=out, where=count > 0)
    return out

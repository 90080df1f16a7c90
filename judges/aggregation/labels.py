"""What goes into every aggregation method and what comes out of it, and the checks on the way in.

In: a VOTES table, the long table of (judge, pair, order, answer). Out: LABELS, one row a pair. A method is a class with
`fit` and `predict`; one that learns nothing returns itself from `fit`.
"""

from __future__ import annotations

from typing import Protocol, Self

import pyarrow as pa
import pyarrow.compute as pc

from judges.requests import ORDERS
from store.errors import UsageError
from store.tables import Status, Table

LABELS = Table(
    "labels",
    pa.schema(
        [
            pa.field("pair_id", pa.string(), nullable=False),
            pa.field("p_a", pa.float64(), nullable=False),
            pa.field("source", pa.string(), nullable=False),
            pa.field("n_votes", pa.int64(), nullable=False),
            pa.field("votes_a", pa.int64(), nullable=False),
            pa.field("votes_b", pa.int64(), nullable=False),
        ]
    ),
    key="pair_id",
)
"""`p_a`: probability in 0..1 that a is better. `source`: ai or human. `n_votes`: valid votes (scored or tie) of judges;
`votes_a` and `votes_b`: those among them with that winner."""


class Aggregator(Protocol):
    """A method that turns votes into labels. A pair without a valid vote has no label: nothing is imputed."""

    def fit(self, votes: pa.Table, gold: pa.Table | None = None) -> Self: ...

    def predict(self, votes: pa.Table) -> pa.Table: ...


def checked_votes(votes: pa.Table, pairs: pa.Table) -> tuple[pa.Table, dict[str, int]]:
    """The votes on known pairs, and how many were left out: {"unknown_pair": n}.

    A scored vote without a probability (a hard verdict from elsewhere) gets 1 or 0 from its winner. Raises UsageError
    for two votes of one judge on one pair in one order, an unknown status or order, a probability outside 0..1 or not
    a number, and a scored vote with neither a probability nor a winner.
    """
    for column, known in (("status", [str(status) for status in Status]), ("order", list(ORDERS))):
        odd = pc.filter(votes[column], pc.invert(pc.is_in(votes[column], pa.array(known))))
        if len(odd):
            raise UsageError(
                f"The votes have {len(odd)} rows with {column} {odd[0].as_py()!r}: use one of {', '.join(known)}."
            )
    address = ["pair_id", "fingerprint", "order"]
    repeated = votes.group_by(address, use_threads=False).aggregate([([], "count_all")])
    repeated = repeated.filter(pc.greater(repeated["count_all"], 1))
    if repeated.num_rows:
        row = repeated.slice(0, 1).to_pylist()[0]
        raise UsageError(
            f"The votes hold {row['count_all']} votes on pair {row['pair_id']} in order {row['order']} of the judge "
            f"with fingerprint {row['fingerprint'][:12]} ({repeated.num_rows} such cases): keep one of each."
        )
    votes = _with_probabilities(votes)
    known_pair = pc.is_in(votes["pair_id"], value_set=pairs["pair_id"].combine_chunks())
    kept = votes.filter(known_pair)
    return kept, {"unknown_pair": votes.num_rows - kept.num_rows}


def _with_probabilities(votes: pa.Table) -> pa.Table:
    valid = is_valid(votes)
    wrong = pc.and_(
        pc.is_valid(votes["p_a"]), pc.invert(pc.and_(pc.greater_equal(votes["p_a"], 0), pc.less_equal(votes["p_a"], 1)))
    )
    if pc.any(wrong).as_py():
        row = votes.filter(wrong).slice(0, 1).to_pylist()[0]
        raise UsageError(
            f"Vote {row['vote_id']} on pair {row['pair_id']} has p_a = {row['p_a']}, which is no probability in 0..1: "
            f"correct or remove it ({pc.sum(wrong).as_py()} such votes)."
        )
    odd = pc.and_(pc.is_valid(votes["winner"]), pc.invert(pc.is_in(votes["winner"], pa.array(["a", "b"]))))
    if pc.any(odd).as_py():
        row = votes.filter(odd).slice(0, 1).to_pylist()[0]
        raise UsageError(f"Vote {row['vote_id']} has the winner {row['winner']!r}: it must be a, b or empty.")
    tie = pc.equal(votes["status"], str(Status.TIE))
    from_winner = pc.case_when(
        pc.make_struct(tie, pc.equal(votes["winner"], "a"), pc.equal(votes["winner"], "b")),
        pa.scalar(0.5),
        pa.scalar(1.0),
        pa.scalar(0.0),
    )
    # An invalid vote carries no probability, whatever its row says.
    p_a = pc.if_else(valid, pc.coalesce(votes["p_a"], from_winner), pa.scalar(None, pa.float64()))
    lacking = pc.and_(valid, pc.is_null(p_a))
    if pc.any(lacking).as_py():
        row = votes.filter(lacking).slice(0, 1).to_pylist()[0]
        raise UsageError(f"Vote {row['vote_id']} is scored but has neither p_a nor winner: correct or remove it.")
    p_a = pc.if_else(tie, pa.scalar(0.5), p_a)
    return votes.set_column(votes.schema.get_field_index("p_a"), pa.field("p_a", pa.float64()), p_a)


def is_valid(votes: pa.Table) -> pa.ChunkedArray:
    """Which votes say something about the pair: those that are scored or a tie."""
    return pc.is_in(votes["status"], pa.array([str(Status.SCORED), str(Status.TIE)]))


def labels_of(p_a: pa.Table, votes: pa.Table, source: str = "ai") -> pa.Table:
    """LABELS sorted by pair_id, from a table of pair_id and p_a, and the votes that it was made of."""
    valid = votes.filter(is_valid(votes))
    won = valid.select(["pair_id"])
    for side in ("a", "b"):
        won = won.append_column(side, pc.fill_null(pc.equal(valid["winner"], side), False).cast(pa.int64()))
    counts = won.group_by("pair_id", use_threads=False).aggregate([("a", "sum"), ("b", "sum"), ([], "count_all")])
    joined = p_a.join(counts, "pair_id", join_type="left outer", use_threads=False).sort_by("pair_id")
    zero = pa.scalar(0, pa.int64())
    columns = {
        "pair_id": joined["pair_id"],
        "p_a": joined["p_a"],
        "source": pa.repeat(pa.scalar(source), joined.num_rows),
        "n_votes": pc.coalesce(joined["count_all"], zero),
        "votes_a": pc.coalesce(joined["a_sum"], zero),
        "votes_b": pc.coalesce(joined["b_sum"], zero),
    }
    return pa.table(columns, schema=LABELS.schema)

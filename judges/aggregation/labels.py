"""What goes into every aggregation method and what comes out of it, and the checks on the way in.

In: a VOTES table, the long table of (judge, pair, order, answer). Out: LABELS, one row a pair. A method is a class with
`fit` and `predict`; one that learns nothing returns itself from `fit`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, Self

import pyarrow as pa
import pyarrow.compute as pc

from judges.requests import ORDERS
from store.errors import UsageError
from store.schemas import VOTES, Status, Table

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

BARE_VOTES = Table(
    "votes",
    pa.schema(
        [
            VOTES.schema.field(name)
            for name in (
                *("vote_id", "pair_id", "prompt_id", "rollout_a", "rollout_b"),
                *("judge", "fingerprint", "order", "status", "winner", "p_a"),
            )
        ]
    ),
    key="vote_id",
)
"""What labels depend on of a VOTES table. Anybody's votes need no other column; of our own, what judges said is most of
the table, and each filter would copy it."""


class Aggregator(Protocol):
    """A method that turns votes into labels. A pair without a valid vote has no label: nothing is imputed."""

    def fit(self, votes: pa.Table, gold: pa.Table | None = None) -> Self: ...

    def predict(self, votes: pa.Table) -> pa.Table: ...


def checked_votes(votes: pa.Table, pairs: pa.Table) -> tuple[pa.Table, dict[str, int]]:
    """The votes on known pairs, and how many were left out: {"unknown_pair": n}.

    A scored vote that says one of winner and probability says the other too: a winner alone (a hard verdict from
    elsewhere) is a probability of 1 or 0, and a probability other than 1/2 has a winner. Raises UsageError for two
    votes of one judge on one pair in one order, an unknown status, order or winner, a probability outside 0..1 or not a
    number, a scored vote with neither a probability nor a winner, and one whose winner is not the likelier side.
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
    _refuse_odd_answers(votes)
    votes = _completed(votes)
    known_pair = pc.is_in(votes["pair_id"], value_set=pairs["pair_id"].combine_chunks())
    kept = votes.filter(known_pair)
    return kept, {"unknown_pair": votes.num_rows - kept.num_rows}


def _refuse_odd_answers(votes: pa.Table) -> None:
    p_a, winner, valid = votes["p_a"], votes["winner"], is_valid(votes)
    inside = pc.and_(pc.greater_equal(p_a, 0), pc.less_equal(p_a, 1))
    if row := _first(votes, pc.invert(inside)):
        raise UsageError(
            f"Vote {row['vote_id']} on pair {row['pair_id']} has p_a = {row['p_a']}, which is no probability in 0..1: "
            f"correct or remove it ({pc.sum(pc.invert(inside)).as_py()} such votes)."
        )
    if row := _first(votes, pc.invert(pc.is_in(winner, pa.array(["a", "b", None])))):
        raise UsageError(f"Vote {row['vote_id']} has the winner {row['winner']!r}: it must be a, b or empty.")
    scored = pc.equal(votes["status"], str(Status.SCORED))
    if row := _first(votes, pc.and_(scored, pc.and_(pc.is_null(p_a), pc.is_null(winner)))):
        raise UsageError(f"Vote {row['vote_id']} is scored but has neither p_a nor winner: correct or remove it.")
    against = pc.or_(
        pc.and_(pc.equal(winner, "a"), pc.less(p_a, 0.5)), pc.and_(pc.equal(winner, "b"), pc.greater(p_a, 0.5))
    )
    won_tie = pc.and_(pc.equal(votes["status"], str(Status.TIE)), pc.is_valid(winner))
    contradicts = pc.and_(valid, pc.or_(pc.fill_null(against, False), won_tie))
    if row := _first(votes, contradicts):
        raise UsageError(
            f"Vote {row['vote_id']} on pair {row['pair_id']} is {row['status']} with p_a = {row['p_a']} and the winner "
            f"{row['winner']}, which contradict each other: correct or remove it "
            f"({pc.sum(contradicts).as_py()} such votes)."
        )


def _first(votes: pa.Table, which: pa.ChunkedArray) -> dict[str, Any] | None:
    """The first of the votes that are meant; null means none."""
    return next(iter(votes.filter(which).slice(0, 1).to_pylist()), None)


def _completed(votes: pa.Table) -> pa.Table:
    """p_a of all valid votes, none of others, and the winner of all scored ones that have one."""
    valid, winner = is_valid(votes), votes["winner"]
    p_a = pc.coalesce(votes["p_a"], pc.if_else(pc.equal(winner, "a"), 1.0, 0.0))
    p_a = pc.if_else(pc.equal(votes["status"], str(Status.TIE)), 0.5, p_a)
    # An invalid vote carries no probability, whatever its row says.
    p_a = pc.if_else(valid, p_a, pa.scalar(None, pa.float64()))
    likelier = pc.if_else(pc.equal(p_a, 0.5), pa.scalar(None, pa.string()), pc.if_else(pc.greater(p_a, 0.5), "a", "b"))
    winner = pc.coalesce(winner, likelier)
    for name, column in (("p_a", p_a), ("winner", winner)):
        votes = votes.set_column(votes.schema.get_field_index(name), VOTES.schema.field(name), column)
    return votes


def is_valid(votes: pa.Table) -> pa.ChunkedArray:
    """Which votes say something about the pair: those that are scored or a tie."""
    return pc.is_in(votes["status"], pa.array([str(Status.SCORED), str(Status.TIE)]))


def of_judges(votes: pa.Table, judges: Sequence[str] | None, needed: bool = True) -> pa.Table:
    """The votes of the judges with these names or fingerprints; None: all. Raises UsageError where one of them has no
    vote, if it is `needed`."""
    if judges is None:
        return votes
    listed = pa.array(judges, pa.string())
    by_name, by_print = (pc.is_in(votes[column], value_set=listed) for column in ("judge", "fingerprint"))
    own = votes.filter(pc.or_(by_name, by_print))
    there = {*pc.unique(own["judge"]).to_pylist(), *pc.unique(own["fingerprint"]).to_pylist()}
    if needed and (absent := [name for name in judges if name not in there]):
        known = ", ".join(sorted(pc.unique(votes["judge"]).to_pylist())) or "nobody"
        raise UsageError(
            f"aggregate.judges names {absent[0]}, who has no vote; votes are of {known}: correct the name."
        )
    return own


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

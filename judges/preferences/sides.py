"""Which rollout is a and which is b: votes and pairs must mean the same, or every label is turned round unseen."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc

from store.errors import UsageError

SIDES = ("pair_id", "prompt_id", "rollout_a", "rollout_b")


def sides_of(votes: pa.Table) -> pa.Table:
    """The pairs that a VOTES table names, without their texts: SIDES, sorted by prompt_id and pair_id.

    Raises UsageError where two votes on one pair name different rollouts or prompts, or a and b are one rollout.
    """
    found = votes.select(list(SIDES)).group_by(list(SIDES)).aggregate([])
    same = found.filter(pc.equal(found["rollout_a"], found["rollout_b"]))
    if same.num_rows:
        row = same.slice(0, 1).to_pylist()[0]
        raise UsageError(
            f"The votes on pair {row['pair_id']} compare the rollout {row['rollout_a']} with itself ({same.num_rows} "
            f"such pairs): name both rollouts, or leave the pair out."
        )
    if len(pc.unique(found["pair_id"])) < found.num_rows:
        counts = pc.value_counts(found["pair_id"]).to_pylist()
        pair = next(row["values"] for row in counts if row["counts"] > 1)
        raise UsageError(
            f"The votes on pair {pair} name different rollouts or prompts: a and b must be the same rollouts in every "
            f"vote; correct the votes, or give each pair an id of its own."
        )
    return found.sort_by([("prompt_id", "ascending"), ("pair_id", "ascending")])


def check_sides(votes: pa.Table, pairs: pa.Table) -> None:
    """Raises UsageError where the votes on a pair name other rollouts than the pairs table has as its a and b."""
    named = sides_of(votes)
    at = pc.index_in(named["pair_id"], value_set=pairs["pair_id"].combine_chunks())
    known = pairs.select(list(SIDES)).take(at.drop_null())
    own = named.filter(pc.is_valid(at))
    wrong = pc.or_(
        pc.not_equal(own["rollout_a"], known["rollout_a"]), pc.not_equal(own["rollout_b"], known["rollout_b"])
    )
    if not pc.any(wrong).as_py():
        return
    vote, pair = (table.filter(wrong).slice(0, 1).to_pylist()[0] for table in (own, known))
    raise UsageError(
        f"The votes on pair {pair['pair_id']} name {vote['rollout_a']} and {vote['rollout_b']} as a and b, "
        f"the pairs table has {pair['rollout_a']} and {pair['rollout_b']} ({pc.sum(wrong).as_py()} such pairs): give "
        f"the pairs that were judged."
    )

"""Known answers, of a gold table or of people's verdicts, in the one form that methods learn from: pair_id and p_a."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from judges.aggregation.lengths import LENGTH
from store.errors import UsageError
from store.hashing import short_id
from store.schemas import VOTES

ANSWERS = pa.schema([pa.field("pair_id", pa.string(), nullable=False), pa.field("p_a", pa.float64(), nullable=False)])
"""`p_a`: 1 where a is known to be better, 0 where b is, 1/2 for a tie, between where people differ."""

P_A = {"a": 1.0, "b": 0.0, "tie": 0.5}
"""What a winner says of a, as a probability."""

FOLDS = 5
"""In so many parts gold is cut, where weights are not to be measured on what they were learnt from."""


def known_answers(gold: pa.Table) -> pa.Table:
    """ANSWERS, sorted by pair_id, of a table with pair_id and either p_a (0..1) or winner (a, b, tie).

    Raises UsageError for another winner, a p_a outside 0..1, or a pair with two answers.
    """
    if "p_a" in gold.column_names:
        p_a = gold["p_a"].cast(pa.float64())
        wrong = pc.invert(pc.fill_null(pc.and_(pc.greater_equal(p_a, 0), pc.less_equal(p_a, 1)), False))
        if pc.any(wrong).as_py():
            pair = pc.filter(gold["pair_id"], wrong)[0].as_py()
            raise UsageError(f"The gold answer of pair {pair} is no probability in 0..1: correct or remove it.")
    else:
        winners = pa.array(list(P_A))
        odd = pc.filter(gold["winner"], pc.invert(pc.is_in(gold["winner"], winners)))
        if len(odd):
            raise UsageError(f"The gold has the winner {odd[0].as_py()!r}: it must be a, b or tie.")
        p_a = pc.take(pa.array(list(P_A.values())), pc.index_in(gold["winner"], winners))
    answers = pa.table({"pair_id": gold["pair_id"], "p_a": p_a}).cast(ANSWERS).sort_by("pair_id")
    if len(pc.unique(answers["pair_id"])) < answers.num_rows:
        counts = pc.value_counts(answers["pair_id"]).to_pylist()
        pair = next(row["values"] for row in counts if row["counts"] > 1)
        raise UsageError(f"The gold has more than one answer to pair {pair}: keep one.")
    return answers


def aligned(pairs: pa.Array, answers: pa.Table) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """Rows of `pairs` whose answer is known, rising, and those answers p_a."""
    at = pc.index_in(pairs, value_set=answers["pair_id"].combine_chunks())
    rows = np.flatnonzero(pc.is_valid(at).to_numpy(zero_copy_only=False))
    known = answers["p_a"].to_numpy()[at.drop_null().to_numpy().astype(np.int64)]
    return rows, np.asarray(known, dtype=np.float64)


def folds(prompts: Sequence[str]) -> npt.NDArray[np.int64]:
    """[pairs] 0..FOLDS-1, by the prompt's hash: pairs of one prompt are in one fold."""
    return np.array([int(short_id("fold", prompt), 16) % FOLDS for prompt in prompts], dtype=np.int64)


def anchors(
    votes: pa.Table, people: Mapping[str, float], gold: pa.Table | None = None, gold_votes: pa.Table | None = None
) -> tuple[pa.Table, pa.Table]:
    """What a method is fitted on: all votes, of the round and of the gold, and all ANSWERS, of the gold and of people.

    `people`: pair_id -> p_a of the round's audited pairs; a pair that is gold too keeps the gold's answer. `gold` and
    `gold_votes`: both or neither.
    """
    said = sorted(people.items())
    answers = pa.table({"pair_id": [pair for pair, _ in said], "p_a": [p_a for _, p_a in said]}, schema=ANSWERS)
    if gold is None or gold_votes is None:
        return votes, answers
    known = known_answers(gold)
    answers = answers.filter(pc.invert(pc.is_in(answers["pair_id"], value_set=known["pair_id"].combine_chunks())))
    schema = pa.schema([field for field in VOTES.schema if field.name in votes.column_names])
    if LENGTH in gold_votes.column_names and LENGTH in votes.column_names:
        # Known on one side only, it could be learned but not used, or the reverse.
        schema = schema.append(pa.field(LENGTH, pa.float64()))
    both = pa.concat_tables([table.select(schema.names).cast(schema) for table in (gold_votes, votes)])
    return both, pa.concat_tables([known, answers])

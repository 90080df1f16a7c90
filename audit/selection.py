"""Which judged pairs people see. Takes pairs and votes, gives a selection table: one row a pair, drawn or not (law 6).

The doubt is in `audit.doubt`, the probabilities and the design of the draw in `audit.inclusion`. Draws are independent
between pairs, so the number drawn varies around the budget with a standard deviation below its root.

Beside the columns of the selection table stand `judge_error` (the doubt u in 0..1/2) and `uniform_probability` (pi_u,
the same in every row), which later estimates need.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import pyarrow as pa
import pyarrow.compute as pc

from audit.config import DoubtWeights
from audit.doubt import EQUAL, Flags, describe, estimated_error, explain
from audit.draws import unit
from audit.inclusion import Inclusion, inclusion
from audit.opinions import Floats, Opinions
from store.schemas import SELECTION

UNIFORM, TARGETED, NONE = "uniform", "targeted", "none"

_SCHEMA = pa.schema(
    [
        *SELECTION.schema,
        pa.field("judge_error", pa.float64(), nullable=False),
        pa.field("uniform_probability", pa.float64(), nullable=False),
    ]
)


@dataclass(frozen=True)
class Reasons:
    """Reasons beyond the votes, and bounds. `flags`, `labels`, `groups`: in the row order of the pairs; `labels`: see
    doubt, `caps` and `sharpness`: see inclusion."""

    flags: Flags | None = None
    weights: DoubtWeights = EQUAL
    labels: Floats | None = None
    sharpness: float = 0.5
    groups: Sequence[str] = ()
    caps: Mapping[str, float] = field(default_factory=dict)


def select(
    opinions: Opinions, budget: int, uniform_fraction: float, seed: int, reasons: Reasons | None = None
) -> pa.Table:
    """The selection table, in the row order of the pairs.

    stratum: `uniform` for a pair that the uniform draw took, whether or not the targeted one took it too; `targeted`
    for one that only the targeted draw took; `none` for the rest. Only `uniform` pairs enter a plain proportion.
    """
    why = reasons or Reasons()
    error = estimated_error(opinions, why.flags, why.weights, why.labels)
    chance = inclusion(error, budget, uniform_fraction, why.groups, why.caps, why.sharpness)
    strata = draw(opinions.pair_ids, chance, seed)
    parts = explain(opinions, why.flags, why.weights, why.labels)
    doubts = [f"{u:.2f} ({part})" for u, part in zip(error, parts, strict=True)]
    words = describe(opinions, why.flags)
    return pa.table(
        {
            "pair_id": opinions.pair_ids,
            "inclusion_probability": chance.total,
            "drawn": [stratum != NONE for stratum in strata],
            "stratum": strata,
            "reason": [_reason(*row) for row in zip(strata, chance.total, doubts, words, strict=True)],
            "judge_error": error,
            "uniform_probability": [chance.uniform] * len(strata),
        },
        schema=_SCHEMA,
    )


def draw(pair_ids: list[str], chance: Inclusion, seed: int) -> list[str]:
    """The stratum of each pair, from two independent draws a pair."""
    strata = []
    for pair_id, targeted in zip(pair_ids, chance.targeted.tolist(), strict=True):
        if unit(seed, "audit uniform", pair_id) < chance.uniform:
            strata.append(UNIFORM)
        elif unit(seed, "audit targeted", pair_id) < targeted:
            strata.append(TARGETED)
        else:
            strata.append(NONE)
    return strata


def nothing_selected() -> pa.Table:
    """The selection of a round without audit: no rows, since no pair could have been drawn."""
    return _SCHEMA.empty_table()


def hidden_gold(gold: pa.Table, pairs: pa.Table, count: int, seed: int) -> pa.Table:
    """`count` rows of a gold table, or all there are, drawn at random; none that is among the judged pairs too.

    They measure the auditors. They are no part of the selection: their verdicts enter no estimate and no label.
    """
    known = pc.is_in(gold["pair_id"], value_set=pairs["pair_id"].combine_chunks())
    rows = gold.filter(pc.invert(known))
    order = sorted(range(rows.num_rows), key=lambda i: unit(seed, "hidden gold", rows["pair_id"][i].as_py()))
    return rows.take(pa.array(sorted(order[:count]), pa.int64()))


def _reason(stratum: str, chance: float, doubt: str, words: str) -> str:
    if stratum == UNIFORM:
        return f"drawn uniformly, whatever the judges said ({words})"
    if stratum == TARGETED:
        return f"drawn for its doubt {doubt}: {words} (chance {chance:.3f})"
    return f"not drawn (chance {chance:.3f}, doubt {doubt}): {words}"

"""Twenty gold pairs and some eighty verdicts, placed by the audit's own selection, on LLMBar (part of labels.py).

Twenty pairs are gold; the other 399 are a round. The audit draws from them with an expected budget of 84 (uniform floor
30 %, independent draws), people are right, their verdicts override and join the gold, and the judges are fitted again.
All 399 labels are scored, audited ones too, as they are what is trained on. The doubt that steers the draw is either
the audit's estimate from the votes alone, or the error that the labels fitted on the twenty admit: min(p, 1 - p).
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from audit.doubt import estimated_error
from audit.inclusion import inclusion
from audit.opinions import opinions
from audit.selection import NONE
from audit.selection import draw as draw_audit
from benchmarks.labels_llmbar import Bench, judged, scored, truth
from judges.aggregation.stacked import StackedJudges

GOLD, BUDGET, UNIFORM = 20, 84, 0.3
DOUBTS = ("votes alone", "labels fitted on the gold", "the same, no draw at all")
"""The last takes the 84 most doubtful pairs: no pair has a known chance, so that no estimate would be valid (law 6). It
shows what the uniform floor and the chances cost."""


def one(bench: Bench, doubt: str, seed: int) -> tuple[float, float, int]:
    """Accuracy of the final labels, of those that no person made, and how many verdicts."""
    order = np.random.default_rng(seed).permutation(bench.gold.num_rows)
    known, rest = np.sort(order[:GOLD]), np.sort(order[GOLD:])
    pairs, y = bench.gold.take(rest), truth(bench)[rest]
    votes = bench.votes.filter(pc.is_in(bench.votes["pair_id"], value_set=pairs["pair_id"].combine_chunks()))
    first = StackedJudges().fit(bench.votes, bench.gold.take(known))
    p = scored(first.predict(votes), pairs["pair_id"])
    error = estimated_error(opinions(pairs, votes)) if doubt == DOUBTS[0] else np.minimum(p, 1 - p)
    if doubt == DOUBTS[2]:
        audited = np.zeros(len(error), dtype=bool)
        audited[np.argsort(-error, kind="stable")[:BUDGET]] = True
    else:
        strata = draw_audit(pairs["pair_id"].to_pylist(), inclusion(error, BUDGET, UNIFORM), seed)
        audited = np.array([stratum != NONE for stratum in strata])
    answers = pa.concat_tables([bench.gold.take(known), pairs.filter(pa.array(audited))])
    final = scored(StackedJudges().fit(bench.votes, answers).predict(votes), pairs["pair_id"])
    labels = np.where(audited, y, final)
    return judged(seed, labels, y).accuracy, judged(seed, labels[~audited], y[~audited]).accuracy, int(audited.sum())


def table(bench: Bench, draws: int, show_all: bool) -> dict[str, float]:
    figures = {}
    print(
        f"LLMBar, {GOLD} gold pairs and a selection of {BUDGET} expected verdicts, {draws} draws, seeds 0..{draws - 1}"
    )
    print(f"{'doubt from':28s}{'labels':>8s}{'sd':>6s}{'min':>7s}{'max':>7s}{'unaudited':>11s}{'verdicts':>10s}")
    for doubt in DOUBTS:
        made = [one(bench, doubt, seed) for seed in range(draws)]
        accuracy, judges, count = (np.array(part, dtype=float) for part in zip(*made, strict=True))
        print(
            f"{doubt:28s}{100 * accuracy.mean():7.2f}%{100 * accuracy.std():6.2f}{100 * accuracy.min():7.1f}"
            f"{100 * accuracy.max():7.1f}{100 * judges.mean():10.2f}%{count.mean():10.1f}"
        )
        if show_all:
            print("   " + " ".join(f"{seed}:{100 * a:.2f}/{n}" for seed, (a, _, n) in enumerate(made)))
        figures[doubt] = 100 * float(accuracy.mean())
    return figures

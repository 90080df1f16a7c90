"""Twenty gold pairs and some eighty verdicts, placed by the audit's own selection (part of labels.py).

Twenty pairs are gold; all others are a round. The audit draws from them with an expected budget (uniform floor 30 %,
independent draws), people are right, their verdicts override and join the gold, and the judges are fitted again. All
labels of the round are scored, audited ones too, as they are what is trained on. The doubt that steers the draw is
either the audit's estimate from the votes alone, or what the labels fitted on the twenty admit: min(p, 1 - p).

`table` does so on LLMBar; `placing` on simulated panels, where the sharpness was chosen: the gain in labels against the
width of the estimate of the labels' accuracy.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from audit.config import AuditConfig
from audit.doubt import estimated_error
from audit.estimates import corrected_mean
from audit.inclusion import inclusion
from audit.opinions import opinions
from audit.selection import NONE
from audit.selection import draw as draw_audit
from benchmarks.labels_llmbar import Array, Bench, judged, scored, truth
from benchmarks.simulated_panels import REGIMES, gold_table, measured, panel
from judges.aggregation.stacked import StackedJudges

GOLD, BUDGET, UNIFORM = 20, 84, 0.3
SHARPNESS = AuditConfig().sharpness
SHARPNESSES = (0.5, 1.0, 2.0, 3.0, 4.0, 6.0)
SHARE = 0.2


@dataclass(frozen=True)
class Placing:
    """`labels`: whether the doubt is that of the fitted labels. `sharpness` None takes the most doubtful pairs: none
    has a known chance, so that no estimate would be valid (law 6). It shows what uniform floor and chances cost."""

    name: str
    labels: bool
    sharpness: float | None


PLACINGS = (
    Placing("votes alone, sharpness 0.5", False, 0.5),
    Placing("fitted labels, sharpness 0.5", True, 0.5),
    Placing("as the audit does by default", True, SHARPNESS),
    Placing("the same, no draw at all", True, None),
)


@dataclass(frozen=True)
class Round:
    """`accuracy` of the final labels, `unaudited` of those that no person made, `verdicts` a count; `width` of the 95 %
    interval of the first labels' accuracy, and whether the truth is in it."""

    accuracy: float
    unaudited: float
    verdicts: int
    width: float
    covered: bool


def one(bench: Bench, placing: Placing, seed: int, budget: float) -> Round:
    order = np.random.default_rng(seed).permutation(bench.gold.num_rows)
    known, rest = np.sort(order[:GOLD]), np.sort(order[GOLD:])
    pairs, y = bench.gold.take(rest), truth(bench)[rest]
    votes = bench.votes.filter(pc.is_in(bench.votes["pair_id"], value_set=pairs["pair_id"].combine_chunks()))
    first = StackedJudges().fit(bench.votes, bench.gold.take(known))
    p = scored(first.predict(votes), pairs["pair_id"])
    error = estimated_error(opinions(pairs, votes), labels=p if placing.labels else None)
    right = ((p > 0.5) == (y > 0.5)).astype(float)
    estimate = None
    if placing.sharpness is None:
        audited = np.zeros(len(error), dtype=bool)
        audited[np.argsort(-error, kind="stable")[: int(budget)]] = True
    else:
        chance = inclusion(error, budget, UNIFORM, sharpness=placing.sharpness)
        audited = np.array([stratum != NONE for stratum in draw_audit(pairs["pair_id"].to_pylist(), chance, seed)])
        sure = np.maximum(p, 1 - p)
        estimate = corrected_mean(right[audited], chance.total[audited], sure[audited], sure)
    answers = pa.concat_tables([bench.gold.take(known), pairs.filter(pa.array(audited))])
    final = scored(StackedJudges().fit(bench.votes, answers).predict(votes), pairs["pair_id"])
    labels = np.where(audited, y, final)
    return Round(
        judged(seed, labels, y).accuracy,
        judged(seed, labels[~audited], y[~audited]).accuracy,
        int(audited.sum()),
        estimate.high - estimate.low if estimate else np.nan,
        bool(estimate and estimate.low <= right.mean() <= estimate.high),
    )


def table(bench: Bench, draws: int, show_all: bool) -> dict[str, float]:
    """Prints; returns the name of each placing -> mean accuracy of the final labels in %."""
    figures = {}
    print(
        f"LLMBar, {GOLD} gold pairs and a selection of {BUDGET} expected verdicts, {draws} draws, seeds 0..{draws - 1}"
    )
    print(f"{'placed by':30s}{'labels':>8s}{'sd':>6s}{'min':>7s}{'max':>7s}{'unaudited':>11s}{'verdicts':>10s}")
    for placing in PLACINGS:
        made = [one(bench, placing, seed, BUDGET) for seed in range(draws)]
        accuracy = 100 * np.array([round_.accuracy for round_ in made])
        unaudited, count = (_mean(made, name) for name in ("unaudited", "verdicts"))
        print(
            f"{placing.name:30s}{accuracy.mean():7.2f}%{accuracy.std():6.2f}{accuracy.min():7.1f}"
            f"{accuracy.max():7.1f}{100 * unaudited:10.2f}%{count:10.1f}"
        )
        if show_all:
            print("   " + " ".join(f"{seed}:{a:.2f}/{made[seed].verdicts}" for seed, a in enumerate(accuracy)))
        figures[placing.name] = float(accuracy.mean())
    return figures


def placing(seeds: range) -> None:
    print(f"Simulated panels, {GOLD} gold pairs, {100 * SHARE:.0f} % audited, seeds {seeds[0]}..{seeds[-1]}")
    print(f"{'regime':8s}{'doubt from':>12s}{'sharpness':>11s}{'labels':>9s}{'interval':>10s}{'coverage':>10s}")
    for regime in REGIMES:
        for way in (Placing("votes", False, 0.5), *(Placing("labels", True, g) for g in SHARPNESSES)):
            made = []
            for seed in seeds:
                bench = _simulated(regime, seed)
                made.append(one(bench, way, seed, SHARE * (bench.gold.num_rows - GOLD)))
            accuracy, width, covered = (100 * _mean(made, name) for name in ("accuracy", "width", "covered"))
            print(f"{regime:8s}{way.name:>12s}{way.sharpness:11.1f}{accuracy:8.2f}%{width:10.1f}{covered:9.1f}%")


def _simulated(regime: str, seed: int) -> Bench:
    drawn = panel(seed, regime)
    return Bench(measured(drawn), gold_table(drawn, np.arange(len(drawn.truth))))


def _mean(made: list[Round], name: str) -> float:
    values: Array = np.array([getattr(round_, name) for round_ in made], dtype=np.float64)
    return float(values.mean())

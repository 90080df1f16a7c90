"""The panel behind finished labels as a whole: agreement beyond chance, and what an unsupervised model makes of it.

Both read the votes again that the aggregate stage names in its manifest, and need the extra `labels`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow.compute as pc

from audit.estimates import agreement
from judges.aggregation.diagnostics import diagnose
from judges.aggregation.labels import BARE_VOTES, LABELS, checked_votes
from judges.metrics import judge_accuracy, proportion, split_by_judge
from judges.preferences.inputs import read_input, votes_behind
from judges.reports.winners import SIDES, decided, winner
from store.manifest import need_manifest
from store.schemas import GOLD
from store.tables import read_table

Figures = dict[str, Any]


def panel_agreement(folder: Path) -> Figures:
    """`audit.estimates.Agreement` of all judges, as JSON. What a judge says of a pair is the winner of its
    order-averaged votes; without one it says nothing. Raises UsageError where the votes are gone."""
    votes, _ = votes_behind(need_manifest(folder))
    said = ((name, pair, won) for name, own in split_by_judge(votes).items() for pair, won in decided(own).items())
    return agreement(said, categories=SIDES).to_json()


def diagnosis(folder: Path, name: str) -> Figures:
    """What the unsupervised model `name` believes, beside what is known.

    `model`; `votes` used and `left_out`; `same_winner`: pairs on which it and the labels have one winner, of those on
    which both have one; `judges`: name -> `believed`, the share of its votes that are right as the model has it, and
    `gold`, the same by gold (mean of both orders) with `gold_pairs`, None without gold. Raises UsageError where votes
    or gold are gone, or crowd-kit is not installed.
    """
    manifest = need_manifest(folder)
    votes, _ = votes_behind(manifest)
    found = diagnose(votes, name)
    known: Figures = {}
    if manifest.inputs.get("gold"):
        gold = read_input(manifest, "gold", GOLD)
        on_gold, _ = checked_votes(read_input(manifest, "gold_votes", BARE_VOTES), gold)
        same = pc.is_in(on_gold["fingerprint"], value_set=pc.unique(votes["fingerprint"]))
        known = judge_accuracy(on_gold.filter(same), gold)
    labels = read_table(folder / "labels.parquet", LABELS)
    of_label = dict(zip(labels["pair_id"].to_pylist(), map(winner, labels["p_a"].to_pylist()), strict=True))
    of_model = dict(zip(found.p_a["pair_id"].to_pylist(), map(winner, found.p_a["p_a"].to_pylist()), strict=True))
    both = [pair for pair, won in of_model.items() if won and of_label.get(pair)]
    return {
        "model": name,
        "votes": found.votes,
        "left_out": found.left_out,
        "same_winner": proportion(sum(of_model[pair] == of_label[pair] for pair in both), len(both)),
        "judges": {
            judge: {
                "believed": found.accuracy.get(own["fingerprint"][0].as_py()),
                "gold": known.get(judge, {}).get("mean_over_orders"),
                "gold_pairs": known.get(judge, {}).get("n"),
            }
            for judge, own in split_by_judge(votes).items()
        },
    }

"""The labels of the demo: its own judges on its calibration pairs, through the shipped methods."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from judges.aggregation.labels import checked_votes
from judges.aggregation.methods import METHODS
from judges.aggregation.names import METHOD_NAMES
from judges.judge import load_judge
from judges.pairs import pairs_from_table
from judges.panel import judge_pairs
from store.schemas import GOLD, VOTES
from store.tables import read_table

CALIBRATION = Path(__file__).resolve().parents[3] / "datasets" / "tiny" / "calibration.parquet"
PAIRS, KNOWN = 120, 40

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def gold() -> pa.Table:
    return read_table(CALIBRATION, GOLD).sort_by("pair_id").slice(0, PAIRS)


@pytest.fixture(scope="module")
def votes(gold: pa.Table) -> pa.Table:
    judges = [load_judge(name) for name in ("tiny-good", "tiny-middling", "tiny-biased")]
    return checked_votes(judge_pairs(judges, list(pairs_from_table(gold)), seed=17), gold)[0]


def mirrored(votes: pa.Table) -> pa.Table:
    """The same answers with the names of a and b changed places: who was shown first is called the other name."""
    turned = {
        "rollout_a": votes["rollout_b"],
        "rollout_b": votes["rollout_a"],
        "order": pc.if_else(pc.equal(votes["order"], "ab"), "ba", "ab"),
        "p_a": pc.subtract(1.0, votes["p_a"]),
        "winner": pc.if_else(pc.equal(votes["winner"], "a"), "b", pc.if_else(pc.is_valid(votes["winner"]), "a", None)),
    }
    return pa.table({name: turned.get(name, votes[name]) for name in votes.column_names}).cast(VOTES.schema)


def labels(method: str, votes: pa.Table, gold: pa.Table | None) -> np.ndarray:
    return METHODS[method]().fit(votes, gold).predict(votes)["p_a"].to_numpy()


def other_way(gold: pa.Table) -> pa.Table:
    winner = pc.if_else(pc.equal(gold["winner"], "a"), "b", pc.if_else(pc.equal(gold["winner"], "b"), "a", "tie"))
    return gold.set_column(gold.schema.get_field_index("winner"), GOLD.schema.field("winner"), winner)


@pytest.mark.parametrize("method", METHOD_NAMES)
@pytest.mark.parametrize("known", [0, KNOWN])
def test_a_mirrored_pair_has_the_mirrored_label(method: str, known: int, votes: pa.Table, gold: pa.Table) -> None:
    there = labels(method, votes, gold.slice(0, known) if known else None)
    back = labels(method, mirrored(votes), other_way(gold.slice(0, known)) if known else None)
    assert there + back == pytest.approx(1.0, abs=1e-9)


@pytest.mark.parametrize("method", METHOD_NAMES)
def test_labels_are_the_same_every_time(method: str, votes: pa.Table, gold: pa.Table) -> None:
    known = gold.slice(0, KNOWN)
    assert np.array_equal(labels(method, votes, known), labels(method, votes, known))


@pytest.mark.parametrize("known", [0, 5, 20, KNOWN])
def test_it_falls_back_gracefully(known: int, votes: pa.Table, gold: pa.Table) -> None:
    found = labels("stacked", votes, gold.slice(0, known) if known else None)
    rest = slice(KNOWN, PAIRS)
    right = (found[rest] > 0.5) == (gold["winner"].to_numpy(zero_copy_only=False)[rest] == "a")
    assert np.all((found > 0) & (found < 1))
    # 93 % on all pairs; the bound is three standard deviations of 80 pairs below.
    assert right.mean() > 0.84


def test_the_gold_finds_the_better_judges(votes: pa.Table, gold: pa.Table) -> None:
    method = METHODS["stacked"]().fit(votes, gold)
    name_of = dict(zip(votes["fingerprint"].to_pylist(), votes["judge"].to_pylist(), strict=True))
    weight = {name_of[fingerprint]: w for fingerprint, w in method.weights.items()}  # type: ignore[attr-defined]
    assert all(value > 0 for value in weight.values())
    assert weight["tiny-good"] > weight["tiny-biased"] or weight["tiny-middling"] > weight["tiny-biased"]

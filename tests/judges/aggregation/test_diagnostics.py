"""Unsupervised label models: what they find, that they are found as published, and that they never make labels."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from judges.aggregation.diagnostics import diagnose
from judges.aggregation.labels import checked_votes
from judges.aggregation.methods import METHODS, method_of
from judges.aggregation.names import DIAGNOSTICS, METHOD_NAMES
from judges.config import AggregateConfig
from store.config import parse
from store.errors import UsageError

from ..votes_builder import pairs_table, vote, votes_table

BLUEBIRDS = Path(__file__).resolve().parents[4] / "shared" / "data" / "bluebirds"


def votes_of_three(pairs: int = 60) -> tuple[pa.Table, np.ndarray]:
    rng = np.random.default_rng(0)
    truth = rng.random(pairs) < 0.5
    rows = []
    for judge, skill in (("good", 0.95), ("fair", 0.8), ("poor", 0.6)):
        for order in ("ab", "ba"):
            right = rng.random(pairs) < skill
            for i in range(pairs):
                rows.append(vote(f"p{i:02d}", judge, order, 0.9 if truth[i] == right[i] else 0.1))
    return votes_table(*rows, vote("p00", "mute", "ab", None), vote("p01", "mute", "ab", 0.5)), truth


@pytest.mark.parametrize("name", DIAGNOSTICS)
def test_independent_judges_are_told_apart(name: str) -> None:
    pytest.importorskip("crowdkit", reason="crowd-kit is not installed")
    votes, truth = votes_of_three()
    found = diagnose(votes, name)
    assert np.mean((found.p_a["p_a"].to_numpy() > 0.5) == truth) > 0.9
    assert found.p_a["pair_id"].to_pylist() == [f"p{i:02d}" for i in range(60)]
    believed = [found.accuracy[f"fingerprint-of-{judge}"] for judge in ("good", "fair", "poor")]
    assert believed == sorted(believed, reverse=True)
    assert (found.votes, found.left_out) == (360, 2)


def test_nothing_to_diagnose_and_unknown_names() -> None:
    with pytest.raises(UsageError, match="No vote has a winner"):
        diagnose(votes_table(vote("p1", "j", "ab", 0.5)), "glad")
    with pytest.raises(UsageError, match="'oracle'"):
        diagnose(votes_table(vote("p1", "j", "ab", 0.9)), "oracle")


@pytest.mark.parametrize("name", DIAGNOSTICS)
def test_none_of_them_can_make_labels(name: str) -> None:
    assert name not in METHODS
    with pytest.raises(UsageError, match=f"{name} is a diagnostic"):
        method_of(name)
    with pytest.raises(UsageError, match=f"{name} is a diagnostic"):
        parse(AggregateConfig, {"method": name}, "round.yaml")


def test_names_are_those_of_the_methods() -> None:
    assert tuple(METHODS) == METHOD_NAMES
    assert all(AggregateConfig(method=name).method == name for name in METHOD_NAMES)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="'oracle'"):
        method_of("oracle")


@pytest.mark.skipif(not BLUEBIRDS.is_dir(), reason=f"the Bluebirds labels are not at {BLUEBIRDS}")
def test_bluebirds() -> None:
    """39 workers, 108 items (Welinder et al. 2010): majority 75.9 %, Dawid-Skene 88.9 %."""
    pytest.importorskip("crowdkit", reason="crowd-kit is not installed")
    with (BLUEBIRDS / "truth.csv").open(newline="") as stream:
        truth = {row["task"]: row["label"] == "1" for row in csv.DictReader(stream)}
    with (BLUEBIRDS / "labels.csv").open(newline="") as stream:
        rows = [
            vote(row["task"], row["worker"], "ab", 1.0 if row["label"] == "1" else 0.0)
            for row in csv.DictReader(stream)
        ]
    votes, excluded = checked_votes(votes_table(*rows), pairs_table(*truth))
    assert (votes.num_rows, excluded["unknown_pair"]) == (39 * 108, 0)

    def accuracy(table: pa.Table) -> float:
        p_of = dict(zip(table["pair_id"].to_pylist(), table["p_a"].to_pylist(), strict=True))
        return round(100 * float(np.mean([(p_of[task] > 0.5) == right for task, right in truth.items()])), 1)

    assert accuracy(METHODS["majority"]().fit(votes).predict(votes)) == 75.9
    assert accuracy(diagnose(votes, "dawid_skene").p_a) == 88.9

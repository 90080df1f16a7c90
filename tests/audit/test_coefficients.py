"""Agreement coefficients: the libraries, published tables, and real annotators."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest

from audit.estimates import agreement
from audit.estimates.coefficients import bootstrap, gwet_ac1
from store.errors import UsageError

krippendorff = pytest.importorskip("krippendorff", reason="needs the extra labels: pip install 'rlaif[labels]'")
metrics = pytest.importorskip("sklearn.metrics", reason="needs the extra labels: pip install 'rlaif[labels]'")

SHARED = Path(os.environ.get("RLAIF_SHARED_DATA", Path(__file__).resolve().parents[3] / "shared" / "data"))
PANDALM = SHARED / "pandalm" / "testset.jsonl"

# Twelve units, four raters, gaps: Gwet 2014, Handbook of Inter-Rater Reliability; also Krippendorff's own example.
GWET = ["1.11", "2232", "3333", "3333", "2222", "1234", "4444", "1121", "2222", ".555", "..11", "..3."]


def from_words(words: list[str]) -> list[tuple[str, str, str]]:
    return [(f"r{k}", f"u{i:02}", mark) for i, word in enumerate(words) for k, mark in enumerate(word) if mark != "."]


def test_the_handbook_s_table() -> None:
    """AC1 0.77544 and alpha 0.74342 with gaps, as the handbook, irrCAC and Krippendorff (2011) print them."""
    found = agreement(from_words(GWET), resamples=100)
    assert found.ac1.value == pytest.approx(0.77544, abs=5e-6)
    assert found.alpha.value == pytest.approx(0.743, abs=5e-4)
    assert (found.raters, found.items, found.alpha.items, found.ac1.items) == (4, 11, 11, 12)
    assert found.observed == pytest.approx(0.81818, abs=5e-6)


def test_fleiss_published_example() -> None:
    """Fleiss 1971, as in the usual worked example: 14 raters, 10 subjects, 5 categories, kappa 0.210."""
    counts = [
        [0, 0, 0, 0, 14],
        [0, 2, 6, 4, 2],
        [0, 0, 3, 5, 6],
        [0, 3, 9, 2, 0],
        [2, 2, 8, 1, 1],
        [7, 7, 0, 0, 0],
        [3, 2, 6, 3, 0],
        [2, 5, 3, 2, 2],
        [6, 5, 2, 1, 0],
        [0, 2, 2, 3, 7],
    ]
    marks = ["".join(str(q) * n for q, n in enumerate(row)) for row in counts]
    found = agreement(from_words(marks), resamples=50)
    assert found.fleiss is not None
    assert found.fleiss.value == pytest.approx(0.210, abs=5e-4)
    assert found.cohen is None


def test_ac1_does_not_collapse_under_skew() -> None:
    """Gwet 2008: 118 of 125 items alike in one category; kappa is negative, AC1 near the observed agreement."""
    both = ["11"] * 118 + ["12"] * 5 + ["21"] * 2
    found = agreement(from_words(both), resamples=200)
    assert found.cohen is not None
    assert found.cohen.value == pytest.approx(-0.0234, abs=5e-4)
    assert found.ac1.value == pytest.approx(0.9408, abs=5e-4)
    assert found.cohen.low < found.cohen.value < found.cohen.high


def test_undefined_is_none() -> None:
    found = agreement(from_words(["11", "11"]), resamples=10)
    assert found.observed == 1
    assert found.cohen is not None
    assert (found.cohen.value, found.alpha.value, found.ac1.value) == (None, None, None)
    nothing = agreement([])
    assert (nothing.items, nothing.observed, nothing.alpha.value, nothing.fleiss.value) == (0, None, None, None)
    assert agreement(from_words(["11", "11"]), categories=["1", "2"], resamples=10).ac1.value == 1


def test_bad_ratings_are_named() -> None:
    with pytest.raises(UsageError, match="'ann' rated item 'i' twice"):
        agreement([("ann", "i", "a"), ("ann", "i", "b")])
    with pytest.raises(UsageError, match="'left'"):
        agreement([("ann", "i", "left"), ("bob", "i", "a")], categories=["a", "b", "tie"])


def test_bootstrap_intervals_cover() -> None:
    """Two raters who agree by design: kappa is known, and the 95 % interval holds it in about 95 of 100 samples."""
    covered, repeats = 0, 300
    for seed in range(repeats):
        rng = np.random.default_rng(seed)
        # Both say the truth with probability 0.7 or else toss a coin: the coefficient is 0.7 squared.
        truth = rng.integers(0, 2, 150)
        said = [np.where(rng.random(150) < 0.7, truth, rng.integers(0, 2, 150)) for _ in range(2)]
        ones = said[0] + said[1]
        found = bootstrap(np.stack([2 - ones, ones], axis=1), gwet_ac1, 100)
        covered += found.low <= 0.49 <= found.high
    assert 0.9 <= covered / repeats <= 0.985


def test_ac1_against_irrcac() -> None:
    raw = pytest.importorskip("irrCAC.raw", reason="irrCAC refuses pandas 3, which the tests run with")
    import pandas as pd

    rng = np.random.default_rng(0)
    table = rng.choice([1.0, 2.0, 3.0, np.nan], (40, 4), p=[0.6, 0.2, 0.1, 0.1])
    counts = np.stack([(table == q).sum(axis=1) for q in (1.0, 2.0, 3.0)], axis=1)
    expected = raw.CAC(pd.DataFrame(table)).gwet()["est"]["coefficient_value"]
    assert gwet_ac1(counts[counts.sum(axis=1) > 0]) == pytest.approx(expected, abs=1e-5)


@pytest.mark.skipif(not PANDALM.is_file(), reason=f"the PandaLM test set is not at {PANDALM}")
def test_pandalm_annotators() -> None:
    rows = [json.loads(line) for line in PANDALM.read_text(encoding="utf-8").splitlines()]
    names = ["annotator1", "annotator2", "annotator3"]
    said = np.array([[row[name] for name in names] for row in rows])
    ratings = [(name, str(row["idx"]), str(row[name])) for row in rows for name in names]
    found = agreement(ratings, resamples=100)
    alpha = krippendorff.alpha(reliability_data=said.T, level_of_measurement="nominal")
    assert found.alpha.value == pytest.approx(alpha, abs=1e-12)
    assert found.alpha.low < alpha < found.alpha.high
    assert found.items == 999
    assert found.ac1.value == pytest.approx(0.88644, abs=5e-6), "irrCAC 0.4.4 on the same table"
    for one, two in ((0, 1), (0, 2), (1, 2)):
        pair = agreement([row for row in ratings if row[0] in (names[one], names[two])], resamples=20)
        assert pair.cohen is not None
        assert pair.cohen.value == pytest.approx(metrics.cohen_kappa_score(said[:, one], said[:, two]), abs=1e-12)

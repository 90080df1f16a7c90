from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta

import numpy as np
import pyarrow as pa
import pytest

from audit.doubt import estimated_error
from audit.estimates import estimate, hajek_mean, wilson
from audit.estimates.accuracy import Audit, accuracy
from audit.estimates.people import people
from audit.inclusion import inclusion
from audit.opinions import Opinions, opinions
from audit.selection import NONE, UNIFORM, draw, select
from audit.verdicts import Verdict, to_table
from store.errors import UsageError

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def verdict(pair: str, winner: str | None, auditor: str = "ann", minute: int = 0) -> Verdict:
    when = NOW + timedelta(minutes=minute)
    return Verdict(f"{pair}-{auditor}-{minute}", pair, auditor, winner, "a", 1.0, when, 0.5)


def population(n: int, seed: int = 0) -> tuple[Opinions, np.ndarray]:
    """One calibrated judge: right with the probability it states, so errors cluster where it is in doubt."""
    rng = np.random.default_rng(seed)
    p = rng.beta(1.2, 1.2, n)
    truth_is_a = rng.random(n) < p
    none = np.zeros((n, 1), dtype=np.bool_)
    return Opinions([f"p{i}" for i in range(n)], ["j"], ["f"], p[:, None], none, none), truth_is_a


def test_targeting_biases_the_naive_figure_and_hajek_removes_it() -> None:
    views, truth_is_a = population(1000)
    truth = float(((views.p_a[:, 0] > 0.5) == truth_is_a).mean())
    chance = inclusion(estimated_error(views), 150, 0.3)
    repeats = 400
    naive, weighted, errors, covered = [], [], [], 0
    corrected, corrected_covered = [], 0
    for seed in range(repeats):
        strata = np.array(draw(views.pair_ids, chance, seed))
        rows = np.flatnonzero(strata != NONE)
        everyone = np.ones(len(rows), dtype=np.bool_)
        audit = Audit(rows, truth_is_a[rows], everyone, chance.total[rows], strata[rows] == UNIFORM)
        row = accuracy("j", "f", views.p_a[:, 0], views.panel, audit)
        naive.append(row.naive)
        weighted.append(row.hajek)
        errors.append(row.hajek_std_error)
        covered += row.hajek_low <= truth <= row.hajek_high
        corrected.append(row.corrected)
        corrected_covered += row.corrected_low <= truth <= row.corrected_high
    spread = np.std(weighted)
    assert np.mean(naive) < truth - 0.02, "doubtful pairs are audited more often, and there the judge is wrong"
    assert abs(np.mean(weighted) - truth) < 4 * spread / math.sqrt(repeats) + 0.003
    assert np.mean(errors) == pytest.approx(spread, rel=0.12), "the linearised standard error is the real spread"
    assert 0.91 < covered / repeats < 0.985
    assert 0.91 < corrected_covered / repeats < 0.985
    assert np.std(corrected) < 0.97 * spread, "a calibrated judge's own opinions on all pairs help"
    assert abs(np.mean(corrected) - truth) < 4 * spread / math.sqrt(repeats) + 0.003


def test_wilson_on_the_uniform_stratum_covers() -> None:
    views, truth_is_a = population(1500, seed=1)
    right = (views.p_a[:, 0] > 0.5) == truth_is_a
    chance = inclusion(estimated_error(views), 120, 0.3)
    covered, sizes, repeats = 0, [], 500
    for seed in range(repeats):
        uniform = np.array(draw(views.pair_ids, chance, seed)) == UNIFORM
        low, high = wilson(int(right[uniform].sum()), int(uniform.sum()))
        covered += low <= right.mean() <= high
        sizes.append(uniform.sum())
    assert 0.925 < covered / repeats < 0.98
    assert np.mean(sizes) >= 0.3 * 120 * 0.97


def test_wilson_figures() -> None:
    """Closed form: (k + z^2/2) / (n + z^2) -+ z / (n + z^2) sqrt(k (n - k) / n + z^2 / 4)."""
    z = 1.959963984540054
    for k, n in [(0, 5), (5, 5), (37, 60)]:
        centre = (k + z**2 / 2) / (n + z**2)
        half = z / (n + z**2) * math.sqrt(k * (n - k) / n + z**2 / 4)
        assert wilson(k, n) == pytest.approx((centre - half, centre + half), abs=1e-9)
    assert wilson(0, 0) == (None, None)


def test_hajek_by_hand() -> None:
    y, chance = np.array([1.0, 0.0, 1.0, 1.0]), np.array([0.5, 0.25, 1.0, 0.5])
    found = hajek_mean(y, chance, 10)
    assert found is not None
    assert found.value == pytest.approx(5 / 9)
    # (1 - pi) (w e / (1 - w/W))^2 / W^2 with e the residual; and, with nothing that says where the zeros are, m (1 - m)
    # in place of e^2. What the ones' weights add to the variance is worth one error, so each counts for half.
    w, e = [2, 4, 1, 2], [4 / 9, -5 / 9, 4 / 9, 4 / 9]
    e = [value / (1 - weight / 9) for value, weight in zip(e, w, strict=True)]
    v = [0.5 * 4, 0.75 * 16, 0.0, 0.5 * 4]
    seen = sum(a * b**2 for a, b in zip(v, e, strict=True)) / 81
    expected = sum(v) * (5 / 9) * (4 / 9) / 81
    assert found.std_error == pytest.approx(math.sqrt((seen + expected) / 2))
    even = hajek_mean(y, np.full(4, 0.1), 40)
    assert even is not None
    assert even.value == 0.75, "equal chances: the plain mean"


def test_people_combine() -> None:
    table = to_table(
        [
            verdict("p0", "a"),
            verdict("p0", "b", minute=1),  # changed mind
            verdict("p1", "a"),
            verdict("p1", "b", "bob"),  # even split
            verdict("p2", "a"),
            verdict("p2", "tie", "bob"),
            verdict("p3", None),
            verdict("p4", "tie"),
        ]
    )
    said = people(table)
    assert (said.share_for_a, said.skipped) == ({"p0": 0.0, "p1": 0.5, "p2": 0.75, "p4": 0.5}, ["p3"])
    assert people(table, {"ann": 0.9, "bob": 0.6}).share_for_a["p1"] > 0.5, "the more reliable of the two"


def test_whole_account(make_pairs, make_votes) -> None:
    votes = make_votes(
        [(i, "right", order, 0.9) for i in range(6) for order in ("ab", "ba")]
        + [(i, "wrong", order, 0.2) for i in range(6) for order in ("ab", "ba")]
        + [(0, "shy", "ab", 0.9), (1, "shy", "ab", 0.5), (2, "shy", "ab", None)]
    )
    views = opinions(make_pairs(6), votes)
    selection = select(views, 6, 0.3, seed=1)
    verdicts = to_table([*(verdict(f"p{i}", "a") for i in range(4)), verdict("p4", "tie"), verdict("p5", None)])
    result = estimate(views, selection, verdicts)
    assert (result.decided, result.undecided, result.skipped) == (4, 1, 1)
    right, shy, wrong = result.judges
    assert (right.judge, right.naive, right.hajek, right.uniform) == ("right", 1.0, 1.0, 1.0)
    assert (wrong.judge, wrong.naive) == ("wrong", 0.0)
    assert (shy.audited, shy.unanswered, shy.naive) == (2, 2, 0.5), "exactly 1/2 is not right"
    assert result.panel.audited == 4
    assert right.uniform_audited == 4
    assert right.low == pytest.approx(0.5101, abs=1e-4)
    text = result.to_json()
    assert text["judges"][0]["fingerprint"] == "print-right"


def test_nothing_audited(make_pairs, make_votes) -> None:
    views = opinions(make_pairs(2), make_votes([(0, "j", "ab", 0.9)]))
    result = estimate(views, select(views, 0, 0.3, 1), to_table([]))
    assert result.decided == 0
    assert result.panel.hajek is None
    assert result.panel.low is None


@pytest.mark.parametrize("winner", ["a", None])
def test_a_verdict_that_the_selection_could_not_have_drawn(make_pairs, make_votes, winner: str | None) -> None:
    views = opinions(make_pairs(2), make_votes([(0, "j", "ab", 0.9)]))
    with pytest.raises(UsageError, match="'p1'"):
        estimate(views, select(views, 0, 0.3, 1), to_table([verdict("p1", winner)]))
    with pytest.raises(UsageError, match="'zz'"):
        estimate(views, select(views, 2, 0.3, 1), to_table([verdict("zz", winner)]))


def test_a_selection_without_the_extra_columns_is_enough(make_pairs, make_votes) -> None:
    views = opinions(make_pairs(1), make_votes([(0, "j", "ab", 0.9)]))
    bare = pa.table({"pair_id": ["p0"], "inclusion_probability": [0.5], "stratum": ["uniform"]})
    assert estimate(views, bare, to_table([verdict("p0", "a")])).panel.uniform == 1.0

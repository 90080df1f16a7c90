from __future__ import annotations

from collections import Counter

import numpy as np
import pyarrow as pa
import pytest
from scipy import stats

from audit.config import DoubtWeights
from audit.doubt import UNKNOWN, estimated_error, explain, raise_flags
from audit.draws import side, unit
from audit.inclusion import EVERY_OTHER, inclusion
from audit.opinions import opinions
from audit.selection import NONE, TARGETED, UNIFORM, Reasons, draw, hidden_gold, nothing_selected, select
from store.errors import UsageError
from store.schemas import ATTACKS, SELECTION
from store.tables import conform


def errors(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).beta(0.5, 2, n) / 2


def test_formula_without_caps() -> None:
    """CHECKS, Statistics 1."""
    u, n, eps = errors(1000), 50, 0.3
    expected = n * (eps / len(u) + (1 - eps) * np.sqrt(u) / np.sqrt(u).sum())
    assert expected.max() < 1
    np.testing.assert_allclose(inclusion(u, n, eps).total, expected)


def test_sharpness_is_the_power_of_the_doubt() -> None:
    u, n, eps = errors(1000), 50, 0.3
    chance = inclusion(u, n, eps, sharpness=2.0)
    expected = n * (eps / len(u) + (1 - eps) * u**2 / (u**2).sum())
    assert expected.max() < 1
    np.testing.assert_allclose(chance.total, expected)
    assert chance.total @ u > inclusion(u, n, eps).total @ u, "more of the wrong labels are expected among the drawn"
    assert chance.uniform >= eps * n / len(u) - 1e-12


@pytest.mark.parametrize("n", [0, 1, 10, 50, 90, 99, 100])
@pytest.mark.parametrize("eps", [0.3, 0.7, 1.0])
def test_sum_is_the_budget_and_parts_make_the_whole(n: int, eps: float) -> None:
    u = errors(100)
    u[:30] = 0
    chance = inclusion(u, n, eps)
    assert chance.total.sum() == pytest.approx(n)
    assert ((chance.total >= 0) & (chance.total <= 1)).all()
    assert ((chance.targeted >= 0) & (chance.targeted <= 1)).all()
    np.testing.assert_allclose(1 - (1 - chance.uniform) * (1 - chance.targeted), chance.total, atol=1e-12)
    assert chance.uniform >= eps * n / 100 - 1e-12


def test_caps_redistribute_in_proportion() -> None:
    u = np.array([0.5, 1e-6, 1e-6, 4e-6])
    chance = inclusion(u, 2, 0.3)
    assert chance.total[0] == 1
    shares = 0.3 / 4 + 0.7 * np.sqrt(u) / np.sqrt(u).sum()
    np.testing.assert_allclose(chance.total[1:], shares[1:] / shares[1:].sum())


def test_edges() -> None:
    assert inclusion(np.zeros(0), 5, 0.3).total.shape == (0,)
    assert inclusion(np.array([0.1, 0.4]), 7, 0.3).uniform == 1, "a census is a uniform sample"
    np.testing.assert_allclose(inclusion(np.zeros(4), 2, 0.3).total, 0.5)
    assert inclusion(np.full(10, 0.25), 4, 0.3).uniform == pytest.approx(0.4), "equal doubt leaves nothing to target"


def test_draws_have_their_probabilities() -> None:
    u = errors(60)
    chance = inclusion(u, 20, 0.3)
    ids = [f"p{i}" for i in range(60)]
    repeats = 2000
    strata = np.array([draw(ids, chance, seed) for seed in range(repeats)])
    frequency = (strata != NONE).mean(axis=0)
    z = (frequency - chance.total) / np.sqrt(chance.total * (1 - chance.total) / repeats)
    assert np.abs(z).max() < 4.5
    assert stats.chi2.sf((z**2).sum(), 60) > 1e-4
    uniform = (strata == UNIFORM).mean(axis=0)
    assert np.abs(uniform - chance.uniform).max() < 4.5 * np.sqrt(chance.uniform / repeats)
    # Independent between pairs: the number drawn has the variance of a sum of independent draws.
    sizes = (strata != NONE).sum(axis=1)
    assert sizes.mean() == pytest.approx(20, abs=0.5)
    assert sizes.var() == pytest.approx((chance.total * (1 - chance.total)).sum(), rel=0.15)


def test_unit_is_uniform_and_its_purposes_are_independent() -> None:
    x = np.array([unit(1, "x", str(i)) for i in range(5000)])
    y = np.array([unit(1, "y", str(i)) for i in range(5000)])
    assert stats.kstest(x, "uniform").pvalue > 1e-3
    assert abs(np.corrcoef(x, y)[0, 1]) < 0.06
    assert x.min() >= 0
    assert x.max() < 1
    assert unit(1, "x", "ab", "c") != unit(1, "x", "a", "bc")
    assert abs(np.mean([side(1, str(i)) == "a" for i in range(5000)]) - 0.5) < 0.03


@pytest.fixture
def views(make_pairs, make_votes):
    rng = np.random.default_rng(3)
    votes = [
        (i, judge, order, float(rng.beta(0.5, 0.5))) for i in range(200) for judge in "jk" for order in ("ab", "ba")
    ]
    return make_pairs(200), make_votes(votes)


def test_every_pair_has_a_row_and_a_reason(views) -> None:
    table = select(opinions(*views), 40, 0.3, seed=5)
    conform(table, SELECTION, "test")
    assert table["pair_id"].to_pylist() == views[0]["pair_id"].to_pylist()
    assert pa.compute.sum(table["inclusion_probability"]).as_py() == pytest.approx(40)
    rows = table.to_pylist()
    assert {row["stratum"] for row in rows} == {UNIFORM, TARGETED, NONE}
    for row in rows:
        assert row["drawn"] == (row["stratum"] != NONE)
        assert "panel 0." in row["reason"]
        assert row["reason"].startswith(
            {UNIFORM: "drawn uniformly", TARGETED: "drawn for its doubt", NONE: "not drawn"}[row["stratum"]]
        )


def test_selection_does_not_depend_on_the_order_of_rows(views) -> None:
    pairs, votes = views
    rng = np.random.default_rng(0)
    shuffled = opinions(pairs.take(rng.permutation(pairs.num_rows)), votes.take(rng.permutation(votes.num_rows)))
    one = {row["pair_id"]: row["stratum"] for row in select(opinions(pairs, votes), 40, 0.3, 5).to_pylist()}
    two = {row["pair_id"]: row["stratum"] for row in select(shuffled, 40, 0.3, 5).to_pylist()}
    assert one == two
    other = {row["pair_id"]: row["stratum"] for row in select(shuffled, 40, 0.3, 6).to_pylist()}
    assert one != other


def test_targeting_finds_doubt(views) -> None:
    rows = select(opinions(*views), 60, 0.3, seed=5).to_pylist()

    def doubt(stratum: str) -> float:
        return float(np.mean([row["judge_error"] for row in rows if row["stratum"] == stratum]))

    assert doubt(TARGETED) > doubt(NONE)


def test_nothing_selected_is_a_selection_table() -> None:
    assert conform(nothing_selected(), SELECTION, "test").num_rows == 0


def test_budget_zero_draws_nothing_and_says_so(views) -> None:
    table = select(opinions(*views), 0, 0.3, seed=5)
    assert not any(table["drawn"].to_pylist())
    assert set(table["inclusion_probability"].to_pylist()) == {0.0}


# reasons beyond the votes


def flagged(make_pairs, make_votes, n: int = 40):
    """Every pair has the same votes; p0 is in a new group, and half of p2's votes failed."""
    votes = [(i, "j", order, 0.8) for i in range(n) for order in ("ab", "ba")]
    votes = [(*vote[:3], None) if vote[0] == 2 and vote[2] == "ba" else vote for vote in votes]
    table = make_votes(votes)
    pairs = make_pairs(n)
    groups = pa.array(["new", *["g"] * (n - 1)])
    pairs = pairs.set_column(pairs.schema.names.index("group"), pairs.schema.field("group"), groups)
    return pairs, table


def attacked(*outcomes: tuple[str, str]) -> pa.Table:
    """ATTACKS of (pair, outcome), by two judges in turn."""
    rows = [
        {"attack_id": str(n), "pair_id": pair, "judge": "jk"[n % 2], "fingerprint": "f", "canary": f"c{n}"}
        | {"kind": "instruction", "target": "a", "outcome": outcome, "p_before": 0.2, "p_after": None}
        for n, (pair, outcome) in enumerate(outcomes)
    ]
    return pa.Table.from_pylist(rows, schema=ATTACKS.schema)


ON_P1 = attacked(
    ("p1", "flipped"), ("p1", "kept"), ("p1", "unanswered"), ("p1", "flipped"), ("p1", "tied"), ("p3", "kept")
)
"""Two of five attacks on p1 won a judge over, and none on p3."""


def test_flags_are_parts_of_the_doubt(make_pairs, make_votes) -> None:
    """By hand: margin 0.2, disagreement 0, flips 0 make 0.2 / 3; a flag of weight w adds w/2 above and w below."""
    pairs, votes = flagged(make_pairs, make_votes)
    views = opinions(pairs, votes)
    flags = raise_flags(pairs, votes, {"g"}, ON_P1)
    u = estimated_error(views, flags, DoubtWeights(new_group=3, gate_failure=2))
    assert u[3] == pytest.approx(0.2 / 3)
    assert u[0] == pytest.approx((0.2 + 3 * 0.5) / (3 + 3))
    assert u[1] == pytest.approx((0.2 + 0.4 * 0.5) / (3 + 0.4)), "attacked, and won over by two of five"
    # No judge answered p2 in both orders, so flips are unknown; half of its votes failed.
    assert u[2] == pytest.approx((0.2 + 2 * 0.5 * 0.5) / (2 + 2 * 0.5))
    without = estimated_error(views, flags, DoubtWeights(new_group=0, canary=0, gate_failure=0))
    np.testing.assert_allclose(without, estimated_error(views))
    assert (u >= without - 1e-12).all(), "a flag never lowers the doubt"


def test_fitted_labels_stand_for_the_votes_own_doubts(make_pairs, make_votes) -> None:
    pairs, votes = flagged(make_pairs, make_votes)
    views, labels = opinions(pairs, votes), np.linspace(0.02, 0.98, 40)
    labels[5] = np.nan
    u = estimated_error(views, labels=labels)
    assert u[5] == UNKNOWN, "no label is not a sure one"
    np.testing.assert_allclose(np.delete(u, 5), np.delete(np.minimum(labels, 1 - labels), 5))
    flags = raise_flags(pairs, votes, {"g"})
    assert estimated_error(views, flags, labels=labels)[0] == pytest.approx((3 * 0.02 + 0.5) / (3 + 1))
    without = DoubtWeights(labels=0)
    np.testing.assert_array_equal(estimated_error(views, None, without, labels), estimated_error(views))
    rows = select(views, 20, 0.3, 1, Reasons(labels=labels, sharpness=2.0)).to_pylist()
    assert any("labels 0.4" in row["reason"] for row in rows if row["stratum"] == TARGETED)


def test_attacks_that_failed_or_never_were_change_nothing(make_pairs, make_votes) -> None:
    pairs, votes = flagged(make_pairs, make_votes)
    views, without = opinions(pairs, votes), raise_flags(pairs, votes, {"g"})
    for attacks in (attacked(), attacked(("p1", "kept"), ("p4", "unanswered"), ("p5", "tied"))):
        flags = raise_flags(pairs, votes, {"g"}, attacks)
        np.testing.assert_array_equal(estimated_error(views, flags), estimated_error(views, without))
        assert select(views, 20, 0.3, 1, Reasons(flags)).equals(select(views, 20, 0.3, 1, Reasons(without)))


def test_attacks_on_other_pairs_are_refused(make_pairs, make_votes) -> None:
    pairs, votes = flagged(make_pairs, make_votes)
    with pytest.raises(UsageError, match="'p99', which is not among the 40 judged pairs"):
        raise_flags(pairs, votes, set(), attacked(("p1", "kept"), ("p99", "flipped")))


def test_no_group_is_new_before_the_first_audit(make_pairs, make_votes) -> None:
    pairs, votes = flagged(make_pairs, make_votes)
    assert raise_flags(pairs, votes, set()).new_group.sum() == 0


def test_reasons_name_the_parts_and_their_weights(make_pairs, make_votes) -> None:
    pairs, votes = flagged(make_pairs, make_votes)
    reasons = Reasons(raise_flags(pairs, votes, {"g"}, ON_P1), DoubtWeights(new_group=2))
    rows = select(opinions(pairs, votes), 20, 0.3, seed=1, reasons=reasons).to_pylist()
    targeted = select(opinions(pairs, votes), 39, 0.3, seed=1, reasons=reasons).to_pylist()
    assert "its group is new to audits" in rows[0]["reason"]
    assert "2 of 5 attacks on it won a judge over" in rows[1]["reason"]
    assert "attack" not in rows[3]["reason"]
    assert "50 % of the votes without a valid answer" in rows[2]["reason"]
    for row in [*rows, *targeted]:
        if row["stratum"] == TARGETED:
            assert "margin 0.20 x 1" in row["reason"]
    words = explain(opinions(pairs, votes), reasons.flags, reasons.weights)
    assert words[0] == "margin 0.20 x 1, disagreement 0.00 x 1, order flips 0.00 x 1, new group 0.50 x 2"
    assert words[1].endswith("canary 0.50 x 0.4")
    assert words[2] == "margin 0.20 x 1, disagreement 0.00 x 1, gate failure 0.50 x 0.5"


def test_weights_of_zero_leave_all_equal(make_pairs, make_votes) -> None:
    pairs, votes = flagged(make_pairs, make_votes)
    zero = DoubtWeights(margin=0, disagreement=0, order_flips=0, new_group=0, canary=0, gate_failure=0)
    np.testing.assert_allclose(estimated_error(opinions(pairs, votes), None, zero), 0.5)


# caps per group


def capped_by_bisection(u: np.ndarray, n: float, eps: float, groups: list[str], caps: dict[str, float]) -> np.ndarray:
    """The same probabilities by another road: one multiplier for all, found by bisection, and within a group that it
    would take over its cap a multiplier of the group's own, found so too."""
    q = eps / len(u) + (1 - eps) * np.sqrt(u) / np.sqrt(u).sum()
    names = np.array(groups)

    def scaled(rows: np.ndarray, total: float) -> np.ndarray:
        if total >= rows.sum():
            return np.ones(rows.sum())
        low, high = 0.0, 1e9
        for _ in range(200):
            middle = (low + high) / 2
            low, high = (middle, high) if np.minimum(1, middle * q[rows]).sum() < total else (low, middle)
        return np.minimum(1, low * q[rows])

    def at(k: float) -> np.ndarray:
        pi = np.minimum(1, k * q)
        for name, cap in caps.items():
            rows = names == name
            if pi[rows].sum() > cap:
                pi[rows] = scaled(rows, cap)
        return pi

    low, high = 0.0, 1e9
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if at(middle).sum() < n else (low, middle)
    return at(low)


@pytest.mark.parametrize(
    ("n", "caps"), [(30, {"x": 5}), (30, {"x": 5, "y": 8}), (60, {"x": 2, "y": 40}), (90, {"x": 9})]
)
def test_caps_against_bisection(n: int, caps: dict[str, float]) -> None:
    u = errors(100, seed=4)
    groups = ["x"] * 40 + ["y"] * 40 + ["z"] * 20
    chance = inclusion(u, n, 0.3, groups, caps)
    np.testing.assert_allclose(chance.total, capped_by_bisection(u, n, 0.3, groups, caps), atol=1e-6)
    for name, cap in caps.items():
        assert chance.total[np.array(groups) == name].sum() <= cap + 1e-9
    np.testing.assert_allclose(1 - (1 - chance.uniform) * (1 - chance.targeted), chance.total, atol=1e-12)


def test_caps_that_bind_everywhere_shrink_the_audit() -> None:
    chance = inclusion(errors(100), 50, 0.3, ["x"] * 50 + ["y"] * 50, {EVERY_OTHER: 7, "y": 3})
    assert chance.total[:50].sum() == pytest.approx(7)
    assert chance.total[50:].sum() == pytest.approx(3)
    np.testing.assert_allclose(inclusion(errors(100), 50, 0.3, ["x"] * 100, {"other": 3}).total.sum(), 50)


def test_draws_under_caps_have_their_probabilities() -> None:
    """Law 6: what is recorded is what happens, for capped and other groups alike."""
    u, groups = errors(60), ["x"] * 30 + ["y"] * 30
    chance = inclusion(u, 20, 0.3, groups, {"x": 4})
    ids, repeats = [f"p{i}" for i in range(60)], 2000
    drawn = np.array([[stratum != NONE for stratum in draw(ids, chance, seed)] for seed in range(repeats)])
    z = (drawn.mean(axis=0) - chance.total) / np.sqrt(chance.total * (1 - chance.total) / repeats)
    assert np.abs(z).max() < 4.5
    assert stats.chi2.sf((z**2).sum(), 60) > 1e-4
    assert drawn[:, :30].sum(axis=1).mean() == pytest.approx(4, abs=0.25)


# hidden gold


def test_hidden_gold_is_drawn_at_random_and_never_a_judged_pair(make_pairs) -> None:
    pairs, gold = make_pairs(5), make_pairs(50).append_column("winner", pa.array(["a"] * 50))
    one = hidden_gold(gold, pairs, 10, seed=1)["pair_id"].to_pylist()
    assert len(set(one)) == 10
    assert not set(one) & set(pairs["pair_id"].to_pylist())
    assert one == hidden_gold(gold, pairs, 10, seed=1)["pair_id"].to_pylist()
    assert one != hidden_gold(gold, pairs, 10, seed=2)["pair_id"].to_pylist()
    assert hidden_gold(gold, pairs, 100, seed=1).num_rows == 45
    assert hidden_gold(gold, pairs, 0, seed=1).num_rows == 0
    counts = Counter(name for seed in range(400) for name in hidden_gold(gold, pairs, 9, seed)["pair_id"].to_pylist())
    assert stats.chisquare([counts[f"p{i}"] for i in range(5, 50)]).pvalue > 1e-4

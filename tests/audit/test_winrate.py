"""Win rates, and the taste for length, against simulated truths and statsmodels."""

from __future__ import annotations

from datetime import UTC, datetime

import numpy as np
import pyarrow as pa
import pytest

from audit.estimates import length_controlled, win_rate
from audit.inclusion import inclusion
from audit.opinions import Opinions
from audit.verdicts import Verdict, to_table
from store.errors import UsageError
from store.schemas import SELECTION

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def world(n: int, seed: int = 0):
    """Judges who favour the policy by half a log-odds; the policy is a on even pairs and b on odd ones."""

    rng = np.random.default_rng(seed)
    p = rng.beta(2, 2, n)
    wins = (rng.random(n) < p).astype(float)
    wins = np.where(rng.random(n) < 0.1, 0.5, wins)
    f = 1 / (1 + (1 - p) / p * np.exp(-0.5))
    side = {f"p{i}": "ab"[i % 2] for i in range(n)}
    is_a = np.arange(n) % 2 == 0
    none = np.zeros((n, 1), dtype=np.bool_)
    views = Opinions([f"p{i}" for i in range(n)], ["j"], ["f"], np.where(is_a, f, 1 - f)[:, None], none, none)
    chance = inclusion(np.minimum(f, 1 - f), n // 5, 0.3).total
    drawn = rng.random(n) < chance
    selection = pa.table(
        {
            "pair_id": views.pair_ids,
            "inclusion_probability": chance,
            "drawn": drawn,
            "stratum": ["targeted" if one else "none" for one in drawn],
            "reason": [""] * n,
        },
        schema=SELECTION.schema,
    )
    rows = []
    for i in np.flatnonzero(drawn):
        winner = "tie" if wins[i] == 0.5 else side[f"p{i}"] if wins[i] == 1 else "ba"[i % 2]
        rows.append(Verdict(f"v{i}", f"p{i}", "ann", winner, "a", 5.0, NOW, float(chance[i])))
    return views, selection, to_table(rows), side, float(wins.mean()), float(f.mean())


def test_people_correct_the_judges() -> None:
    covered, errors = 0, []
    for seed in range(150):
        views, selection, verdicts, side, truth, judges = world(400, seed)
        found = win_rate(views, selection, verdicts, side)
        assert found.judges.value == pytest.approx(judges)
        covered += found.corrected.low <= truth <= found.corrected.high
        errors.append((found.judges.value - truth, found.corrected.value - truth))
    assert 0.9 <= covered / 150 <= 0.995
    judged, corrected = np.mean(errors, axis=0)
    assert judged > 0.07, "judges favour the policy"
    assert abs(corrected) < 0.012


def test_the_other_side_mirrors() -> None:
    views, selection, verdicts, side, _, _ = world(200)
    other = {pair: "ba"["ab".index(name)] for pair, name in side.items()}
    one, two = win_rate(views, selection, verdicts, side), win_rate(views, selection, verdicts, other)
    assert one.corrected.value == pytest.approx(1 - two.corrected.value)
    assert one.hajek.low == pytest.approx(1 - two.hajek.high)
    assert one.audited == verdicts.num_rows
    assert set(one.to_json()) == {"pairs", "audited", "judges", "naive", "hajek", "corrected"}


def test_sides_may_be_of_some_pairs_only() -> None:
    views, selection, verdicts, side, _, _ = world(200)
    some = {pair: name for pair, name in side.items() if int(pair[1:]) < 50}
    assert win_rate(views, selection, verdicts, some).pairs == 50
    assert win_rate(views, selection, verdicts, {}).corrected is None
    with pytest.raises(UsageError, match="'left'"):
        win_rate(views, selection, verdicts, {"p0": "left"})


def simulated_lengths(n: int, seed: int, taste: float = 0.8, skill: float = 0.3):
    rng = np.random.default_rng(seed)
    d = rng.normal(40, 100, n)
    z = skill + taste * np.tanh(d / d.std())
    return (rng.random(n) < 1 / (1 + np.exp(-z))).astype(float), d


def test_length_regression_is_statsmodels() -> None:
    sm = pytest.importorskip("statsmodels.api", reason="needs the extra labels: pip install 'rlaif[labels]'")
    wins, d = simulated_lengths(500, 0)
    wins[:50] = 0.5
    clusters = [f"x{i // 5}" for i in range(500)]
    found = length_controlled(wins, d, clusters)
    x = sm.add_constant(np.tanh(d / d.std()))
    groups = np.arange(500) // 5
    model = sm.GLM(wins, x, family=sm.families.Binomial()).fit(
        cov_type="cluster", cov_kwds={"groups": groups, "use_correction": False}
    )
    assert found.slope == pytest.approx(model.params[1], rel=0.01)
    assert found.win_rate == pytest.approx(1 / (1 + np.exp(-model.params[0])), abs=1e-3)
    half = (found.slope_high - found.slope_low) / 2
    # Student's t with 98 degrees of freedom, and 100 / 98 clusters.
    assert half == pytest.approx(1.984467 * (100 / 98) ** 0.5 * model.bse[1], rel=0.01)


def test_length_intervals_cover() -> None:
    slope = rate = 0
    for seed in range(300):
        found = length_controlled(*simulated_lengths(300, seed))
        slope += found.slope_low <= 0.8 <= found.slope_high
        rate += found.low <= 1 / (1 + np.exp(-0.3)) <= found.high
        assert found.plain > found.win_rate - 0.2
    assert 0.92 <= slope / 300 <= 0.985
    assert 0.92 <= rate / 300 <= 0.985


def test_length_edges() -> None:
    wins, d = simulated_lengths(100, 1)
    assert length_controlled(wins[:9], d[:9]) is None
    assert length_controlled(wins, np.zeros(100)) is None
    assert length_controlled(wins, d, ["one prompt"] * 100) is None
    separable = length_controlled((d > 0).astype(float), d)
    assert np.isfinite(separable.slope)
    assert separable.slope > 3
    mirrored = length_controlled(1 - wins, -d)
    assert mirrored.win_rate == pytest.approx(1 - length_controlled(wins, d).win_rate)

"""The gate before training: each figure against an independent source, each limit, and what it says when it stops."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from scipy.stats import binomtest, entropy

from judges.aggregation.labels import LABELS
from judges.aggregation.mean import MeanPreference
from judges.aggregation.methods import METHODS
from judges.aggregation.slots import slot_votes
from judges.config import GateConfig
from judges.gate import GateError, check_gate, decide, gold_agreement, label_entropy, panel_flips, table_of
from judges.metrics import judge_report
from store.schemas import GOLD

from .votes_builder import pairs_table, vote, votes_table

LIMITS = GateConfig()


def labels(*p_a: float) -> pa.Table:
    rows = [
        {"pair_id": f"p{at:03d}", "p_a": p, "source": "ai", "n_votes": 2, "votes_a": 1, "votes_b": 1}
        for at, p in enumerate(p_a)
    ]
    return pa.Table.from_pylist(rows, schema=LABELS.schema)


def panel(seed: int, pairs: int = 60, slot: float = 0.0) -> pa.Table:
    """Two judges, of whom one leans to the first slot by `slot`; some votes are ties or failures."""
    rng = np.random.default_rng(seed)
    rows = []
    for at in range(pairs):
        for judge, lean in (("even", 0.0), ("slotted", slot)):
            for order, sign in (("ab", 1), ("ba", -1)):
                p = float(np.clip(rng.uniform(0.2, 0.8) + sign * lean, 0.01, 0.99))
                odd = rng.random()
                rows.append(vote(f"p{at:03d}", judge, order, None if odd < 0.1 else 0.5 if odd < 0.2 else p))
    return votes_table(*rows)


def check(figure: str, of: str, checks: list[Any]) -> Any:
    (found,) = [one for one in checks if (one.figure, one.of) == (figure, of)]
    return found


def test_flips_and_failures_of_a_judge_are_those_of_its_report() -> None:
    votes = panel(1, slot=0.2)
    pairs = pairs_table(*sorted(set(votes["pair_id"].to_pylist())))
    checks = check_gate(votes, MeanPreference().predict(votes), pairs, LIMITS)
    report = judge_report(votes, pairs)
    for judge in ("even", "slotted"):
        flips = check("order flips", judge, checks)
        assert (flips.value, flips.n) == (report[judge]["order_flip_rate"], report[judge]["pairs_in_both_orders"])
        assert (flips.low, flips.high) == pytest.approx(
            (report[judge]["order_flip_low"], report[judge]["order_flip_high"])
        )
        failures = check("parse failures", judge, checks)
        assert failures.value == report[judge]["parse_failure_rate"]


def test_the_panel_flips_where_its_mean_does() -> None:
    votes = votes_table(
        vote("p1", "j", "ab", 0.9),
        vote("p1", "j", "ba", 0.4),
        vote("p1", "k", "ab", 0.6),
        vote("p1", "k", "ba", 0.7),  # means 0.75 and 0.55: no flip, though j flips
        vote("p2", "j", "ab", 0.9),
        vote("p2", "j", "ba", 0.1),
        vote("p2", "k", "ab", 0.6),  # k has one order only, and no say
        vote("p3", "j", "ab", 0.6),
        vote("p3", "j", "ba", 0.5),  # no winner in one order
        vote("p4", "j", "ab", 0.3),
        vote("p4", "k", "ba", 0.3),
    )
    assert panel_flips(slot_votes(votes)) == (1, 2)


@pytest.mark.parametrize("method", ["mean", "stacked"])
def test_agreement_is_cross_fitted(method: str) -> None:
    """Judges that know nothing agree with gold by chance, however many weights were fitted on it."""
    rng = np.random.default_rng(3)
    names = [f"g{number}" for number in range(80)]
    rows = [vote(name, f"j{j}", "ab", float(rng.uniform(0.05, 0.95))) for name in names for j in range(12)]
    votes = votes_table(*rows)
    gold = pairs_table(*names).append_column(GOLD.schema.field("winner"), pa.array(rng.choice(["a", "b"], 80).tolist()))
    right, n = gold_agreement(METHODS[method], votes, gold)
    assert n == 80
    assert binomtest(right, n).pvalue > 0.01
    knowing = votes_table(
        *(vote(row["pair_id"], "k", "ab", 0.9 if row["winner"] == "a" else 0.1) for row in gold.to_pylist())
    )
    assert gold_agreement(METHODS[method], knowing, gold) == (80, 80)
    assert gold_agreement(METHODS[method], knowing.slice(0, 30), gold) == (30, 80)  # no label is not right


def test_agreement_needs_its_lower_bound_and_enough_gold() -> None:
    votes, some = panel(2), labels(0.9, 0.2)

    def state(right: int, n: int) -> str:
        return str(
            check("agreement with gold", "panel", check_gate(votes, some, None, LIMITS, agreement=(right, n))).state
        )

    assert [state(14, 20), state(15, 20), state(1, 19), state(0, 0)] == ["broken", "ok", "few", "unmeasured"]
    found = check("agreement with gold", "panel", check_gate(votes, some, None, LIMITS, agreement=(15, 20)))
    interval = binomtest(15, 20).proportion_ci(method="wilson")
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high))


def test_entropy_is_that_of_scipy() -> None:
    p = [0.9, 0.5, 0.123, 1.0, 0.0, 1e-9]
    assert label_entropy(labels(*p)) == pytest.approx(np.mean([entropy([one, 1 - one], base=2) for one in p]))
    assert label_entropy(labels()) is None


def test_labels_that_say_nothing_or_everything_are_stopped() -> None:
    def state(config: GateConfig, *p: float) -> list[str]:
        found = check_gate(panel(2), labels(*p), None, config)
        return [one.state for one in found if one.figure == "label entropy"]

    assert state(LIMITS, *[0.52, 0.49] * 20) == ["broken"]
    assert state(LIMITS, *[0.7, 0.2] * 20) == ["ok"]
    assert state(GateConfig(min_label_entropy=0.1), *[1.0, 0.0] * 20) == ["ok", "broken"]


def test_the_length_slope_finds_labels_made_of_length() -> None:
    rng = np.random.default_rng(5)
    names = [f"p{number:03d}" for number in range(200)]
    lengths = rng.integers(20, 400, (200, 2))
    texts = {name: ("x" * int(a), "y" * int(b)) for name, (a, b) in zip(names, lengths, strict=True)}
    pairs = pairs_table(*names, **texts)
    longer = [0.95 if a > b else 0.05 for a, b in lengths]
    shuffled = rng.permutation(longer).tolist()
    d = (lengths[:, 0] - lengths[:, 1]).astype(float)
    for p, state in ((longer, "broken"), ([1 - one for one in longer], "broken"), (shuffled, "ok")):
        found = check("length slope", "panel", check_gate(panel(2), labels(*p), pairs, LIMITS))
        slope = np.linalg.lstsq(d[:, None] / np.sqrt(np.mean(d**2)), np.array(p) - 0.5, rcond=None)[0][0]
        assert found.value == pytest.approx(slope)
        assert found.low < found.value < found.high
        assert found.state == state
        if state == "broken":
            with pytest.raises(GateError, match=r"steeper than max_length_slope = 0\.\d"):
                decide([found], None)


def test_canaries_count_where_a_report_is_given() -> None:
    votes, some = panel(2), labels(0.9, 0.2)
    report = {"fingerprint-of-even": {"flipped": 30, "attempted": 40}, "another": {"flipped": 9, "attempted": 9}}
    checks = check_gate(votes, some, None, LIMITS, canaries=report)
    assert [check("canary flips", name, checks).state for name in ("even", "slotted")] == ["broken", "unmeasured"]


def test_a_few_bad_votes_stop_nothing() -> None:
    two = votes_table(vote("p1", "j", "ab", 0.9), vote("p1", "j", "ba", 0.1), vote("p2", "j", "ab", None))
    assert decide(check_gate(two, labels(0.9, 0.6), None, LIMITS), None)["passed"]


def test_it_stops_with_the_reason_and_the_table() -> None:
    votes = panel(1, pairs=300, slot=0.35)
    limits = GateConfig(max_judge_flip_rate=0.3, max_parse_failure_rate=0.02)
    checks = check_gate(votes, MeanPreference().predict(votes), None, limits)
    with pytest.raises(GateError) as stopped:
        decide(checks, None)
    said = str(stopped.value)
    assert said.count("above max_parse_failure_rate = 0.02") == 2
    assert "order flips of slotted" in said
    assert "--override-gate" in said
    assert "\n" not in said
    assert stopped.value.details == table_of(checks)
    assert len(stopped.value.details.splitlines()) == len(checks) + 1
    gone_on = decide(checks, "the slot is averaged out")
    assert (gone_on["passed"], gone_on["override"]) == (False, "the slot is averaged out")
    assert "order flips of slotted" in gone_on["broken"]
    # A reason that was not needed is not told as if it had been.
    assert decide([], "in case")["override"] is None


def test_limits_can_be_switched_off() -> None:
    names = [name for name in GateConfig.model_fields if name not in ("override", "min_gold_pairs")]
    off = GateConfig(**dict.fromkeys(names))
    votes = panel(1, pairs=300, slot=0.45)
    checks = check_gate(votes, labels(*[0.5] * 50), None, off, agreement=(0, 90))
    assert {one.state for one in checks} == {"off"}

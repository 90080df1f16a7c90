"""Who is set aside, who is not, and how reliable the others are."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import numpy as np
import pyarrow as pa
import pytest
from scipy.stats import fisher_exact

from audit.quarantine import BY_HAND, FAST, GOLD, INVERTED, LEFT, QUARANTINE, quarantine, spammer_score, without
from audit.reliability import reliability
from audit.verdicts import Verdict, to_table
from store.errors import UsageError
from store.limits import AuditorLimits
from store.tables import conform

NOW = datetime(2026, 1, 1, tzinfo=UTC)


class Office:
    """Auditors who answer the same items, with sides by a fair coin and the truth by another."""

    def __init__(self, items: int, gold: int, seed: int = 0) -> None:
        self.rng = np.random.default_rng(seed)
        self.truth = self.rng.choice(["a", "b"], items).tolist()
        self.gold = pa.table({"pair_id": [f"p{i}" for i in range(gold)], "winner": self.truth[:gold]})
        self.rows: list[Verdict] = []

    def add(self, name: str, right: float = 0.9, left: float | None = None, seconds: float = 20.0) -> None:
        """`right`: how often the truth is told; `left`: how often left is pressed instead, whatever the item is."""
        for i, truth in enumerate(self.truth):
            shown = str(self.rng.choice(["a", "b"]))
            if left is None:
                told = self.rng.random() < right
                winner = truth if told else "ab".replace(truth, "")
            else:
                winner = shown if self.rng.random() < left else "ab".replace(shown, "")
            when = NOW + timedelta(minutes=i)
            self.rows.append(Verdict(f"{name}-{i}", f"p{i}", name, winner, shown, seconds, when, 0.5))

    @property
    def verdicts(self) -> pa.Table:
        return to_table(self.rows)


def test_every_kind_of_troll_is_found_and_nobody_else() -> None:
    office = Office(200, 100)
    for name, right in (("careful", 0.95), ("hasty", 0.8), ("usual", 0.9)):
        office.add(name, right)
    office.add("inverter", 0.05)
    office.add("lefty", left=0.95)
    office.add("coin", left=0.5)
    office.add("racer", 0.9, seconds=0.5)
    report = quarantine(office.verdicts, office.gold)
    reasons = {row.auditor: set(row.reasons) for row in report.auditors}
    assert report.names == ("coin", "inverter", "lefty", "racer")
    assert reasons["inverter"] == {INVERTED, GOLD}
    assert LEFT in reasons["lefty"]
    assert reasons["coin"] == {GOLD}
    assert reasons["racer"] == {FAST}
    scores = {row.auditor: row.score for row in report.auditors}
    assert scores["inverter"] < -0.7 < -0.4 < scores["coin"] < 0.4 < 0.5 < scores["hasty"] < scores["careful"]
    assert report.set_aside == 800
    kept = without(office.verdicts, report.names)
    assert set(kept["auditor"].to_pylist()) == {"careful", "hasty", "usual"}
    assert office.verdicts.num_rows == 1400, "nothing is deleted"
    assert set(report.reliability) == {"careful", "hasty", "usual"}
    assert conform(report.table(), QUARANTINE, "the report").num_rows == 7
    assert report.to_json()["verdicts_set_aside"] == 800


def test_many_honest_auditors_are_all_kept() -> None:
    """100 offices of 8 honest people: Holm keeps the chance of any false alarm at the level of 5 %."""
    alarms = 0
    for seed in range(100):
        office = Office(30, 15, seed)
        for number in range(8):
            office.add(f"auditor {number}", 0.85)
        alarms += bool(quarantine(office.verdicts, office.gold, AuditorLimits(level=0.05)).names)
    assert alarms / 100 <= 0.05 + 3 * (0.05 * 0.95 / 100) ** 0.5


def test_p_values_are_fisher_s_and_binomial() -> None:
    office = Office(40, 40)
    office.add("ann", 0.4)
    row = quarantine(office.verdicts, office.gold).auditors[0]
    table = np.zeros((2, 2), dtype=int)
    for verdict in office.rows:
        truth = office.truth[int(verdict.pair_id[1:])]
        table[int(verdict.winner != verdict.shown_left), int(truth != verdict.shown_left)] += 1
    assert row.inverted_p == pytest.approx(fisher_exact(table, alternative="less").pvalue)
    assert row.score == pytest.approx(table[0, 0] / table[:, 0].sum() + table[1, 1] / table[:, 1].sum() - 1)
    assert row.gold_right == np.trace(table)


def test_spammer_score() -> None:
    assert spammer_score([("left", "left"), ("right", "right")])[0] == 1
    assert spammer_score([("right", "left"), ("left", "right")])[0] == -1
    assert spammer_score([("left", "left"), ("left", "right")])[0] == 0
    assert spammer_score([("tie", "left"), ("tie", "right")])[0] == 0
    assert spammer_score([("left", "left")]) is None
    assert spammer_score([("left", "tie"), ("left", "left")]) is None


def test_a_person_overrides_the_tests() -> None:
    office = Office(100, 60)
    office.add("inverter", 0.0)
    office.add("ann")
    limits = AuditorLimits(trusted=["inverter"], quarantined=["ann"])
    report = quarantine(office.verdicts, office.gold, limits)
    assert report.names == ("ann",)
    assert report.auditors[0].reasons == (BY_HAND,)
    assert quarantine(office.verdicts, office.gold, AuditorLimits(level=0)).names == ()
    marked = office.verdicts.append_column(
        "quarantined", pa.array([name == "ann" for name in office.verdicts["auditor"].to_pylist()])
    )
    assert quarantine(marked, None).names == ("ann",)
    with pytest.raises(UsageError, match="'ann' is named under both"):
        quarantine(office.verdicts, None, AuditorLimits(trusted=["ann"], quarantined=["ann"]))


def test_corrections_are_not_too_fast_and_unmeasured_times_count_for_nothing() -> None:
    first = Verdict("v0", "p0", "ann", "a", "a", 30.0, NOW, 0.5)
    changed = Verdict("v1", "p0", "ann", "b", "a", 0.4, NOW + timedelta(minutes=1), 0.5, supersedes="v0")
    blank = Verdict("v2", "p1", "ann", "b", "a", float("nan"), NOW, 0.5)
    row = quarantine(to_table([first, changed, blank])).auditors[0]
    assert (row.answers, row.timed, row.fast, row.fast_p, row.gold_p) == (2, 0, 0, None, None)


def test_nobody_answered() -> None:
    report = quarantine(to_table([]))
    assert (report.names, report.tests, report.table().num_rows) == ((), 0, 0)


@pytest.mark.parametrize(
    ("gold", "message"),
    [
        ({"pair_id": ["p0"], "winner": ["left"]}, "'left'"),
        ({"pair_id": ["p0", "p0"], "winner": ["a", "b"]}, "two answers"),
    ],
)
def test_bad_gold_is_named(gold: dict[str, list[str]], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        quarantine(to_table([]), pa.table(gold))


def test_reliability_with_gold_alone_is_the_smoothed_share() -> None:
    office = Office(50, 50)
    office.add("ann", 0.8)
    right = sum(row.winner == office.truth[int(row.pair_id[1:])] for row in office.rows)
    assert reliability(office.verdicts, office.gold) == {"ann": pytest.approx((8 + right) / 60)}


def test_reliability_from_agreement() -> None:
    office = Office(600, 0, seed=1)
    truths = {"one": 0.95, "two": 0.8, "three": 0.65, "four": 0.9}
    for name, right in truths.items():
        office.add(name, right)
    found = reliability(office.verdicts)
    for name, right in truths.items():
        assert found[name] == pytest.approx(right, abs=0.05)
    assert reliability(to_table(list(reversed(office.rows)))) == found


def test_gold_outweighs_a_majority_that_errs_together() -> None:
    """Two copy each other and are wrong on gold; the third is right there. Without gold the majority would win."""
    office = Office(100, 40, seed=2)
    office.add("right", 0.95)
    for name in ("wrong", "copy"):
        rng = np.random.default_rng(7)
        for i, truth in enumerate(office.truth):
            winner = truth if rng.random() < 0.5 else "ab".replace(truth, "")
            office.rows.append(Verdict(f"{name}-{i}", f"p{i}", name, winner, "a", 9.0, NOW, 0.5))
    blind, told = reliability(office.verdicts), reliability(office.verdicts, office.gold)
    assert blind["wrong"] > blind["right"]
    assert told["right"] > blind["right"] + 0.1
    assert told["wrong"] < blind["wrong"]


def test_who_knows_nothing_has_the_prior() -> None:
    alone = to_table([Verdict("v0", "p0", "ann", "a", "a", 9.0, NOW, 0.5)])
    assert reliability(alone) == {"ann": 0.8}
    ties = to_table([Verdict(f"v{i}", f"p{i}", "ann", "tie", "a", 9.0, NOW, 0.5) for i in range(50)])
    gold = pa.table({"pair_id": [f"p{i}" for i in range(50)], "winner": ["a"] * 50})
    assert reliability(ties, gold)["ann"] == pytest.approx((8 + 25) / 60), "a tie is half right"

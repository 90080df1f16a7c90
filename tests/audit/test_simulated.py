from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
from scipy import stats

from audit.simulated import START, Auditor, Pair, simulate
from audit.verdicts import Verdict, to_table
from store.schemas import VERDICTS
from store.tables import conform


def oracle(pairs: Sequence[Pair]) -> list[float | None]:
    """a is better on even pairs, b on odd ones."""
    return [0.5 if int(pair.pair_id[1:]) % 2 == 0 else -0.5 for pair in pairs]


def run(make_pairs, auditors: list[Auditor], n: int = 400, seed: int = 1, **more) -> list[Verdict]:
    chances = {f"p{i}": 0.5 for i in range(n)}
    return simulate(make_pairs(n), chances, auditors, more.pop("oracle", oracle), seed, **more)


def follows(verdict: Verdict) -> bool:
    return verdict.winner == ("a" if int(verdict.pair_id[1:]) % 2 == 0 else "b")


@pytest.mark.parametrize("accuracy", [0.0, 0.05, 0.8, 1.0])
def test_accuracy_is_what_was_asked(make_pairs, accuracy: float) -> None:
    rows = run(make_pairs, [Auditor("x", accuracy)])
    right = sum(map(follows, rows))
    assert stats.binomtest(right, 400, accuracy).pvalue > 1e-3
    if accuracy in (0.0, 1.0):
        assert right == 400 * accuracy


def test_rows_are_marked_and_deterministic(make_pairs) -> None:
    auditors = [Auditor("careful", 0.95), Auditor("hasty", 0.8)]
    rows = run(make_pairs, auditors)
    assert rows == run(make_pairs, auditors)
    assert rows != run(make_pairs, auditors, seed=2)
    assert {row.auditor for row in rows} == {"simulated-careful", "simulated-hasty"}
    assert all(row.simulated and row.inclusion_probability == 0.5 for row in rows)
    assert conform(to_table(rows), VERDICTS, "test").num_rows == 400
    shares = [sum(row.auditor.endswith(name) for row in rows) / 400 for name in ("careful", "hasty")]
    assert min(shares) > 0.4
    assert 0.4 < sum(row.shown_left == "a" for row in rows) / 400 < 0.6


def test_times_are_plausible(make_pairs) -> None:
    rows = run(make_pairs, [Auditor("x", 1.0)])
    seconds = [row.seconds for row in rows]
    assert all(1 < s < 60 for s in seconds)
    assert 4.5 < stats.scoreatpercentile(seconds, 50) < 6.5, "4 s and six words at 4 a second"
    times = [row.created_at for row in rows]
    assert times == sorted(times)
    assert (times[0] - START).total_seconds() == pytest.approx(seconds[0])


def test_overlap_means_different_auditors_with_their_own_sides(make_pairs) -> None:
    rows = run(make_pairs, [Auditor(name, 0.9) for name in "xyz"], n=100, overlap=2)
    assert len(rows) == 200
    assert len({(row.pair_id, row.auditor) for row in rows}) == 200
    by_pair: dict[str, set[str]] = {}
    for row in rows:
        by_pair.setdefault(row.pair_id, set()).add(row.shown_left)
    assert 20 < sum(len(sides) == 2 for sides in by_pair.values()) < 80


def test_ties_and_missing_scores(make_pairs) -> None:
    assert {row.winner for row in run(make_pairs, [Auditor("x", 1.0)], oracle=lambda pairs: [0.0] * len(pairs))} == {
        "tie"
    }
    wrong = run(make_pairs, [Auditor("x", 0.0)], oracle=lambda pairs: [0.0] * len(pairs))
    assert {row.winner for row in wrong} == {"a", "b"}
    unknown = run(make_pairs, [Auditor("x", 1.0)], n=2, oracle=lambda pairs: [None, math.nan])
    assert [row.winner for row in unknown] == [None, None]


def test_only_drawn_pairs_are_asked(make_pairs) -> None:
    seen: list[Pair] = []

    def watch(pairs: Sequence[Pair]) -> list[float | None]:
        seen.extend(pairs)
        return [1.0] * len(pairs)

    rows = simulate(make_pairs(10), {"p3": 0.2, "p7": 0.4}, [Auditor("x", 1.0)], watch, 1)
    assert seen == [Pair(f"p{i}", f"prompt {i}", f"first {i}", f"second {i}", None, "g") for i in (3, 7)]
    assert [row.inclusion_probability for row in rows] == [0.2, 0.4]
    assert simulate(make_pairs(3), {}, [Auditor("x", 1.0)], watch, 1) == []


def test_a_pair_is_judged_alike_whatever_else_is_drawn(make_pairs) -> None:
    many = {row.pair_id: row.winner for row in run(make_pairs, [Auditor("x", 0.5)], n=50)}
    few = simulate(make_pairs(50), {"p7": 0.5, "p8": 0.5}, [Auditor("x", 0.5)], oracle, 1)
    assert {row.pair_id: row.winner for row in few} == {name: many[name] for name in ("p7", "p8")}


def test_a_troll_always_errs_and_a_left_clicker_always_names_the_left(make_pairs) -> None:
    troll = run(make_pairs, [Auditor("t", 0.9, "troll")])
    assert not any(map(follows, troll))
    assert all(row.simulated and row.auditor == "simulated-t" for row in troll)
    left = run(make_pairs, [Auditor("l", 0.9, "left")])
    assert all(row.winner == row.shown_left for row in left)
    assert stats.binomtest(sum(map(follows, left)), 400, 0.5).pvalue > 1e-3
    blind = run(make_pairs, [Auditor("l", 0.9, "left")], n=3, oracle=lambda pairs: [None] * len(pairs))
    assert all(row.winner == row.shown_left for row in blind), "it never looks"

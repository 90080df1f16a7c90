from __future__ import annotations

import math

import numpy as np
import pytest

from audit.doubt import UNKNOWN, describe, estimated_error, minority
from audit.opinions import opinions
from store.errors import UsageError


def test_orders_are_averaged_and_flips_found(make_pairs, make_votes) -> None:
    votes = make_votes([(0, "j", "ab", 0.9), (0, "j", "ba", 0.3), (1, "j", "ab", 0.8), (1, "j", "ba", 0.6)])
    views = opinions(make_pairs(2), votes)
    assert views.p_a.tolist() == [[pytest.approx(0.6)], [pytest.approx(0.7)]]
    assert views.flipped.tolist() == [[True], [False]]
    assert views.both_orders.all()


def test_matches_a_slow_loop(make_pairs, make_votes) -> None:
    rng = np.random.default_rng(0)
    votes = [
        (pair, judge, order, None if rng.random() < 0.3 else float(rng.random()))
        for pair in range(30)
        for judge in ("k", "j", "l")
        for order in ("ab", "ba")
    ]
    rng.shuffle(votes)
    views = opinions(make_pairs(30), make_votes(votes))
    assert views.judges == ["j", "k", "l"]
    for pair in range(30):
        opinions_here = []
        for column, judge in enumerate(views.judges):
            given = [p for i, j, _, p in votes if i == pair and j == judge and p is not None]
            expected = sum(given) / len(given) if given else math.nan
            np.testing.assert_allclose(views.p_a[pair, column], expected)
            opinions_here += [expected] if given else []
        panel = sum(opinions_here) / len(opinions_here) if opinions_here else math.nan
        np.testing.assert_allclose(views.panel[pair], panel)


def test_nothing_is_imputed(make_pairs, make_votes) -> None:
    votes = make_votes(
        [
            (0, "j", "ab", 0.9),
            (0, "j", "ba", None, {"status": "parse_failure"}),
            (0, "k", "ab", None, {"status": "error"}),
            (1, "j", "ab", None),
        ]
    )
    views = opinions(make_pairs(2), votes)
    assert views.p_a[0, 0] == pytest.approx(0.9)
    assert np.isnan(views.p_a[0, 1])
    assert np.isnan(views.panel[1])
    assert not views.both_orders.any()


def test_a_failed_vote_with_a_stray_probability_counts_for_nothing(make_pairs, make_votes) -> None:
    views = opinions(make_pairs(1), make_votes([(0, "j", "ab", 0.9, {"status": "error"})]))
    assert np.isnan(views.p_a).all()


def test_winner_speaks_where_there_is_no_probability(make_pairs, make_votes) -> None:
    hard = {"status": "scored", "p_a": None}
    votes = make_votes(
        [
            (0, "j", "ab", None, hard | {"winner": "a"}),
            (1, "j", "ab", None, hard | {"winner": "b"}),
            (2, "j", "ab", None, {"status": "tie"}),
        ]
    )
    assert opinions(make_pairs(3), votes).p_a.ravel().tolist() == [1.0, 0.0, 0.5]


def test_fingerprints_make_judges(make_pairs, make_votes) -> None:
    """Law 5: two fingerprints are never pooled; one fingerprint under two names is one judge."""
    two = make_votes([(0, "j", "ab", 0.9), (0, "j", "ab", 0.1, {"fingerprint": "otherprint"})])
    assert opinions(make_pairs(1), two).judges == ["j@otherpri", "j@print-j"]
    one = make_votes([(0, "j", "ab", 0.9, {"fingerprint": "f"}), (0, "k", "ab", 0.1, {"fingerprint": "f"})])
    assert opinions(make_pairs(1), one).judges == ["j"]


@pytest.mark.parametrize(
    ("vote", "message"),
    [
        ((7, "j", "ab", 0.5), "'p7'"),
        ((0, "j", "up", 0.5), "'up'"),
        ((0, "j", "ab", 1.5), "1.5"),
        ((0, "j", "ab", math.nan), "nan"),
        ((0, "j", "ab", None, {"status": "scored"}), "scored"),
    ],
)
def test_impossible_votes_are_named(make_pairs, make_votes, vote, message) -> None:
    with pytest.raises(UsageError, match=message):
        opinions(make_pairs(2), make_votes([(0, "j", "ab", 0.5), vote]))


def test_doubt_by_hand(make_pairs, make_votes) -> None:
    votes = make_votes(
        [
            # 0: all sure and agreed.
            *[(0, judge, order, 1.0) for judge in "jkl" for order in ("ab", "ba")],
            # 1: one of three sure judges disagrees: margin 1/3, minority 1/3, no flip.
            *[(1, judge, order, float(judge != "j")) for judge in "jkl" for order in ("ab", "ba")],
            # 2: all flip: margin 1/2, all undecided so minority 1/2, flips 1/2.
            *[(2, judge, order, float(order == "ab")) for judge in "jkl" for order in ("ab", "ba")],
            # 3: one order only, so flips have no part: margin 0.2, minority 0.
            *[(3, judge, "ab", 0.8) for judge in "jkl"],
        ]
    )
    views = opinions(make_pairs(5), votes)
    assert minority(views).tolist() == [0, 1, 1.5, 0, 0]
    np.testing.assert_allclose(estimated_error(views), [0, 2 / 9, 0.5, 0.1, UNKNOWN], atol=1e-12)
    words = describe(views)
    assert words[1] == "panel 0.67 for a, 1 of 3 judges in the minority, 0 of 3 changed with the order"
    assert words[4] == "no judge gave an answer"


def test_doubt_does_not_depend_on_which_response_is_called_a(make_pairs, make_votes) -> None:
    rng = np.random.default_rng(1)
    votes = [(i, j, order, float(rng.random())) for i in range(50) for j in "jk" for order in ("ab", "ba")]
    mirrored = [(i, j, order, 1 - p) for i, j, order, p in votes]
    u = estimated_error(opinions(make_pairs(50), make_votes(votes)))
    np.testing.assert_allclose(u, estimated_error(opinions(make_pairs(50), make_votes(mirrored))))
    assert ((u >= 0) & (u <= 0.5)).all()

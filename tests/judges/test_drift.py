"""Drift: frozen anchors, askings that are kept, flips and shifts between them. Judges are real programs with rules."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
import yaml
from scipy.stats import binomtest

from judges.config import load_judge
from judges.drift import Anchors, Asking, anchors_of, check_drift, drift
from judges.judge import Judge
from store.errors import UsageError
from store.schemas import GOLD

from .votes_builder import pairs_table, vote, votes_table

NOW = datetime(2026, 3, 1, tzinfo=UTC)


def gold(count: int, tie: int = 0) -> pa.Table:
    names = [f"g{number:03d}" for number in range(count)]
    texts = {name: ("short", "a much longer answer, of many words" + "!" * at) for at, name in enumerate(names)}
    winners = ["tie" if at < tie else "a" for at in range(count)]
    return pairs_table(*names, **texts).append_column(GOLD.schema.field("winner"), pa.array(winners))


def judge(folder: Path, words: int) -> Judge:
    """Prefers responses of at most `words` words."""
    folder.mkdir(parents=True, exist_ok=True)
    rules = [
        {"name": "empty", "kind": "empty", "amount": 1.0},
        {"name": "long", "kind": "long", "words": words, "each": 0.1, "most": 0.9},
    ]
    (folder / "rubric.yaml").write_text(yaml.safe_dump({"version": 1, "rules": rules}))
    (folder / "judge.yaml").write_text(yaml.safe_dump({"name": "brief", "backend": "rubric", "rubric": "rubric.yaml"}))
    return load_judge(folder)


def test_anchors_are_picked_by_hash() -> None:
    many = gold(300, tie=10)
    picked = anchors_of(many, 50)
    assert picked.num_rows == 50
    assert not set(picked["winner"].to_pylist()) & {"tie"}
    assert anchors_of(many.take(list(range(300))[::-1]), 50).equals(picked)
    # A tenth of the pairs goes: most anchors stay.
    fewer = anchors_of(many.filter(pc.greater_equal(many["pair_id"], "g030")), 50)
    assert len(set(fewer["pair_id"].to_pylist()) & set(picked["pair_id"].to_pylist())) >= 40


def test_the_set_is_frozen(tmp_path: Path) -> None:
    anchors = Anchors(tmp_path)
    first = anchors.freeze(gold(60), 20)
    assert anchors.freeze(gold(300), 90).equals(first)
    with pytest.raises(UsageError, match="can be an anchor"):
        Anchors(tmp_path / "ties").freeze(gold(3, tie=3))


def test_a_judge_is_asked_when_its_fingerprint_changes(tmp_path: Path) -> None:
    anchors = Anchors(tmp_path / "anchors")
    anchors.freeze(gold(40), 30)
    brief = judge(tmp_path / "brief", 3)
    assert check_drift(brief, anchors, NOW) is None
    assert check_drift(brief, anchors, NOW) is None  # nothing changed: nothing asked
    assert len(anchors.askings("brief")) == 1
    same = check_drift(brief, anchors, NOW, force=True)
    assert same is not None
    assert (same.flips, same.pairs, same.fingerprint_changed) == (0, 30, False)
    changed = judge(tmp_path / "brief", 100)
    assert anchors.needs("brief", changed.digest)
    found = check_drift(changed, anchors, NOW)
    assert found is not None
    assert found.fingerprint_changed
    # Short is right; the changed judge has no view, and each of its answers is a tie.
    assert (found.flips, found.from_gold, found.toward_gold) == (30, 30, 0)
    assert found.shift["mean"] < 0 < found.moved["mean"]
    assert found.accuracy["difference"] == -1.0
    kept = anchors.askings("brief")
    assert [asking.number for asking in kept] == [1, 2, 3]
    assert kept[0].asked_at == "2026-03-01T00:00:00+00:00"
    assert check_drift(changed, anchors, NOW) == found  # from what is kept
    again = check_drift(changed, anchors, NOW, force=True)
    since = check_drift(changed, anchors, NOW, since_first=True)
    assert again is not None
    assert since is not None
    assert (again.flips, since.flips) == (0, 30)
    assert (since.before["number"], since.now["number"]) == (1, 4)


def test_askings_kept_at_the_same_time_have_numbers_of_their_own(tmp_path: Path) -> None:
    anchors = Anchors(tmp_path)
    anchors.freeze(gold(4), 4)
    names = anchors.pairs["pair_id"].to_pylist()
    votes = votes_table(*(vote(name, "brief", order, 0.9) for name in names for order in ("ab", "ba")))

    def keep(number: int) -> int:
        return anchors.keep("brief", f"{number:064x}", votes, NOW.isoformat()).number

    with ThreadPoolExecutor(8) as pool:
        numbers = list(pool.map(keep, range(24)))
    assert sorted(numbers) == list(range(1, 25))
    assert [one.number for one in anchors.askings("brief")] == list(range(1, 25))


def asking(number: int, p: dict[str, float | None]) -> Asking:
    rows = [vote(name, "j", order, value) for name, value in p.items() for order in ("ab", "ba")]
    return Asking("j", f"f{number}", number, "2026-01-01", votes_table(*rows))


def test_flips_of_equal_accuracy_are_seen() -> None:
    """As many answers turn right as turn wrong: the accuracy stays, the judge does not."""
    names = [f"g{number:03d}" for number in range(20)]
    right_first = dict(zip(names, [0.9] * 10 + [0.1] * 10, strict=True))
    right_last = dict(zip(names, [0.1] * 10 + [0.9] * 10, strict=True))
    found = drift(asking(1, right_first), asking(2, right_last), gold(20))
    assert found.accuracy["difference"] == 0
    assert (found.flips, found.flip_rate, found.toward_gold, found.from_gold) == (20, 1.0, 10, 10)
    interval = binomtest(20, 20).proportion_ci(method="wilson")
    assert (found.flip_low, found.flip_high) == pytest.approx((interval.low, interval.high))
    assert found.shift["mean"] == pytest.approx(0)
    assert found.moved["mean"] == pytest.approx(0.8)


def test_what_has_no_answer_is_counted_and_not_compared() -> None:
    before = asking(1, {"g000": 0.9, "g001": None, "g002": 0.4, "g999": 0.9})
    now = asking(2, {"g000": 0.8, "g001": 0.9, "g002": None, "g999": 0.1})
    found = drift(before, now, gold(3))
    assert (found.pairs, found.flips, found.answered_before, found.answered_now) == (1, 0, 2, 2)
    assert found.shift["mean"] == pytest.approx(-0.1)
    assert found.shift["low"] is None  # one prompt has no interval


def test_shifts_count_toward_the_gold_side() -> None:
    rng = np.random.default_rng(0)
    pairs = gold(50)
    winners = rng.choice(["a", "b"], 50).tolist()
    pairs = pairs.set_column(pairs.schema.get_field_index("winner"), GOLD.schema.field("winner"), pa.array(winners))
    names = pairs["pair_id"].to_pylist()
    before = {name: 0.7 if won == "a" else 0.3 for name, won in zip(names, winners, strict=True)}
    now = {name: p + 0.1 if p > 0.5 else p - 0.1 for name, p in before.items()}
    found = drift(asking(1, before), asking(2, now), pairs)
    assert found.shift["mean"] == pytest.approx(0.1)
    assert found.shift["low"] == pytest.approx(0.1)
    assert found.flips == 0

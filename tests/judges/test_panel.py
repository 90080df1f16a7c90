"""The panel: both orders, nothing lost, nothing asked twice, winners in terms of rollouts."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Generator, Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from judges.backends import base
from judges.backends.base import Call, Reply, Scores
from judges.backends.program import ProgramBackend
from judges.judge import Judge, load_judge
from judges.metrics import account
from judges.modes import Finding
from judges.panel import Limits, Panel, judge_pairs, soft_preferences
from judges.requests import ORDERS
from judges.scoring import Item, score_responses
from judges.votes import asks_about, vote_id, vote_of
from store.errors import RlaifError, UsageError
from store.schemas import VOTES, Status
from store.tables import conform

from .conftest import Folder, make_pair

PAIRS = [make_pair(number) for number in range(9)]


def plain(votes: pa.Table) -> list[dict[str, Any]]:
    """The rows without what the clock says."""
    return votes.drop_columns(["latency_s"]).to_pylist()


def rows_of(judge: Judge, finding: Finding, **reply: Any) -> dict[str, dict[str, Any]]:
    """order -> the row of a vote that found this."""
    rows = {}
    for ask in asks_about(judge, [make_pair(1)]):
        call = Call(ask.id, ask.subject, "", Scores())
        rows[ask.what.order] = vote_of(judge, ask, Reply(call, **reply), finding)
    assert tuple(rows) == ORDERS
    return rows


def test_every_judge_votes_on_every_pair_in_both_orders(tiny_judge: Judge, rubric_judge: Judge) -> None:
    told: list[tuple[str, int, int]] = []
    votes = judge_pairs(
        [tiny_judge, rubric_judge],
        PAIRS,
        seed=0,
        progress=lambda what, done, total, note="": told.append((what, done, total)),
    )
    conform(votes, VOTES, "votes")
    rows = votes.to_pylist()
    assert len(rows) == 2 * len(PAIRS) * 2
    keys = [(row["pair_id"], row["judge"], row["order"]) for row in rows]
    assert keys == sorted(set(keys))
    for row in rows:
        assert row["vote_id"] == vote_id(row["pair_id"], row["fingerprint"], row["order"])
    assert account(votes)["attempted"] == sum(account(votes).values()) - account(votes)["attempted"] == 36
    assert told[-1] == ("judge rules", 18, 18)


def test_a_program_sees_rollouts_not_slots(rubric_judge: Judge) -> None:
    long, short = "a b c d e f g h i j", "a b c"
    votes = judge_pairs(
        [rubric_judge], [make_pair(1, long, short), make_pair(2, short, long), make_pair(3, "a b", "c d")], seed=0
    )
    by_pair: dict[str, set[tuple[Any, ...]]] = {}
    for row in votes.to_pylist():
        by_pair.setdefault(row["rollout_a"], set()).add((row["status"], row["winner"], round(row["p_a"], 6)))
    p = round(1 / (1 + pow(2.718281828459045, -5)), 6)
    assert by_pair == {
        "rollout1a": {("scored", "b", round(1 - p, 6))},
        "rollout2a": {("scored", "a", p)},
        "rollout3a": {("tie", None, 0.5)},
    }


def test_a_slot_judge_is_flipped_back(tiny_judge: Judge) -> None:
    first = rows_of(tiny_judge, Finding(Status.SCORED, 0.9))
    assert (first["ab"]["winner"], first["ab"]["p_a"]) == ("a", 0.9)
    assert (first["ba"]["winner"], first["ba"]["p_a"]) == ("b", pytest.approx(0.1))


@pytest.mark.parametrize("status", [Status.ABSTAIN, Status.PARSE_FAILURE, Status.ERROR])
def test_an_invalid_vote_stays_invalid_in_either_order(tiny_judge: Judge, status: Status) -> None:
    for row in rows_of(tiny_judge, Finding(status)).values():
        assert (row["status"], row["winner"], row["p_a"]) == (status, None, None)


def test_cost_follows_the_price_list(judge_folder: Folder) -> None:
    judge = load_judge(judge_folder(price={"input": 2.0, "output": 10.0}))
    for row in rows_of(judge, Finding(Status.SCORED, 0.9), tokens_in=1000, tokens_out=50).values():
        assert row["cost"] == pytest.approx(0.0025)


def test_a_killed_run_goes_on_where_it_stopped(tiny_judge: Judge, tmp_path: Path) -> None:
    whole = judge_pairs([tiny_judge], PAIRS, seed=0)
    journalled = judge_pairs([tiny_judge], PAIRS, seed=0, shards=tmp_path / "whole")
    assert plain(journalled) == plain(whole)
    (journal,) = (tmp_path / "whole").rglob("*.jsonl")
    lines = journal.read_bytes().splitlines(keepends=True)
    # What a kill leaves: five votes, half of a sixth, and an error that is worth another try.
    failed = {**json.loads(lines[7]), "status": "error", "winner": None, "p_a": None, "error": "hiccup"}
    part = tmp_path / "part" / tiny_judge.fingerprint / journal.name
    part.parent.mkdir(parents=True)
    part.write_bytes(b"".join(lines[:5]) + json.dumps(failed).encode() + b"\n" + lines[6][:40])
    told: list[int] = []
    again = judge_pairs(
        [tiny_judge],
        PAIRS,
        seed=0,
        shards=tmp_path / "part",
        progress=lambda what, done, total, note="": told.append(done),
    )
    assert told == list(range(5, 19)), "only what was missing is asked"
    assert plain(again) == plain(whole), "to the bit: the same batches were laid again"
    size = sum(path.stat().st_size for path in part.parent.iterdir())
    assert plain(judge_pairs([tiny_judge], PAIRS, seed=0, shards=tmp_path / "part")) == plain(again)
    assert sum(path.stat().st_size for path in part.parent.iterdir()) == size, "a finished journal is only read"


def test_a_journal_serves_other_pairs_too(rubric_judge: Judge, tmp_path: Path) -> None:
    judge_pairs([rubric_judge], PAIRS, seed=0, shards=tmp_path)
    votes = judge_pairs([rubric_judge], [*PAIRS[5:], make_pair(50)], seed=0, shards=tmp_path)
    assert plain(votes) == plain(judge_pairs([rubric_judge], [*PAIRS[5:], make_pair(50)], seed=0))


def test_a_judge_beyond_its_limits_fails_the_run(judge_folder: Folder, tmp_path: Path) -> None:
    judge = load_judge(judge_folder(files={}, batch_tokens=600))
    pairs = [make_pair(number, a="the river runs " * 400) for number in range(40)]
    told: list[int] = []
    with pytest.raises(RlaifError, match=r"Judge tiny gave 10 errors in 10 votes .*context holds 512.*max_error_rate"):
        judge_pairs(
            [judge],
            pairs,
            seed=0,
            limits=Limits(max_error_rate=0.2, after=10),
            progress=lambda what, done, total, note="": told.append(done),
        )
    assert told[-1] == 10
    with pytest.raises(RlaifError, match="4 errors in 4 votes"):
        judge_pairs([judge], pairs[:2], seed=0, limits=Limits(max_error_rate=0.2, after=100))
    assert judge_pairs([judge], pairs[:2], seed=0).num_rows == 4, "without limits every error is a row"


def test_a_few_errors_are_no_high_rate_because_they_come_early(tiny_judge: Judge) -> None:
    pairs = [make_pair(n, a="the river runs " * 400 if n % 4 == 0 else None) for n in range(40)]
    votes = judge_pairs([tiny_judge], pairs, seed=0, limits=Limits(max_error_rate=0.3, after=5))
    assert account(votes)["error"] == 20


def test_parse_failures_have_a_limit_of_their_own(judge_folder: Folder) -> None:
    judge = load_judge(judge_folder(mode="pairwise_verdict", max_new_tokens=2))
    votes = judge_pairs([judge], PAIRS[:3], seed=0)
    assert account(votes)["parse_failure"] == 6
    with pytest.raises(RlaifError, match="6 parse failures in 6 votes"):
        judge_pairs([judge], PAIRS[:3], seed=0, limits=Limits(max_parse_failure_rate=0.5))


class LosesOne(ProgramBackend):
    def answer(self, calls: Iterable[Call]) -> Generator[Reply, None, None]:
        replies = super().answer(calls)
        next(replies)
        yield from replies


def test_a_backend_that_loses_requests_is_found_out(rubric_judge: Judge, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(base.BACKENDS, "rubric", f"{__name__}:LosesOne")
    with pytest.raises(RlaifError, match="17 of 18"):
        judge_pairs([rubric_judge], PAIRS, seed=0)


def test_an_absent_package_is_named(rubric_judge: Judge, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(base.BACKENDS, "rubric", "no_such_package.backend:Backend")
    with pytest.raises(UsageError, match="pip install no_such_package"):
        judge_pairs([rubric_judge], PAIRS, seed=0)


def test_doubles_are_refused(tiny_judge: Judge, rubric_judge: Judge, judge_folder: Folder) -> None:
    with pytest.raises(UsageError, match="named tiny"):
        judge_pairs([tiny_judge, tiny_judge], PAIRS, seed=0)
    with pytest.raises(UsageError, match="fingerprint"):
        judge_pairs([tiny_judge, load_judge(judge_folder("same-but-renamed"))], PAIRS, seed=0)
    with pytest.raises(UsageError, match=PAIRS[0].pair_id):
        judge_pairs([rubric_judge], [*PAIRS, PAIRS[0]], seed=0)
    with pytest.raises(UsageError, match="No judge"):
        judge_pairs([], PAIRS, seed=0)


def test_no_pairs_no_votes(rubric_judge: Judge) -> None:
    votes = judge_pairs([rubric_judge], [], seed=0)
    assert (votes.num_rows, votes.schema) == (0, VOTES.schema)


def test_a_panel_stays_loaded(tiny_judge: Judge, rubric_judge: Judge) -> None:
    with Panel([tiny_judge, rubric_judge]) as panel:
        once, twice = panel.judge(PAIRS[:3]), panel.judge(PAIRS[:3])
        other = panel.judge(PAIRS[3:])
    assert plain(once) == plain(twice) == plain(judge_pairs([tiny_judge, rubric_judge], PAIRS[:3], seed=0))
    assert set(soft_preferences(other)) == {pair.pair_id for pair in PAIRS[3:]}


def test_scores_of_responses(tiny_judge: Judge, rubric_judge: Judge) -> None:
    scores = score_responses(rubric_judge, [Item("q", "a b c"), Item("q", ""), Item("q", "a b c d e f g", "r", "g")])
    assert [round(score.value, 6) for score in scores] == [1.0, 0.0, 0.8]
    assert scores[1].deductions[0][0] == "empty"
    with pytest.raises(UsageError, match="tiny"):
        score_responses(tiny_judge, [Item("q", "a")])


def test_the_panel_loads_no_backend_before_it_is_needed() -> None:
    code = (
        "import sys, judges.panel, judges.scoring, judges.config, flows.stages.judge, flows.stages.aggregate;"
        "print(sorted({'torch', 'transformers', 'aiohttp', 'prefect'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"

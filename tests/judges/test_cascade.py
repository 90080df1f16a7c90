"""Cascades: who is asked about what, whose answer counts, and what it cost."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Generator, Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pytest
import yaml

from flows.specs import STAGES
from judges.backends import base
from judges.backends.base import Call, Reply
from judges.backends.program import ProgramBackend
from judges.cascade import compose, savings, total_cost, unsure
from judges.collect import Limits
from judges.config import JudgeStageConfig
from judges.judge import Judge, load_judge
from judges.metrics import account, judge_report
from judges.pairs import pairs_to_table
from judges.panel import Judged, Panel, judge_pairs, soft_preferences, together
from store.errors import RlaifError, UsageError
from store.schemas import GOLD, PROMPTS, ROLLOUTS, VOTES
from store.stage import Source, run_stage
from store.tables import read_table, write_table

from .conftest import PROMPT, Folder, make_pair
from .recording_server import RecordingServer
from .test_pairs import tables
from .votes_builder import vote, votes_table

CASCADE = {"backend": "cascade", "first": "../cheap", "then": "../dear"}
# The cheap judge counts words beyond five; the dear one beyond two, and is sure at the least difference.
PAIRS = [make_pair(number, "a b c d e " + "x " * (number % 4), "a b c " + "y " * (number % 5)) for number in range(12)]


def rubric(words: int) -> dict[str, str]:
    rule = {"name": "too long", "kind": "long", "words": words, "each": 0.1, "most": 1.0}
    return {"rubric.yaml": json.dumps({"version": 1, "rules": [rule]})}


@pytest.fixture
def folder(judge_folder: Folder, tmp_path: Path) -> Path:
    """A cascade beside its members."""
    about: dict[str, Any] = {"backend": "rubric", "rubric": "rubric.yaml", "model": ..., "min_mass": ...}
    judge_folder("cheap", None, rubric(5), scale=0.1, price={"input": 1}, **about)
    judge_folder("dear", None, rubric(2), scale=0.01, price={"input": 20}, **about)
    return write_cascade(tmp_path / "both")


def write_cascade(place: Path, **settings: Any) -> Path:
    place.mkdir(exist_ok=True)
    (place / "judge.yaml").write_text(yaml.safe_dump({"name": place.name, **CASCADE, **settings}))
    return place


class Counting(ProgramBackend):
    """A program whose calls cost tokens, and are written down; `FAILS` names the judges that only fail."""

    asked: list[tuple[str, str]] = []  # noqa: RUF012  what all of them were asked
    opened: list[str] = []  # noqa: RUF012
    fails: set[str] = set()  # noqa: RUF012

    def __init__(self, judge: Judge) -> None:
        super().__init__(judge)
        self._name = judge.name
        Counting.opened.append(judge.name)

    def answer(self, calls: Iterable[Call]) -> Generator[Reply, None, None]:
        for reply in super().answer(calls):
            Counting.asked.append((self._name, reply.call.id))
            about: dict[str, Any] = {"tokens_in": 1000, "tokens_out": 7, "latency_s": 0.25, "attempts": 2}
            broken = self._name in Counting.fails
            scores = None if broken else reply.scores
            yield Reply(reply.call, scores=scores, error="status 500: no" if broken else None, **about)


@pytest.fixture(autouse=True)
def counting(monkeypatch: pytest.MonkeyPatch) -> None:
    for seen in (Counting.asked, Counting.opened, Counting.fails):
        seen.clear()
    monkeypatch.setitem(base.BACKENDS, "rubric", f"{__name__}:Counting")


def judged(judges: list[Judge], **about: Any) -> Judged:
    return Panel(judges, keep_loaded=False, **about).ask(PAIRS)


def of(votes: pa.Table, judge: Judge) -> dict[tuple[str, str], dict[str, Any]]:
    rows = votes.filter(pc.equal(votes["fingerprint"], judge.fingerprint)).to_pylist()
    return {(row["pair_id"], row["order"]): row for row in rows}


def test_the_second_judge_is_asked_where_the_first_is_unsure(folder: Path) -> None:
    cascade = load_judge(folder)
    cheap, dear = cascade.members
    found = judged([cascade])
    own, members = of(found.votes, cascade), found.member_votes
    assert account(found.votes)["attempted"] == len(own) == 24
    first, second = of(members, cheap), of(members, dear)
    doubted = {
        pair
        for pair, order in first
        if abs(first[pair, order]["p_a"] - 0.5) < 0.2 or first[pair, order]["winner"] is None
    }
    assert 0 < len(doubted) < 12
    assert {pair for pair, _ in second} == doubted
    values = ("status", "winner", "p_a", "rationale", "raw", "error", "mass", "rollout_a", "rollout_b", "prompt_id")
    for key, row in own.items():
        decided, label = (second, dear) if key[0] in doubted else (first, cheap)
        assert row["answered_by"] == f"{label.name}@{label.fingerprint}"
        assert {name: row[name] for name in values} == {name: decided[key][name] for name in values}
        calls = [votes[key] for votes in (first, second) if key in votes]
        for name in ("tokens_in", "tokens_out", "cost", "latency_s", "attempts"):
            assert row[name] == pytest.approx(sum(call[name] for call in calls)), name
    assert len(Counting.asked) == len(set(Counting.asked)) == 24 + 2 * len(doubted)
    assert {row["answered_by"] for row in members.to_pylist()} == {None}


def test_a_member_in_the_panel_is_asked_once(folder: Path, tmp_path: Path) -> None:
    cascade = load_judge(folder)
    alone = judged([cascade])
    Counting.asked.clear()
    found = judged([cascade, *cascade.members], shards=tmp_path / "shards")
    assert len(Counting.asked) == len(set(Counting.asked)) == 48
    assert {path.name for path in (tmp_path / "shards").iterdir()} == {one.fingerprint for one in cascade.members}
    assert list(of(found.votes, cascade).values()) == list(of(alone.votes, cascade).values())
    assert judged([cascade, *cascade.members], shards=tmp_path / "shards").votes.equals(found.votes)
    assert len(Counting.asked) == 48
    # Each call is paid once, in whatever tables its price is told.
    assert total_cost(found.votes, found.member_votes, found.ratings) == pytest.approx(24 * 0.001 + 24 * 0.02)
    escalated = len(of(alone.member_votes, cascade.members[1]))
    assert total_cost(alone.votes, alone.member_votes, alone.ratings) == pytest.approx(24 * 0.001 + escalated * 0.02)
    assert total_cost(found.member_votes, found.member_votes, found.ratings) == pytest.approx(24 * 0.021)


def test_a_failing_member_of_the_panel_is_not_asked_again_for_the_cascade(folder: Path, tmp_path: Path) -> None:
    Counting.fails.add("cheap")
    cascade = load_judge(folder)
    judged([cascade.members[0], cascade], shards=tmp_path / "shards")
    assert len([name for name, _ in Counting.asked if name == "cheap"]) == 24


def test_an_error_of_the_second_judge_stays_one(folder: Path) -> None:
    Counting.fails.add("dear")
    cascade = load_judge(folder)
    own = of(judged([cascade]).votes, cascade)
    broken = [row for row in own.values() if row["answered_by"].startswith("dear@")]
    assert broken
    assert all((row["status"], row["p_a"], row["winner"]) == ("error", None, None) for row in broken)
    assert all(row["error"] == "status 500: no" for row in broken)
    assert soft_preferences(pa.Table.from_pylist(list(own.values()), schema=VOTES.schema)).keys() == {
        row["pair_id"] for row in own.values() if row not in broken
    }
    with pytest.raises(RlaifError, match=r"Judge dear gave .* errors"):
        judged([cascade], limits=Limits(max_error_rate=0.5))


def test_limits_hold_over_all_questions(folder: Path) -> None:
    """A last round of two votes that fail is no judge that fails; but what failed before is not forgotten."""
    cheap = load_judge(folder).members[0]
    with Panel([cheap], limits=Limits(max_error_rate=0.25, after=1000)) as panel:
        panel.ask(PAIRS[:4])
        Counting.fails.add("cheap")
        panel.ask(PAIRS[4:5])
        with pytest.raises(RlaifError, match="Judge cheap gave 4 errors in 12 votes"):
            panel.ask(PAIRS[5:6])


def test_an_error_of_the_first_judge_goes_to_the_second_unless_told_otherwise(folder: Path) -> None:
    Counting.fails.add("cheap")
    cascade = load_judge(folder)
    assert {row["status"] for row in of(judged([cascade]).votes, cascade).values()} <= {"scored", "tie"}
    stays = load_judge(write_cascade(folder, on_no_preference=False))
    assert {row["status"] for row in of(judged([stays]).votes, stays).values()} == {"error"}
    with pytest.raises(RlaifError, match="Judge cheap gave 24 errors"):
        judged([cascade], limits=Limits(max_error_rate=0.5))


RULES = [
    # ab, ba: p_a or a status; by margin, by flip, by no preference
    ((0.9, 0.9), ()),
    ((0.65, 0.65), ("margin",)),
    ((0.31, 0.33), ("margin",)),
    ((0.7, 0.7), ()),
    ((0.1, 0.2), ()),
    ((0.99, 0.45), ("flip",)),
    ((0.9, 0.1), ("margin", "flip")),
    ((0.5, 0.99), ("no_preference",)),
    ((0.5, 0.5), ("margin", "no_preference")),
    ((0.9, "parse_failure"), ("no_preference",)),
    ((0.6, "error"), ("margin", "no_preference")),
    (("abstain", "abstain"), ("no_preference",)),
]


@pytest.mark.parametrize(("answers", "reasons"), RULES, ids=str)
@pytest.mark.parametrize("only", ["margin", "flip", "no_preference"])
def test_each_reason_to_be_unsure_can_be_switched(
    folder: Path, answers: tuple[float | str, ...], reasons: tuple[str, ...], only: str
) -> None:
    switches = {"margin": 0.2 * (only == "margin"), "on_flip": only == "flip"}
    cascade = load_judge(write_cascade(folder, **switches, on_no_preference=only == "no_preference"))
    rows = [
        vote("p", "j", order, None, answer) if isinstance(answer, str) else vote("p", "j", order, answer)
        for order, answer in zip(("ab", "ba"), answers, strict=True)
    ]
    assert unsure(cascade, votes_table(*rows)) == ({"p"} if only in reasons else set())


def test_no_votes_no_doubts(folder: Path) -> None:
    cascade = load_judge(folder)
    assert compose(cascade, VOTES.schema.empty_table(), VOTES.schema.empty_table()).num_rows == 0
    found = Panel([cascade], keep_loaded=False).ask([])
    assert (found.votes.num_rows, found.member_votes.num_rows) == (0, 0)
    assert Counting.opened == []


def test_the_second_judge_is_not_even_loaded_where_the_first_is_sure(folder: Path) -> None:
    sure = [make_pair(1, "a " * 40, "a")]
    judge_pairs([load_judge(folder)], sure, seed=0)
    assert Counting.opened == ["cheap"]


def test_the_saving_is_told(folder: Path) -> None:
    cascade = load_judge(folder)
    found = judged([cascade])
    report = judge_report(
        found.votes, pairs_to_table(PAIRS), savings([cascade], found.votes, found.member_votes, found.ratings)
    )
    saving = report["both"]["saving"]
    escalated = len(of(found.member_votes, cascade.members[1])) // 2
    assert (saving["pairs"], saving["escalated"], saving["escalated_share"]) == (12, escalated, escalated / 12)
    assert saving["cost"] == {
        "first": pytest.approx(0.024),
        "then": pytest.approx(0.04 * escalated),
        "then_alone": pytest.approx(0.48),
        "saved": pytest.approx(1 - (0.024 + 0.04 * escalated) / 0.48),
    }
    assert saving["calls"]["first"] == 48
    assert saving["calls"]["then_alone"] == 48
    assert saving["calls"]["then"] == 4 * escalated
    assert saving["tokens"]["first"] == 24 * 1007
    assert saving["estimated"]
    # With the second judge in the panel its price for all pairs is known, and the same here.
    both = judged([cascade.members[1], cascade])
    assert savings([cascade], both.votes, both.member_votes, both.ratings)["both"] == {**saving, "estimated": False}
    assert savings(cascade.members, both.votes, both.member_votes, both.ratings) == {}
    json.dumps(saving, allow_nan=False)


def test_a_saving_of_nothing_is_not_invented(folder: Path) -> None:
    cascade = load_judge(folder)
    found = Panel([cascade], keep_loaded=False).ask([make_pair(1, "a " * 40, "a")])
    saving = savings([cascade], found.votes, found.member_votes, found.ratings)["both"]
    assert (saving["escalated"], saving["cost"]["then_alone"], saving["cost"]["saved"]) == (0, None, None)


def test_a_cascade_of_cascades(folder: Path, judge_folder: Folder, tmp_path: Path) -> None:
    about: dict[str, Any] = {"backend": "rubric", "rubric": "rubric.yaml", "model": ..., "min_mass": ...}
    judge_folder("best", None, rubric(1), scale=0.001, price={"input": 100}, **about)
    outer = load_judge(write_cascade(tmp_path / "outer", first="../both", then="../best", margin=0.499))
    assert [judge.name for judge in outer.asked] == ["cheap", "dear", "best"]
    found = judged([outer])
    rows = of(found.votes, outer).values()
    assert {row["answered_by"].split("@")[0] for row in rows} == {"dear", "best"}
    for row in rows:
        members = [one for one in found.member_votes.to_pylist() if one["pair_id"] == row["pair_id"]]
        assert row["cost"] == pytest.approx(sum(one["cost"] for one in members if one["order"] == row["order"]))
    saving = savings([outer], found.votes, found.member_votes, found.ratings)["outer"]
    assert saving["escalated"] == sum(row["answered_by"].startswith("best@") for row in rows) / 2
    assert saving["cost"]["then_alone"] == pytest.approx(24 * 0.1)


def test_a_cascade_is_its_members_and_its_rule(folder: Path, judge_folder: Folder, tmp_path: Path) -> None:
    cascade = load_judge(folder)
    prints = {cascade.fingerprint, *(member.fingerprint for member in cascade.members)}
    assert len(prints) == 3
    same = load_judge(
        write_cascade(tmp_path / "elsewhere", first=str(folder.parent / "cheap"), then="../dear", name="x")
    )
    assert (same.fingerprint, same.name) == (cascade.fingerprint, "x")
    changes: list[dict[str, Any]] = [
        {"margin": 0.1},
        {"on_flip": False},
        {"on_no_preference": False},
        {"first": "../dear", "then": "../cheap"},
    ]
    for change in changes:
        prints.add(load_judge(write_cascade(folder, **change)).fingerprint)
    (folder.parent / "dear" / "rubric.yaml").write_text(rubric(3)["rubric.yaml"])
    prints.add(load_judge(write_cascade(folder)).fingerprint)
    assert len(prints) == 3 + len(changes) + 1


def test_the_shipped_cascade() -> None:
    cascade = load_judge("tiny-cascade")
    assert [member.fingerprint for member in cascade.members] == [
        load_judge(name).fingerprint for name in ("tiny-middling", "tiny-good")
    ]


WRONG = [
    ({"first": "./nobody"}, r"first = './nobody' is neither a shipped judge nor the folder of one"),
    ({"then": "tiny-nobody"}, r"then = 'tiny-nobody' is neither a shipped judge"),
    ({"then": "../cheap"}, r"both first and then ask the judge cheap"),
    ({"then": "../both"}, r"then = '../both' leads back to this cascade"),
    ({"then": "."}, r"then = '\.' leads back to this cascade"),
    ({"margin": 0.6}, r"margin = 0\.6"),
    ({"margin": 0, "on_flip": False, "on_no_preference": False}, r"never be unsure"),
    ({"price": {"input": 1}}, r"has no price of its own"),
    ({"model": "m"}, r"unknown key model"),
]


@pytest.mark.parametrize(("settings", "sentence"), WRONG, ids=lambda value: str(value)[:40])
def test_what_cannot_be_a_cascade_is_said(folder: Path, settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence) as caught:
        load_judge(write_cascade(folder, **settings))
    assert str(folder / "judge.yaml") in str(caught.value)


def test_a_loop_of_two_cascades_is_said(folder: Path, tmp_path: Path) -> None:
    write_cascade(tmp_path / "other", first="../both", then="../dear")
    with pytest.raises(UsageError, match="leads back"):
        load_judge(write_cascade(folder, then="../other"))


def test_a_live_panel_has_its_members_loaded(folder: Path) -> None:
    cascade = load_judge(folder)
    with Panel([cascade, cascade.members[0]], seed=0) as panel:
        assert sorted(Counting.opened) == ["cheap", "dear"]
        parts = [panel.ask(PAIRS[:5]), panel.ask(PAIRS[5:])]
    assert sorted(Counting.opened) == ["cheap", "dear"]
    whole = judged([cascade, cascade.members[0]])
    assert together(parts).votes.equals(whole.votes)
    assert together(parts).member_votes.equals(whole.member_votes)
    assert soft_preferences(whole.votes).keys() == {pair.pair_id for pair in PAIRS}


def test_votes_of_a_cascade_are_a_table_of_votes(folder: Path, tmp_path: Path) -> None:
    cascade = load_judge(folder)
    found = judged([cascade, *cascade.members])
    assert found.votes.schema.equals(VOTES.schema)
    write_table(tmp_path / "votes.parquet", VOTES, found.votes)
    write_table(tmp_path / "member_votes.parquet", VOTES, found.member_votes)


@pytest.mark.parametrize("pairs", ["all", "swiss"])
def test_the_judge_stage_keeps_members_votes_and_tells_the_saving(folder: Path, tmp_path: Path, pairs: str) -> None:
    texts = [["x " * (2 + (3 * i + 5 * j) % 11) for j in range(5)] for i in range(6)]
    rollouts, prompts = tables(texts)
    gold = [vars(make_pair(100 + n, "a " * (n + 3), "a")) | {"winner": "b"} for n in range(4)]
    find = STAGES["judge"].inputs[0].source
    files = {
        "rollouts": write_table(tmp_path / "rollouts.parquet", ROLLOUTS, rollouts),
        "prompts": write_table(tmp_path / "prompts.parquet", PROMPTS, prompts),
        "calibration": write_table(tmp_path / "gold.parquet", GOLD, pa.Table.from_pylist(gold, schema=GOLD.schema)),
    }
    inputs: dict[str, list[Source]] = {name: [find(str(path))] for name, path in files.items()}
    judge_input = next(one for one in STAGES["judge"].inputs if one.name == "judge")
    cascade = load_judge(folder)
    inputs["judge"] = [judge_input.source(str(place)) for place in (folder, cascade.members[0].folder)]
    config = JudgeStageConfig.model_validate({"pairs": pairs, "pairs_per_prompt": 4})
    outcome = run_stage("judge", STAGES["judge"].load(), inputs=inputs, config=config, seed=3, out=tmp_path / "out")
    metrics = outcome.manifest.metrics
    votes = read_table(outcome.folder / "votes.parquet", VOTES)
    known = read_table(outcome.folder / "calibration_votes.parquet", VOTES)
    members = read_table(outcome.folder / "member_votes.parquet", VOTES)
    assert metrics["votes"]["attempted"] == votes.num_rows == 4 * metrics["pairs"]
    assert known.num_rows == 4 * 4
    asked = Counter(row["judge"] for row in members.to_pylist())
    assert asked["cheap"] == 2 * (metrics["pairs"] + 4)
    assert Counter(name for name, _ in Counting.asked) == asked, "every call once, and every call kept"
    assert metrics["cost"] == pytest.approx(asked["cheap"] * 0.001 + asked["dear"] * 0.02)
    saving = metrics["per_judge"]["both"]["saving"]
    assert saving["pairs"] == metrics["pairs"]
    assert 0 < saving["escalated"] < saving["pairs"]
    assert "saving" not in metrics["per_judge"]["cheap"]
    # Another rule is another judge, and so another key of the stage.
    prints = {cascade.digest, judge_input.source(str(write_cascade(folder, margin=0.1))).identity}
    assert len(prints | {inputs["judge"][0].identity}) == 2


def test_a_pointwise_member_is_paid_by_its_ratings(judge_folder: Folder, tmp_path: Path) -> None:
    server = RecordingServer(0)
    try:
        about: dict[str, Any] = {"backend": "openai", "model": "m", "base_url": server.url, "concurrency": 2}
        rate = "<question>{{ prompt }}</question><answer>{{ response }}</answer> From 1 to 10:"
        judge_folder("cheap", rate, mode="rating", answers=["1", "2"], price={"input": 1}, **about)
        judge_folder("dear", PROMPT, price={"input": 20}, **about)
        cascade = load_judge(write_cascade(tmp_path / "both"))
        found = judged([cascade])
    finally:
        server.close()
    rated = found.ratings.to_pylist()
    assert len(rated) == 24, "each response once, not once for each order"
    escalated = {row["pair_id"] for row in found.votes.to_pylist() if row["answered_by"].startswith("dear@")}
    assert 0 < len(escalated) < 12
    assert server.calls.total() == 24 + 2 * len(escalated)
    second = of(found.member_votes, cascade.members[1]).values()
    first_cost, second_cost = (sum(row["cost"] for row in rows) for rows in (rated, second))
    saving = savings([cascade], found.votes, found.member_votes, found.ratings)["both"]
    assert saving["calls"]["first"] == 24
    assert saving["calls"]["then"] == 2 * len(escalated)
    assert saving["cost"]["first"] == pytest.approx(first_cost)
    assert saving["cost"]["then"] == pytest.approx(second_cost)
    assert total_cost(found.votes, found.member_votes, found.ratings) == pytest.approx(first_cost + second_cost)

"""Pointwise judges against a real server: each rollout once, votes that follow, nothing lost or paid twice."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from judges.judge import Judge, load_judge
from judges.metrics import account
from judges.pairs import Pair
from judges.panel import Limits, Panel, judge_pairs
from judges.ratings import rate_rollouts, rating_report, rollouts_in, unique, votes_from_ratings
from store.errors import RlaifError, UsageError
from store.schemas import RATINGS, VOTES
from store.tables import conform, read_table, write_table

from .answering import Answer, Answering
from .conftest import Folder, make_pair

SINGLE = "<question>{{ prompt }}</question>\n<answer>{{ response }}</answer>\nUp or down?"
FLAWS = SINGLE + "\n{% for question in questions %}{{ question.name }}: <{{ question.question }}>\n{% endfor %}"
QUESTIONS = [
    {"name": "rude", "question": "Is it rude?", "weight": 3},
    {"name": "long", "question": "Is it long?", "weight": 1, "unsure": 0.25},
]

SAID: dict[str, Answer] = {
    "good": {"up": 0.8, "down": 0.1},
    "fair": {"up": 0.6, "down": 0.3},
    "also fair": {"up": 0.6, "down": 0.3},
    "even": {"up": 0.4, "down": 0.4},
    "silent": {"Hm": 0.9, "up": 0.05},
    "broken": None,
    "garbled": "I cannot say.",
    "polite": "rude: no\nlong: no",
    "polite but long": "Well.\nrude: no\nlong: yes",
    "perhaps long": "rude: no\nlong: unsure",
    "rude": "rude: yes\nlong: no",
    "unclear": "rude: unsure\nlong: unsure",
}


def answer(text: str) -> Answer:
    found = re.search(r"<answer>(.*)</answer>", text)
    assert found
    return SAID[found.group(1)]


@pytest.fixture
def server() -> Iterator[Answering]:
    with Answering(answer) as running:
        yield running


def judge_at(folder: Folder, server: Answering, mode: str = "thumbs", name: str = "", **settings: Any) -> Judge:
    values: dict[str, Any] = {"backend": "openai", "model": "m", "base_url": server.url, "min_mass": 0.5, "mode": mode}
    values |= {"price": {"input": 2.0, "output": 10.0}, "max_attempts": 1, "concurrency": 4}
    values |= {"questions": QUESTIONS} if mode == "flaws" else {}
    return load_judge(folder(name or mode, FLAWS if mode == "flaws" else SINGLE, **{**values, **settings}))


def texts(number: int, a: str, b: str) -> Pair:
    return make_pair(number, a, b)


def plain(table: pa.Table) -> list[dict[str, Any]]:
    return table.drop_columns(["latency_s"]).to_pylist()


def by_response(pairs: list[Pair], ratings: pa.Table) -> dict[str, dict[str, Any]]:
    response_of = {rollout.rollout_id: rollout.response for rollout in rollouts_in(pairs)}
    return {response_of[row["rollout_id"]]: row for row in ratings.to_pylist()}


THUMBS = [
    texts(1, "good", "fair"),
    texts(2, "fair", "also fair"),
    texts(3, "even", "silent"),
    texts(4, "broken", "even"),
]


def test_each_rollout_is_rated_once(judge_folder: Folder, server: Answering) -> None:
    judge = judge_at(judge_folder, server)
    pairs = [texts(1, "good", "fair"), texts(2, "even", "silent")]
    one = pairs[0]
    turned = {"rollout_a": one.rollout_b, "rollout_b": one.rollout_a, "response_a": "fair", "response_b": "good"}
    again = Pair(**{**vars(one), "pair_id": "again", **turned})
    ratings = rate_rollouts([judge], rollouts_in([*pairs, again]), seed=0)
    conform(ratings, RATINGS, "ratings")
    assert len(server.shown) == ratings.num_rows == 4
    rows = by_response(pairs, ratings)
    good = rows["good"]
    assert (good["status"], good["thumb"], good["score"]) == ("scored", "up", pytest.approx(8 / 9))
    assert (good["mass"], good["raw"], good["attempts"]) == (pytest.approx(0.9), "up", 1)
    words = len(server.shown[0].split())
    assert (good["tokens_in"], good["tokens_out"]) == (words, 2)
    assert good["cost"] == pytest.approx((words * 2 + 2 * 10) / 1e6)
    assert (rows["even"]["status"], rows["even"]["thumb"], rows["even"]["score"]) == ("tie", None, 0.5)
    assert (rows["silent"]["status"], rows["silent"]["score"]) == ("abstain", None)


def test_votes_follow_from_ratings(judge_folder: Folder, server: Answering) -> None:
    judge = judge_at(judge_folder, server, scale=0.2)
    votes = judge_pairs([judge], THUMBS, seed=0)
    conform(votes, VOTES, "votes")
    rows: dict[str, list[dict[str, Any]]] = {}
    for row in votes.to_pylist():
        rows.setdefault(row["rollout_a"], []).append(row)
    assert {tuple(row["order"] for row in both) for both in rows.values()} == {("ab", "ba")}
    for row in rows["rollout1a"]:
        p_a = 1 / (1 + math.exp(-(8 / 9 - 6 / 9) / 0.2))
        assert (row["status"], row["winner"], row["p_a"]) == ("scored", "a", pytest.approx(p_a))
        assert "a: 0.889" in row["rationale"]
    for row in rows["rollout2a"]:
        assert (row["status"], row["winner"], row["p_a"]) == ("tie", None, 0.5)
    for row in rows["rollout3a"]:
        assert (row["status"], row["winner"], row["p_a"], row["error"]) == ("abstain", None, None, None)
    for row in rows["rollout4a"]:
        assert (row["status"], row["winner"], row["p_a"]) == ("error", None, None)
        assert "400" in row["error"]
    for name in ("tokens_in", "tokens_out", "cost", "latency_s", "attempts"):
        assert set(votes[name].to_pylist()) == {0}, "paid for in the ratings"
    assert account(votes)["attempted"] == 8


@pytest.mark.parametrize(
    ("one", "other", "status"),
    [
        ("garbled", "polite", "parse_failure"),
        ("polite", "unclear", "abstain"),
        ("unclear", "garbled", "parse_failure"),
        ("garbled", "broken", "error"),
        ("broken", "unclear", "error"),
    ],
)
def test_the_worse_status_counts(judge_folder: Folder, server: Answering, one: str, other: str, status: str) -> None:
    judge = judge_at(judge_folder, server, "flaws", parse_attempts=1)
    for row in judge_pairs([judge], [texts(1, one, other)], seed=0).to_pylist():
        assert (row["status"], row["p_a"], row["winner"]) == (status, None, None)


def test_flaws_add_up_to_a_quality(judge_folder: Folder, server: Answering) -> None:
    judge = judge_at(judge_folder, server, "flaws", parse_attempts=2)
    pairs = [texts(1, "polite", "polite but long"), texts(2, "perhaps long", "rude"), texts(3, "unclear", "garbled")]
    ratings = rate_rollouts([judge], rollouts_in(pairs), seed=0)
    rows = by_response(pairs, ratings)
    scores = {response: row["score"] for response, row in rows.items()}
    expected = {"polite": 1.0, "polite but long": 0.75, "perhaps long": 1 - 0.25 / 4, "rude": 0.25}
    assert scores == {**expected, "unclear": None, "garbled": None}
    assert dict(rows["perhaps long"]["flaws"]) == {"rude": "no", "long": "unsure"}, "an unsure is kept as such"
    assert (rows["unclear"]["status"], dict(rows["unclear"]["flaws"])) == (
        "abstain",
        {"rude": "unsure", "long": "unsure"},
    )
    assert rows["polite but long"]["rationale"] == "Well."
    assert (rows["garbled"]["status"], rows["garbled"]["attempts"]) == ("parse_failure", 2)
    report = rating_report(ratings)["flaws"]
    assert report["attempted"] == 6
    assert report["scored"] + report["tie"] + report["abstain"] + report["parse_failure"] + report["error"] == 6
    assert report["flaws"] == {
        "rude": {"yes": pytest.approx(1 / 4), "unsure": pytest.approx(1 / 5)},
        "long": {"yes": pytest.approx(1 / 3), "unsure": pytest.approx(2 / 5)},
    }
    assert report["cost"] == pytest.approx(sum(ratings["cost"].to_pylist()))


def test_new_weights_ask_nothing_again(judge_folder: Folder, server: Answering, tmp_path: Path) -> None:
    pairs = [texts(1, "polite but long", "rude")]
    about: dict[str, Any] = {"seed": 0, "shards": tmp_path / "journal"}
    first = judge_at(judge_folder, server, "flaws")
    before = rate_rollouts([first], rollouts_in(pairs), **about)
    asked = len(server.shown)
    light = [{**QUESTIONS[0], "weight": 1}, {**QUESTIONS[1], "weight": 4}]
    second = judge_at(judge_folder, server, "flaws", questions=light)
    after = rate_rollouts([second], rollouts_in(pairs), **about)
    assert len(server.shown) == asked
    assert [row["score"] for row in by_response(pairs, before).values()] != [
        row["score"] for row in by_response(pairs, after).values()
    ]
    assert {text: row["score"] for text, row in by_response(pairs, after).items()} == {
        "polite but long": pytest.approx(0.2),
        "rude": pytest.approx(0.8),
    }
    (row, _) = votes_from_ratings(second, pairs, before).to_pylist()
    assert row["winner"] == "b", "by the weights of today, whatever the table says"


def test_ratings_resume(judge_folder: Folder, server: Answering, tmp_path: Path) -> None:
    judge = judge_at(judge_folder, server, concurrency=1)
    whole = rate_rollouts([judge], rollouts_in(THUMBS), seed=0)
    told: list[int] = []

    def killed(what: str, done: int, total: int, note: str = "") -> None:
        told.append(done)
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        rate_rollouts([judge], rollouts_in(THUMBS), seed=0, shards=tmp_path, progress=killed)
    asked = len(server.shown)
    again = rate_rollouts([judge], rollouts_in(THUMBS), seed=0, shards=tmp_path, shard_rows=2)
    assert len(server.shown) - asked == 8 - 3
    assert plain(again) == plain(whole)


def test_ratings_at_hand_are_not_asked_again(judge_folder: Folder, server: Answering, tmp_path: Path) -> None:
    judge = judge_at(judge_folder, server)
    ratings = rate_rollouts([judge], rollouts_in(THUMBS), seed=0)
    ratings = read_table(write_table(tmp_path / "ratings.parquet", RATINGS, ratings), RATINGS)
    asked = len(server.shown)
    judged = Panel([judge], seed=0, keep_loaded=False, ratings=ratings).ask(THUMBS)
    assert len(server.shown) == asked
    assert judged.ratings.num_rows == ratings.num_rows == 8
    assert plain(judged.votes) == plain(judge_pairs([judge], THUMBS, seed=0))
    more = Panel([judge], seed=0, keep_loaded=False, ratings=ratings).ask([*THUMBS, texts(9, "good", "even")])
    assert more.ratings.num_rows == 10
    with pytest.raises(UsageError, match="no rating of the rollout rollout9a"):
        votes_from_ratings(judge, [texts(9, "good", "even")], ratings)


def test_one_id_may_stand_for_many_texts(judge_folder: Folder, server: Answering) -> None:
    """As in a live probe, where every response of the policy is called policy."""
    pairs = [
        Pair(f"pair{number}", f"x{number}", f"what {number}?", "policy", "reference", a, b)
        for number, (a, b) in enumerate([("good", "fair"), ("fair", "good"), ("good", "even")])
    ]
    votes = judge_pairs([judge_at(judge_folder, server)], pairs, seed=0)
    winners = {row["pair_id"]: row["winner"] for row in votes.to_pylist()}
    assert winners == {"pair0": "a", "pair1": "b", "pair2": "a"}
    assert len(unique(rollouts_in(pairs))) == 6


def test_a_panel_of_all_kinds(judge_folder: Folder, server: Answering, rubric_judge: Judge) -> None:
    judges = [judge_at(judge_folder, server), rubric_judge]
    pairs = THUMBS[:2]
    with Panel(judges) as panel:
        once, twice = panel.ask(pairs), panel.ask(pairs)
    assert plain(once.votes) == plain(twice.votes) == plain(judge_pairs(judges, pairs, seed=0))
    assert set(once.votes["judge"].to_pylist()) == {"thumbs", "rules"}
    assert set(once.ratings["judge"].to_pylist()) == {"thumbs"}


def test_no_pointwise_judge_no_ratings(rubric_judge: Judge) -> None:
    ratings = rate_rollouts([rubric_judge], rollouts_in(THUMBS), seed=0)
    assert (ratings.num_rows, ratings.schema) == (0, RATINGS.schema)
    assert rating_report(ratings) == {}


def test_limits_hold_for_ratings(judge_folder: Folder, server: Answering) -> None:
    judge = judge_at(judge_folder, server)
    with pytest.raises(RlaifError, match="Judge thumbs gave 1 errors in 2"):
        rate_rollouts([judge], rollouts_in([texts(1, "broken", "good")]), seed=0, limits=Limits(max_error_rate=0.2))
    twin = judge_at(judge_folder, server, name="twin")
    with pytest.raises(UsageError, match="fingerprint"):
        rate_rollouts([judge, twin], rollouts_in(THUMBS), seed=0)


def test_principles_are_drawn_for_each_rollout(judge_folder: Folder, server: Answering) -> None:
    constitution = "\n".join(f"- Principle number {number}." for number in range(8))
    prompt = SINGLE + "{% for principle in principles %}({{ principle }}){% endfor %}"
    values = {"backend": "openai", "model": "m", "base_url": server.url, "mode": "thumbs", "principles": "sample"}
    folder = judge_folder("sampled", prompt, {"c.md": constitution}, constitution="c.md", **values)
    rate_rollouts([load_judge(folder)], rollouts_in([texts(n, "good", "fair") for n in range(12)]), seed=0)
    drawn = [re.findall(r"\(Principle number (\d)\.\)", text) for text in server.shown]
    assert {len(one) for one in drawn} == {1}
    assert len({one for (one,) in drawn}) > 3


def test_a_local_model_rates_too(judge_folder: Folder, tiny_model: Path) -> None:
    """Against the model's own softmax over the next token."""
    labels = ["dog", "cat", "river"]
    judge = load_judge(judge_folder("local", SINGLE, mode="rating", answers=labels))
    pairs = [texts(number, f"the dog {number}", "a cat sleeps") for number in range(5)]
    ratings = rate_rollouts([judge], rollouts_in(pairs), seed=0)
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    spelt = [[token for form in (label, f" {label}") for token in one_token(tokenizer, form)] for label in labels]
    rows = by_response(pairs, ratings)
    for pair in pairs:
        for response in (pair.response_a, pair.response_b):
            prompt = SINGLE.replace("{{ prompt }}", pair.prompt).replace("{{ response }}", response)
            if response == "a cat sleeps" and pair is not pairs[-1]:
                continue  # the same response to another prompt
            with torch.inference_mode():
                p = model(**tokenizer(prompt, return_tensors="pt")).logits[0, -1].softmax(-1)
            mass = [float(sum(p[token] for token in tokens)) for tokens in spelt]
            assert rows[response]["overall"] == pytest.approx(
                (mass[0] + 5.5 * mass[1] + 10 * mass[2]) / sum(mass), abs=1e-4
            )
            assert rows[response]["mass"] == pytest.approx(sum(mass), abs=1e-5)
    votes = judge_pairs([judge], pairs, seed=0)
    assert set(votes["status"].to_pylist()) == {"scored"}


def one_token(tokenizer: Any, text: str) -> list[int]:
    ids = tokenizer.encode(text, add_special_tokens=False)
    return ids if len(ids) == 1 else []


def test_a_pointwise_judge_may_begin_a_cascade(judge_folder: Folder, server: Answering, rubric_judge: Judge) -> None:
    thumbs = judge_at(judge_folder, server)
    about = {"backend": "cascade", "first": str(thumbs.folder), "then": str(rubric_judge.folder)}
    cascade = load_judge(judge_folder("both", None, model=..., min_mass=..., margin=0.2, **about))
    judged = Panel([cascade], keep_loaded=False).ask(THUMBS[:2])
    assert len(server.shown) == judged.ratings.num_rows == 4
    assert {row["rollout_a"]: row["answered_by"].split("@")[0] for row in judged.votes.to_pylist()} == {
        "rollout1a": "thumbs",
        "rollout2a": "rules",
    }
    heavy = judge_at(judge_folder, server, scale=9.0)
    assert heavy.fingerprint == thumbs.fingerprint
    assert load_judge(cascade.folder).digest != cascade.digest, "its votes are others"

"""Listwise judges against a real server: two calls a prompt, one vote a pair and order, each call paid for once."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

from judges.judge import Judge, load_judge
from judges.lists import both_ways
from judges.metrics import account
from judges.pairs import Pair, pair_id
from judges.panel import judge_pairs
from judges.ratings import Rollout
from store.schemas import VOTES
from store.tables import conform

from .answering import Answer, Answering
from .conftest import Folder

LIST = (
    "<question>{{ prompt }}</question>\n{% for response in responses %}<answer>{{ response }}</answer>\n{% endfor %}"
    "End with RANKING: <best> > ... > <worst>"
)


def pairs_of(prompt: int, values: list[int], every: int = 1) -> list[Pair]:
    """All pairs, or every n-th, of responses that say how good they are."""
    chance = random.Random(prompt)
    found = []
    for one, two in list(combinations(range(len(values)), 2))[::every]:
        a, b = (one, two) if chance.random() < 0.5 else (two, one)
        ids = f"x{prompt}", f"r{prompt}.{a}", f"r{prompt}.{b}"
        found.append(
            Pair(pair_id(*ids), ids[0], f"what {prompt}?", *ids[1:], f"value {values[a]}", f"value {values[b]}")
        )
    return found


def shown_values(text: str) -> list[int]:
    return [int(value) for value in re.findall(r"<answer>value (\d+)</answer>", text)]


def by_value(text: str) -> Answer:
    """Ranks by the values, equal ones as ties."""
    values = shown_values(text)
    groups = [
        [slot for slot, value in enumerate(values, 1) if value == one] for one in sorted(set(values), reverse=True)
    ]
    return "Because.\nRANKING: " + " > ".join(" = ".join(map(str, group)) for group in groups)


def first_is_best(text: str) -> Answer:
    return "RANKING: " + " > ".join(str(slot + 1) for slot in range(len(shown_values(text))))


@pytest.fixture
def served(judge_folder: Folder) -> Iterator[Callable[..., tuple[Judge, Answering]]]:
    servers: list[Answering] = []

    def start(answer: Callable[[str], Answer], **settings: Any) -> tuple[Judge, Answering]:
        server = Answering(answer).__enter__()
        servers.append(server)
        values = {"backend": "openai", "model": "m", "base_url": server.url, "mode": "listwise", "max_attempts": 1}
        values |= {"price": {"input": 3.0, "output": 7.0}}
        return load_judge(judge_folder(f"list{len(servers)}", LIST, **{**values, **settings})), server

    yield start
    for server in servers:
        server.__exit__()


PAIRS = [*pairs_of(1, [3, 1, 4, 1]), *pairs_of(2, [2, 7, 1]), *pairs_of(3, [5, 6], every=1)]


def test_two_calls_a_prompt_and_a_vote_for_each_pair_and_order(served: Any) -> None:
    judge, server = served(by_value)
    votes = judge_pairs([judge], PAIRS, seed=0)
    conform(votes, VOTES, "votes")
    assert len(server.shown) == 2 * 3
    assert votes.num_rows == account(votes)["attempted"] == 2 * len(PAIRS)
    rows = {(row["pair_id"], row["order"]): row for row in votes.to_pylist()}
    for pair in PAIRS:
        a, b = (int(text.removeprefix("value ")) for text in (pair.response_a, pair.response_b))
        for order in ("ab", "ba"):
            row = rows[pair.pair_id, order]
            expected = ("tie", None, 0.5) if a == b else ("scored", "a" if a > b else "b", float(a > b))
            assert (row["status"], row["winner"], row["p_a"]) == expected
            assert row["rationale"] == "Because."


def test_order_says_who_was_shown_first(served: Any) -> None:
    judge, server = served(first_is_best)
    votes = judge_pairs([judge], PAIRS, seed=0)
    assert {(row["order"], row["winner"]) for row in votes.to_pylist()} == {("ab", "a"), ("ba", "b")}
    by_prompt: dict[tuple[int, ...], list[list[int]]] = {}
    for text in server.shown:
        by_prompt.setdefault(tuple(sorted(shown_values(text))), []).append(shown_values(text))
    assert all(one == other[::-1] for one, other in by_prompt.values()), "the second order is the reverse of the first"


def test_permutations_are_random_and_stay(served: Any) -> None:
    many = [[Rollout(f"r{n}.{i}", f"x{n}", "?", f"{i}") for i in range(4)] for n in range(400)]
    shown = [both_ways(rollouts) for rollouts in many]
    assert shown == [both_ways(rollouts[::-1]) for rollouts in many], "whatever the order of rows"
    first = [sum(one.rollouts[0].response == str(i) for one, _ in shown) for i in range(4)]
    assert all(60 <= count <= 140 for count in first)
    assert all(one.rollouts == other.rollouts[::-1] for one, other in shown)


def test_each_call_is_paid_for_once(served: Any) -> None:
    judge, server = served(by_value)
    votes = judge_pairs([judge], PAIRS, seed=0)
    tokens = [len(text.split()) for text in server.shown]
    assert sum(votes["tokens_in"].to_pylist()) == sum(tokens)
    assert sum(votes["tokens_out"].to_pylist()) == 2 * len(tokens)
    assert sum(votes["attempts"].to_pylist()) == len(tokens)
    assert sum(votes["cost"].to_pylist()) == pytest.approx((3 * sum(tokens) + 7 * 2 * len(tokens)) / 1e6)


def test_only_the_pairs_that_are_given(served: Any) -> None:
    judge, server = served(by_value)
    some = pairs_of(1, [3, 1, 4, 1, 5], every=3)
    votes = judge_pairs([judge], some, seed=0)
    assert votes.num_rows == 2 * len(some)
    assert {len(shown_values(text)) for text in server.shown} == {
        len({rollout for pair in some for rollout in (pair.rollout_a, pair.rollout_b)})
    }


@pytest.mark.parametrize(
    ("said", "status"),
    [("RANKING: 1 > 2", "parse_failure"), ("RANKING: 1 > 2 > 3 > 4 > 5", "parse_failure"), (None, "error")],
)
def test_what_ranks_nothing_gives_no_vote(served: Any, said: Answer, status: str) -> None:
    """One of the two orders fails: its votes say so, the others count."""

    def answer(text: str) -> Answer:
        values = shown_values(text)
        return said if values == sorted_order[0] else by_value(text)

    pairs = pairs_of(1, [3, 1, 4])
    sorted_order: list[list[int]] = []
    judge, server = served(by_value)
    judge_pairs([judge], pairs, seed=0)
    sorted_order.append(shown_values(server.shown[0]))
    judge, _ = served(answer, parse_attempts=1)
    votes = judge_pairs([judge], pairs, seed=0)
    counts = account(votes)
    assert (counts["attempted"], counts[status], counts["scored"]) == (6, 3, 3)
    for row in votes.to_pylist():
        assert (row["p_a"] is not None) == (row["winner"] is not None) == (row["status"] == "scored")
        assert (row["error"] is not None) == (row["status"] == "error")


def test_a_killed_run_goes_on(served: Any, tmp_path: Path) -> None:
    judge, server = served(by_value, concurrency=1)
    whole = judge_pairs([judge], PAIRS, seed=0)

    def killed(what: str, done: int, total: int, note: str = "") -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        judge_pairs([judge], PAIRS, seed=0, shards=tmp_path, progress=killed)
    before = len(server.shown)
    again = judge_pairs([judge], PAIRS, seed=0, shards=tmp_path)
    assert len(server.shown) - before == 6 - 2
    assert again.drop_columns(["latency_s"]).equals(whole.drop_columns(["latency_s"]))

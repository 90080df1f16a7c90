"""Pairs: who is paired, on which side, and that it all hangs on rows and seed alone."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pyarrow as pa
import pytest

from judges.pairs import make_pairs, pair_id, pairs_from_table, pairs_to_table
from store.errors import UsageError
from store.schemas import GOLD, PROMPTS, ROLLOUTS

from .conftest import make_pair


def tables(responses: list[list[str]]) -> tuple[pa.Table, pa.Table]:
    rollouts: list[dict[str, Any]] = []
    prompts: list[dict[str, Any]] = []
    for number, texts in enumerate(responses):
        prompt = {"prompt_id": f"x{number}", "prompt": f"question {number}"}
        reference = None if number % 2 else "because"
        prompts.append({**prompt, "group": f"g{number % 2}", "split": "train", "reference": reference})
        for sample, text in enumerate(texts):
            about = {"policy": "p", "finish_reason": "stop", "n_tokens": 1, "logprob": -1.0, "seed": 0}
            rollouts.append(
                {"rollout_id": f"r{number}.{sample}", **prompt, "response": text, "sample": sample, **about}
            )
    return (
        pa.Table.from_pylist(rollouts, schema=ROLLOUTS.schema),
        pa.Table.from_pylist(prompts, schema=PROMPTS.schema),
    )


def test_all_pairs_of_different_responses() -> None:
    rollouts, prompts = tables([["u", "v", "w"], ["same", "same"], ["u", "v", "u"], ["alone"]])
    pairs = pairs_from_table(make_pairs(rollouts, prompts, "all", seed=1))
    assert Counter(pair.prompt_id for pair in pairs) == {"x0": 3, "x2": 2}
    response = dict(zip(rollouts["rollout_id"].to_pylist(), rollouts["response"].to_pylist(), strict=True))
    for pair in pairs:
        assert pair.response_a != pair.response_b
        assert (pair.response_a, pair.response_b) == (response[pair.rollout_a], response[pair.rollout_b])
        assert pair.pair_id == pair_id(pair.prompt_id, pair.rollout_a, pair.rollout_b)
        assert (pair.group, pair.split, pair.reference) == ("g0", "train", "because")
    assert len({pair.pair_id for pair in pairs}) == len(pairs)


def test_responses_that_differ_in_white_space_alone_are_the_same() -> None:
    rollouts, prompts = tables([["u v", " u\n v\t", "u\u00a0v ", "uv"], ["", " \n"]])
    pairs = pairs_from_table(make_pairs(rollouts, prompts, "all"))
    assert {frozenset((pair.rollout_a, pair.rollout_b)) for pair in pairs} == {
        frozenset((f"r0.{sample}", "r0.3")) for sample in range(3)
    }
    assert {text for pair in pairs for text in (pair.response_a, pair.response_b)} >= {" u\n v\t"}, "shown as it is"


def test_a_random_subset_without_repetition() -> None:
    rollouts, prompts = tables([[f"{i} {j}" for j in range(6)] for i in range(20)])
    pairs = pairs_from_table(make_pairs(rollouts, prompts, "random", per_prompt=4, seed=1))
    assert set(Counter(pair.prompt_id for pair in pairs).values()) == {4}
    assert len({frozenset((pair.rollout_a, pair.rollout_b)) for pair in pairs}) == 80
    assert make_pairs(rollouts, prompts, "random", per_prompt=99, seed=1).num_rows == 20 * 15


def test_the_order_of_rows_and_other_prompts_do_not_matter() -> None:
    rollouts, prompts = tables([[f"{i} {j}" for j in range(5)] for i in range(8)])
    made = make_pairs(rollouts, prompts, "random", per_prompt=2, seed=3)
    backwards = list(range(rollouts.num_rows))[::-1]
    assert make_pairs(rollouts.take(backwards), prompts, "random", per_prompt=2, seed=3).equals(made)
    part = make_pairs(rollouts.slice(0, 10), prompts, "random", per_prompt=2, seed=3)
    assert part.equals(made.slice(0, 4))
    assert not make_pairs(rollouts, prompts, "random", per_prompt=2, seed=4).equals(made)


def test_sides_are_drawn() -> None:
    rollouts, prompts = tables([["u", "v"]] * 200)
    first = sum(pair.response_a == "u" for pair in pairs_from_table(make_pairs(rollouts, prompts, "all", seed=0)))
    assert 70 < first < 130


def test_an_unknown_prompt_is_named() -> None:
    rollouts, prompts = tables([["u", "v"], ["u", "v"]])
    with pytest.raises(UsageError, match="x1"):
        make_pairs(rollouts, prompts.slice(0, 1))


def test_tables_and_pairs_are_the_same() -> None:
    pairs = [make_pair(1), make_pair(2, reference="r", prompt="")]
    assert pairs_from_table(pairs_to_table(pairs)) == pairs
    gold = pairs_to_table(pairs).append_column(GOLD.schema.field("winner"), [["a", "tie"]])
    assert pairs_from_table(gold) == pairs

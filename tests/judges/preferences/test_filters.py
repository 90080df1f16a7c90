"""What is left out of the preferences: each filter alone, against a slow reference or a hand case, and their order."""

from __future__ import annotations

from collections import Counter
from itertools import combinations
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from judges.aggregation.labels import LABELS
from judges.preferences import make_preferences
from judges.preferences.contamination import HeldOut
from judges.preferences.duplicates import similarity
from judges.preferences.shingles import words

from ..votes_builder import pairs_table


def made(pairs: pa.Table, p_a: dict[str, float] | None = None, human: tuple[str, ...] = (), **rules: Any) -> Any:
    ids = pairs["pair_id"].to_pylist()
    rows = [
        {
            "pair_id": pair,
            "p_a": (p_a or {}).get(pair, 0.8),
            "source": "human" if pair in human else "ai",
            "n_votes": 2,
            "votes_a": 2,
            "votes_b": 0,
        }
        for pair in ids
    ]
    return make_preferences(pairs, pa.Table.from_pylist(rows, schema=LABELS.schema), **rules)


def with_prompts(*prompts: str) -> pa.Table:
    pairs = pairs_table(*(f"p{number}" for number in range(len(prompts))))
    at = pairs.schema.get_field_index("prompt")
    return pairs.set_column(at, pairs.schema.field(at), pa.array(prompts))


def with_groups(*groups: str) -> pa.Table:
    pairs = pairs_table(*(f"p{number}" for number in range(len(groups))))
    at = pairs.schema.get_field_index("group")
    return pairs.set_column(at, pairs.schema.field(at), pa.array(groups))


def kept(found: Any) -> list[str]:
    return sorted(found.table["pair_id"].to_pylist())


LONG = "Explain in your own words why the sky over the sea looks blue at noon but red when the sun goes down"


def test_prompts_with_the_words_of_a_held_out_one_are_out() -> None:
    pairs = with_prompts("what is  THE capital of Peru", "What is the capital of Chile?", "Peru?")
    found = made(pairs, held_out=HeldOut(["What is the capital of Peru?"]))
    assert found.reason_of == {"p0": "held_out_prompt"}
    assert kept(made(pairs, held_out=HeldOut([], ids=[pairs["prompt_id"][1].as_py()]))) == ["p0", "p2"]


def test_prompts_that_hold_most_of_a_held_out_one_are_out() -> None:
    inside = f"Dear assistant, please do this for me today. {LONG}, and write at most two sentences about it."
    half = " ".join(LONG.split()[:14]) + " and what the moon has to do with all of that"
    pairs = with_prompts(inside, half, "Something else")
    assert kept(made(pairs, held_out=HeldOut([LONG]))) == ["p1", "p2"]
    assert kept(made(pairs, held_out=HeldOut([LONG], share=0.2))) == ["p2"]
    assert kept(made(pairs, held_out=HeldOut([LONG], n=0))) == ["p0", "p1", "p2"]


def test_a_shared_instruction_is_no_contamination() -> None:
    start = "You are a helpful assistant and answer the question of the user in one short sentence: "
    held = [start + f"who wrote the {nth} of the novels in the series of that name and when was it" for nth in "abc"]
    assert kept(made(with_prompts(start + "how high is it?"), held_out=HeldOut(held))) == ["p0"]


def test_scripts_without_spaces_have_words() -> None:
    assert words("富士山は？") == ("富", "士", "山", "は")
    assert words("Ｔｏｋｙｏ, Straße!") == ("tokyo", "strasse")
    assert words(" ?! ") == ("?!",)


def slow_jaccard(one: str, other: str, n: int = 5) -> float:
    first, second = (Counter(zip(*(text.split()[at:] for at in range(n)), strict=False)) for text in (one, other))
    return len(first.keys() & second.keys()) / len(first.keys() | second.keys())


def test_similarity_is_the_jaccard_index_of_token_5_grams() -> None:
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(list("abc"), 30)) for _ in range(12)]
    values = [(similarity(one, other), slow_jaccard(one, other)) for one, other in combinations(texts, 2)]
    assert all(ours == pytest.approx(slow) for ours, slow in values)
    assert len({ours for ours, _ in values}) > 5
    assert similarity("Yes.", "Yes .") == 1.0
    assert similarity("Yes.", "yes.") == 0.0  # "Yes ." and "yes .": tokens as they are written
    assert similarity("a b c d e f", "a b c d e g") == pytest.approx(1 / 3)
    assert similarity("", "") == 1.0
    assert similarity("", "word") == 0.0


def test_near_duplicates_are_out() -> None:
    words_ = [f"word{number}" for number in range(200)]
    text = " ".join(words_)
    other_end = " ".join([*words_[:-1], "end"])
    pairs = pairs_table("p1", "p2", "p3", p1=(text, other_end), p2=(text, text[:-20]), p3=("Yes.", "Yes"))
    assert made(pairs, max_similarity=0.95).reason_of == {"p1": "near_duplicate", "p2": "near_duplicate"}
    # p1 shares 195 of its 197 5-grams, a share of 0.9898.
    assert kept(made(pairs, max_similarity=0.99)) == ["p1", "p2", "p3"]
    assert kept(made(pairs, max_similarity=0.9895)) == ["p2", "p3"]
    assert kept(made(pairs)) == ["p1", "p2", "p3"]


def test_pairs_of_a_prompt_are_cut_down_to_people_and_a_draw() -> None:
    pairs = pa.concat_tables(
        [pairs_table(*(f"{prompt}{number}" for number in range(6)), prompt=prompt) for prompt in "xy"]
    )
    found = made(pairs, human=("x5", "y0", "y1", "y2"), max_pairs_per_prompt=3)
    assert found.dropped["over_prompt_limit"] == 6
    assert Counter(found.table["prompt_id"].to_pylist()) == {"x": 3, "y": 3}
    assert {"x5", "y0", "y1", "y2"} <= set(kept(found))
    # Confidence has no say, and neither has the order of rows.
    sure = made(pairs, {"x0": 0.99, "y4": 0.51}, human=("x5", "y0", "y1", "y2"), max_pairs_per_prompt=3)
    assert kept(sure) == kept(found)
    assert kept(
        made(pairs.take(list(range(12))[::-1]), human=("x5", "y0", "y1", "y2"), max_pairs_per_prompt=3)
    ) == kept(found)


def test_the_largest_group_is_at_most_so_many_times_the_smallest() -> None:
    pairs = with_groups(*["big"] * 20, *["middle"] * 7, *["small"] * 4)
    found = made(pairs, max_group_ratio=2.0)
    assert found.by_group == {
        "big": {"pairs": 20, "preferences": 8},
        "middle": {"pairs": 7, "preferences": 7},
        "small": {"pairs": 4, "preferences": 4},
    }
    assert found.dropped["group_balance"] == 12
    assert made(pairs).table.num_rows == 31


def test_a_pair_is_counted_for_the_first_reason_only() -> None:
    pairs = pairs_table("p1", "p2", "p3", p1=("same text", "same  text"), p2=("one", "other"), p3=("this", "that"))
    found = made(pairs, {"p1": 0.55, "p2": 0.5}, min_confidence=0.6, keep_ties=False, max_similarity=0.9)
    assert found.reason_of == {"p1": "low_confidence", "p2": "tie"}
    assert sum(found.dropped.values()) + found.table.num_rows == pairs.num_rows
    nothing = made(pairs, min_confidence=0.9, max_group_ratio=1.0, max_pairs_per_prompt=1)
    assert nothing.table.num_rows == 0
    assert nothing.dropped["low_confidence"] == 3

"""Pairs: two rollouts of one prompt, to be compared by judges and people."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from itertools import combinations
from typing import Any, Literal

import pyarrow as pa

from store.errors import UsageError
from store.hashing import short_id
from store.tables import PAIRS, conform

Winner = Literal["a", "b"]


@dataclass(frozen=True)
class Pair:
    """Two responses to one prompt. Which is a and which is b says nothing: it was drawn at random."""

    pair_id: str
    prompt_id: str
    prompt: str
    rollout_a: str
    rollout_b: str
    response_a: str
    response_b: str
    group: str = ""
    split: str = ""
    reference: str | None = None


def pair_id(prompt_id: str, rollout_a: str, rollout_b: str) -> str:
    return short_id(prompt_id, rollout_a, rollout_b)


def make_pairs(
    rollouts: pa.Table,
    prompts: pa.Table,
    method: Literal["all", "random"] = "all",
    per_prompt: int = 1,
    seed: int = 0,
) -> pa.Table:
    """Pair the rollouts of each prompt: all pairs of different responses, or `per_prompt` of them drawn at random.

    `rollouts`: a ROLLOUTS table; `prompts`: a PROMPTS table that has their prompts. Returns a PAIRS table sorted by
    prompt_id and pair_id. The result depends on the rows and the seed, not on the order of rows, and what is drawn for
    one prompt does not depend on the others. A prompt whose responses are all identical gives no pair.

    Raises UsageError for a rollout of a prompt that is not in `prompts`.
    """
    about = {row["prompt_id"]: row for row in prompts.to_pylist()}
    of_prompt: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in rollouts.select(["rollout_id", "prompt_id", "prompt", "response"]).to_pylist():
        if row["prompt_id"] not in about:
            raise UsageError(
                f"Rollout {row['rollout_id']} is of the prompt {row['prompt_id']}, which the prompts table lacks: give "
                f"the prompts that were sampled from."
            )
        of_prompt[row["prompt_id"]].append(row)
    pairs: list[Pair] = []
    for prompt_id in sorted(of_prompt):
        rows = sorted(of_prompt[prompt_id], key=lambda row: str(row["rollout_id"]))
        chance = random.Random(short_id("pairs", seed, prompt_id))  # noqa: S311  a reproducible draw
        pairs += _of_one_prompt(about[prompt_id], rows, method, per_prompt, chance)
    return pairs_to_table(pairs)


def _of_one_prompt(
    about: dict[str, Any], rows: list[dict[str, Any]], method: str, per_prompt: int, chance: random.Random
) -> list[Pair]:
    different = [(one, two) for one, two in combinations(rows, 2) if one["response"] != two["response"]]
    if method == "random" and len(different) > per_prompt:
        different = chance.sample(different, per_prompt)
    made = []
    for one, two in different:
        a, b = (one, two) if chance.random() < 0.5 else (two, one)
        made.append(
            Pair(
                pair_id(about["prompt_id"], a["rollout_id"], b["rollout_id"]),
                about["prompt_id"],
                a["prompt"],
                a["rollout_id"],
                b["rollout_id"],
                a["response"],
                b["response"],
                about["group"],
                about["split"],
                about["reference"],
            )
        )
    return sorted(made, key=lambda pair: pair.pair_id)


def pairs_to_table(pairs: Iterable[Pair]) -> pa.Table:
    return pa.Table.from_pylist([asdict(pair) for pair in pairs], schema=PAIRS.schema)


def pairs_from_table(table: pa.Table) -> list[Pair]:
    """The pairs of a PAIRS or GOLD table, in its order."""
    columns = conform(table, PAIRS, source="the pairs").select(PAIRS.schema.names)
    return [Pair(**row) for row in columns.to_pylist()]

"""Pairs: two rollouts of one prompt, to be compared by judges and people.

Responses that are the same but for white space are never paired: they read the same, so that a preference between them
would be a label made of noise. Near-duplicates are paired: how alike two answers are is for their label to say.
"""

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
from store.schemas import PAIRS
from store.tables import conform

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


@dataclass(frozen=True)
class Contest:
    """A prompt (a row of PROMPTS) with its rollouts (rows of ROLLOUTS, sorted by id)."""

    about: dict[str, Any]
    rollouts: list[dict[str, Any]]

    @property
    def prompt_id(self) -> str:
        return str(self.about["prompt_id"])

    def different(self) -> list[tuple[int, int]]:
        """The positions of all two rollouts that may be paired."""
        texts = [" ".join(row["response"].split()) for row in self.rollouts]
        return [(one, two) for one, two in combinations(range(len(texts)), 2) if texts[one] != texts[two]]

    def pair(self, one: int, two: int, chance: random.Random) -> Pair:
        """The pair of the rollouts at two positions, sides drawn."""
        a, b = (self.rollouts[at] for at in ((one, two) if chance.random() < 0.5 else (two, one)))
        return Pair(
            pair_id(self.prompt_id, a["rollout_id"], b["rollout_id"]),
            self.prompt_id,
            a["prompt"],
            a["rollout_id"],
            b["rollout_id"],
            a["response"],
            b["response"],
            self.about["group"],
            self.about["split"],
            self.about["reference"],
        )


def contests(rollouts: pa.Table, prompts: pa.Table) -> list[Contest]:
    """One for each prompt that has rollouts, sorted by prompt_id; the order of rows does not matter.

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
    return [
        Contest(about[prompt_id], sorted(of_prompt[prompt_id], key=lambda row: str(row["rollout_id"])))
        for prompt_id in sorted(of_prompt)
    ]


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
    one prompt does not depend on the others. A prompt whose responses are all the same gives no pair. Pairs that are
    chosen by the votes so far: see `judges.swiss`.

    Raises UsageError for a rollout of a prompt that is not in `prompts`.
    """
    pairs: list[Pair] = []
    for contest in contests(rollouts, prompts):
        chance = random.Random(short_id("pairs", seed, contest.prompt_id))  # noqa: S311  a reproducible draw
        chosen = contest.different()
        if method == "random" and len(chosen) > per_prompt:
            chosen = chance.sample(chosen, per_prompt)
        pairs += [contest.pair(one, two, chance) for one, two in chosen]
    return pairs_to_table(sorted(pairs, key=lambda pair: (pair.prompt_id, pair.pair_id)))


def pairs_to_table(pairs: Iterable[Pair]) -> pa.Table:
    return pa.Table.from_pylist([asdict(pair) for pair in pairs], schema=PAIRS.schema)


def pairs_from_table(table: pa.Table) -> list[Pair]:
    """The pairs of a PAIRS or GOLD table, in its order."""
    columns = conform(table, PAIRS, source="the pairs").select(PAIRS.schema.names)
    return [Pair(**row) for row in columns.to_pylist()]

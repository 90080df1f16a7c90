"""Listwise judging: all responses to a prompt in one call, and the votes on its pairs that follow from the ranking.

A prompt's responses are shown twice: in a random permutation and in its reverse. So each pair of the prompt gets one
vote in order ab and one in order ba, by which of the two was shown first, and a preference for early slots cancels as
it does for pairs (permutation against position bias: Tang et al. 2023, Permutation Self-Consistency). Two calls a
prompt, whatever the number of its pairs.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from judges.asking import Inquiry
from judges.backends.base import Reply, Subject
from judges.collect import Ask
from judges.judge import Judge
from judges.modes import Finding
from judges.pairs import Pair
from judges.ratings import Rollout, rollouts_in, unique
from judges.requests import Order
from judges.votes import paid, table_of, vote_row
from store.hashing import short_id
from store.schemas import VOTES, Status, Table

RANKINGS = Table(
    "rankings",
    pa.schema(
        [
            *(pa.field(name, pa.string(), nullable=False) for name in ("ranking_id", "prompt_id", "status")),
            pa.field("rollouts", pa.list_(pa.string()), nullable=False),
            pa.field("ranks", pa.list_(pa.int64())),
            *(pa.field(name, pa.string()) for name in ("rationale", "raw", "error")),
            *(pa.field(name, pa.int64(), nullable=False) for name in ("tokens_in", "tokens_out", "attempts")),
            *(pa.field(name, pa.float64(), nullable=False) for name in ("cost", "latency_s")),
        ]
    ),
    key="ranking_id",
)
"""One call of a listwise judge. `rollouts`: their keys, in the order in which they were shown. `ranks`: of each,
1 the best."""


@dataclass(frozen=True)
class Shown:
    """A prompt's responses in the order of one call."""

    rollouts: tuple[Rollout, ...]

    @property
    def prompt_id(self) -> str:
        return self.rollouts[0].prompt_id

    @property
    def keys(self) -> list[str]:
        return [rollout.key for rollout in self.rollouts]


def inquiry_about_prompts(judge: Judge, pairs: Sequence[Pair]) -> Inquiry[Shown]:
    """All that a judge of kind LIST is asked."""
    shown = [one for prompt in _by_prompt(pairs).values() for one in both_ways(unique(rollouts_in(prompt)))]
    return Inquiry(judge, RANKINGS, lambda: _asks(judge, shown), _ranking)


def both_ways(rollouts: Sequence[Rollout]) -> tuple[Shown, Shown]:
    """A permutation of a prompt's rollouts, and its reverse; drawn by what they are, so that it never changes."""
    ordered = sorted(rollouts, key=lambda rollout: rollout.key)
    chance = random.Random(short_id("list", *(rollout.key for rollout in ordered)))  # noqa: S311  a reproducible draw
    chance.shuffle(ordered)
    return Shown(tuple(ordered)), Shown(tuple(reversed(ordered)))


def votes_from_rankings(judge: Judge, pairs: Sequence[Pair], rankings: pa.Table) -> pa.Table:
    """VOTES of a listwise judge, two for each pair. Hard: p_a is 1, 0, or 1/2 at equal ranks.

    Where a call ranked nothing, all of its votes have its status. Tokens, cost, latency and attempts of a call are on
    the first of its votes and 0 on the others, so that sums over votes are sums over calls.
    """
    of_prompt = _by_prompt(pairs)

    def rows() -> Iterator[dict[str, Any]]:
        for call in rankings.to_pylist():
            slot_of = {rollout: slot for slot, rollout in enumerate(call["rollouts"])}
            spent = {name: call[name] for name in ("tokens_in", "tokens_out", "cost", "latency_s", "attempts")}
            said = {"mass": None} | {name: call[name] for name in ("rationale", "raw", "error")}
            for pair in of_prompt[call["prompt_id"]]:
                a, b = (slot_of[rollout.key] for rollout in rollouts_in([pair]))
                order: Order = "ab" if a < b else "ba"
                status, p_a = _compared(call, a, b)
                yield vote_row(judge, pair, order, status, p_a) | said | spent
                spent = dict.fromkeys(spent, 0)

    return table_of(rows(), VOTES)


def _by_prompt(pairs: Sequence[Pair]) -> dict[str, list[Pair]]:
    found: dict[str, list[Pair]] = {}
    for pair in pairs:
        found.setdefault(pair.prompt_id, []).append(pair)
    return found


def _compared(call: dict[str, Any], a: int, b: int) -> tuple[Status, float | None]:
    if call["ranks"] is None:
        return Status(call["status"]), None
    rank_a, rank_b = call["ranks"][a], call["ranks"][b]
    if rank_a == rank_b:
        return Status.TIE, 0.5
    return Status.SCORED, float(rank_a < rank_b)


def _asks(judge: Judge, shown: Sequence[Shown]) -> Iterator[Ask[Shown]]:
    for one in shown:
        first = one.rollouts[0]
        responses = tuple(rollout.response for rollout in one.rollouts)
        subject = Subject(first.prompt, responses, first.reference, first.group)
        yield Ask(short_id("ranking", judge.fingerprint, *one.keys), subject, one.prompt_id, one)


def _ranking(judge: Judge, ask: Ask[Shown], reply: Reply, finding: Finding) -> dict[str, Any]:
    return {
        "ranking_id": ask.id,
        "prompt_id": ask.what.prompt_id,
        "status": str(finding.status),
        "rollouts": ask.what.keys,
        "ranks": None if finding.ranks is None else list(finding.ranks),
        "rationale": finding.rationale,
        **paid(judge, reply),
    }

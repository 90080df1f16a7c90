"""Votes: one judge's answer on one pair in one order, in terms of rollouts.

A vote is addressed by its content (pair, fingerprint, order), so that there are never two different ones.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

import pyarrow as pa

from judges.asking import Inquiry
from judges.backends.base import Reply
from judges.collect import Ask
from judges.judge import Judge
from judges.modes import Finding
from judges.pairs import Pair
from judges.requests import ORDERS, Order, Request
from store.hashing import short_id
from store.schemas import VOTES, Status, Table


def vote_id(pair_id: str, fingerprint: str, order: str) -> str:
    return short_id(pair_id, fingerprint, order)


def inquiry_about_pairs(judge: Judge, pairs: Sequence[Pair]) -> Inquiry[Request]:
    """All that a judge of kind PAIR is asked."""
    return Inquiry(judge, VOTES, lambda: asks_about(judge, pairs), vote_of)


def asks_about(judge: Judge, pairs: Sequence[Pair]) -> Iterator[Ask[Request]]:
    """Both orders of each pair, one after the other: what their prompts share can then be computed once."""
    for pair in pairs:
        for order in ORDERS:
            request = Request(pair, order)
            name = vote_id(pair.pair_id, judge.fingerprint, order)
            yield Ask(name, request.subject, pair.pair_id, request)


def vote_of(judge: Judge, ask: Ask[Request], reply: Reply, finding: Finding) -> dict[str, Any]:
    """The VOTES row of a reply, mapped from slots to rollouts. What has no preference stays without one."""
    pair, order = ask.what.pair, ask.what.order
    p_a = finding.p_first
    if p_a is not None and order == "ba":
        p_a = 1 - p_a
    known = {"mass": finding.mass, "rationale": finding.rationale}
    return vote_row(judge, pair, order, finding.status, p_a) | known | paid(judge, reply)


def vote_row(judge: Judge, pair: Pair, order: Order, status: Status, p_a: float | None) -> dict[str, Any]:
    """What every vote says, whatever it follows from; `p_a` is in terms of rollouts."""
    winner = None
    if status == Status.SCORED and p_a is not None:
        winner = "a" if p_a > 0.5 else "b"
    return {
        "vote_id": vote_id(pair.pair_id, judge.fingerprint, order),
        "pair_id": pair.pair_id,
        "prompt_id": pair.prompt_id,
        "rollout_a": pair.rollout_a,
        "rollout_b": pair.rollout_b,
        "judge": judge.name,
        "fingerprint": judge.fingerprint,
        "order": order,
        "status": str(status),
        "winner": winner,
        "p_a": p_a,
    }


def table_of(rows: Iterable[dict[str, Any]], table: Table) -> pa.Table:
    """Rows as a table of that schema, some thousand at a time: dictionaries take ten times the memory."""
    stream, batches = iter(rows), []
    while batch := list(islice(stream, 4096)):
        batches.append(pa.RecordBatch.from_pylist(batch, schema=table.schema))
    return pa.Table.from_batches(batches, schema=table.schema)


def paid(judge: Judge, reply: Reply) -> dict[str, Any]:
    """The columns that every row has of its call: what came back, and what it took."""
    price = judge.settings.price
    return {
        "raw": reply.text,
        "error": reply.error,
        "tokens_in": reply.tokens_in,
        "tokens_out": reply.tokens_out,
        "cost": (reply.tokens_in * price.input + reply.tokens_out * price.output) / 1e6,
        "latency_s": reply.latency_s,
        "attempts": reply.attempts,
    }

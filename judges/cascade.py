"""A cascade: a cheap judge is asked about every pair, an expensive one only where the first is unsure.

The first is unsure about a pair where the mean p_a of its two orders is nearer to 0.5 than the margin, where its winner
changes with the order, or where an order has no winner at all. Both orders then go to the second, whose answers count,
whatever they are: an error of the second stays an error. (Selective escalation as in FrugalGPT, Chen et al. 2023, with
the order-averaged margin in place of a trained scorer.)

Accounting. Members' votes are votes of their own, under their own fingerprints. A cascade's vote has the values of the
member that decided and the tokens, cost, latency and attempts of all calls behind it, the first's too. A call that a
judge of the panel shares with a cascade is thus in two rows; `total_cost` counts each call once. What a pointwise judge
took is in its ratings, and 0 in the votes that follow from them, a cascade's too.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from judges.judge import Judge
from judges.settings import CascadeSettings
from judges.votes import vote_id
from store.schemas import VOTES, Status

_SPENT = ("tokens_in", "tokens_out", "cost", "latency_s", "attempts")
_FIGURES = {
    "cost": ("cost",),
    "calls": ("attempts",),
    "tokens": ("tokens_in", "tokens_out"),
    "seconds": ("latency_s",),
}


def unsure(cascade: Judge, votes: pa.Table) -> set[str]:
    """Ids of the pairs that go to the second judge. `votes`: the first's."""
    settings = cascade.settings_as(CascadeSettings)
    orders: dict[str, list[tuple[float | None, str | None, str]]] = {}
    columns = ("pair_id", "p_a", "winner", "status")
    for pair, p_a, winner, status in zip(*(votes[name].to_pylist() for name in columns), strict=True):
        orders.setdefault(pair, []).append((p_a, winner, status))
    return {pair for pair, found in orders.items() if _is_unsure(settings, found)}


def _is_unsure(settings: CascadeSettings, orders: Collection[tuple[float | None, str | None, str]]) -> bool:
    if settings.on_no_preference and any(winner is None for _, winner, _ in orders):
        return True
    if settings.on_flip and {"a", "b"} <= {winner for _, winner, _ in orders}:
        return True
    valid = [p_a for p_a, _, status in orders if p_a is not None and status in (Status.SCORED, Status.TIE)]
    # Rounded, so that 0.7 is not within 0.2 of 0.5 by its last bit.
    return bool(valid) and round(abs(sum(valid) / len(valid) - 0.5), 9) < settings.margin


def compose(cascade: Judge, first: pa.Table, then: pa.Table) -> pa.Table:
    """The cascade's VOTES, sorted by pair_id and order. `then`: the second's votes, on the escalated pairs only."""
    escalated = pc.is_in(first["pair_id"], pc.unique(then["pair_id"]))
    kept, doubted = first.filter(pc.invert(escalated)), _by_pair(first.filter(escalated))
    then = _by_pair(then)
    for name in _SPENT:
        at = VOTES.schema.get_field_index(name)
        then = then.set_column(at, VOTES.schema.field(at), pc.add(then[name], doubted[name]))
    members = cascade.members
    parts = [_answered_by(members[0], kept), _answered_by(members[1], then)]
    votes = _by_pair(pa.concat_tables([part.select(VOTES.schema.names) for part in parts]).combine_chunks())
    ids = [
        vote_id(pair, cascade.fingerprint, order)
        for pair, order in zip(votes["pair_id"].to_pylist(), votes["order"].to_pylist(), strict=True)
    ]
    own = {"vote_id": ids, "judge": [cascade.name] * len(ids), "fingerprint": [cascade.fingerprint] * len(ids)}
    for name, values in own.items():
        at = VOTES.schema.get_field_index(name)
        votes = votes.set_column(at, VOTES.schema.field(at), pa.array(values, pa.string()))
    return votes


def savings(
    judges: Iterable[Judge], votes: pa.Table, member_votes: pa.Table, ratings: pa.Table
) -> dict[str, dict[str, Any]]:
    """name of each cascade among `judges` -> what it saved on the pairs of `votes`.

    `pairs`, `escalated`, `escalated_share`; for `cost`, `calls` (repeated ones too), `tokens` and `seconds` (latencies
    added up): what the `first` and the `then` judge took, what the second would have taken `then_alone`, and the share
    `saved` against that, negative where the cascade took more. `then_alone` is exact where the second was asked about
    every pair, as when it is in the panel too; else `estimated` is true and it is the second's mean pair times their
    number. None where nothing is known: nothing was escalated, or there was nothing to save.

    `member_votes`, `ratings`: all that were made; see `judges.panel.Judged`.
    """
    found = {}
    for judge in judges:
        if judge.members:
            own = votes.filter(pc.equal(votes["fingerprint"], judge.fingerprint))
            found[judge.name] = _saving(judge, own, member_votes, ratings)
    return found


def _saving(cascade: Judge, votes: pa.Table, member_votes: pa.Table, ratings: pa.Table) -> dict[str, Any]:
    first, second = cascade.members
    by_second = pc.is_in(votes["answered_by"], pa.array([label(judge) for judge in second.asked]))
    pairs, escalated = pc.unique(votes["pair_id"]), pc.unique(votes.filter(by_second)["pair_id"])
    asked = _of(second, member_votes)
    used = asked.filter(pc.is_in(asked["pair_id"], escalated))
    # Which of its members a cascade would have asked about the other pairs is not known, whoever else asked them.
    asked = used if second.members else asked.filter(pc.is_in(asked["pair_id"], pairs))
    known = len(pc.unique(asked["pair_id"]))
    figures: dict[str, Any] = {
        "pairs": len(pairs),
        "escalated": len(escalated),
        "escalated_share": len(escalated) / len(pairs) if len(pairs) else None,
        "estimated": known < len(pairs),
    }
    by_first, by_then, by_then_alone = (
        _about(_of(judge, ratings), table) for judge, table in ((first, votes), (second, used), (second, asked))
    )
    for what, columns in _FIGURES.items():
        then = _sum(used, columns) + _sum(by_then, columns)
        of_first = _sum(votes, columns) - _sum(used, columns) + _sum(by_first, columns)
        alone = (_sum(asked, columns) + _sum(by_then_alone, columns)) * len(pairs) / known if known else None
        saved = 1 - (of_first + then) / alone if alone else None
        figures[what] = {"first": of_first, "then": then, "then_alone": alone, "saved": saved}
    return figures


def total_cost(votes: pa.Table, member_votes: pa.Table, ratings: pa.Table) -> float:
    """What all votes cost together, each call once: of cascades only the members' votes count."""
    ordinary = votes.filter(pc.is_null(votes["answered_by"])).select(["vote_id", "cost"])
    each = pa.concat_tables([ordinary, member_votes.select(["vote_id", "cost"])])
    once = each.group_by("vote_id", use_threads=False).aggregate([("cost", "max")])
    return _sum(once, ["cost_max"]) + _sum(ratings, ["cost"])


def label(judge: Judge) -> str:
    return f"{judge.name}@{judge.fingerprint}"


def _answered_by(member: Judge, votes: pa.Table) -> pa.Table:
    """`votes` with the member's label, which in votes of a cascade inside this one is there already."""
    at = VOTES.schema.get_field_index("answered_by")
    return votes.set_column(at, VOTES.schema.field(at), pc.fill_null(votes["answered_by"], label(member)))


def _by_pair(votes: pa.Table) -> pa.Table:
    return votes.sort_by([("pair_id", "ascending"), ("order", "ascending")])


def _of(judge: Judge, table: pa.Table) -> pa.Table:
    """The rows, of votes or ratings, of the judges that are asked through `judge`."""
    return table.filter(pc.is_in(table["fingerprint"], pa.array([one.fingerprint for one in judge.asked])))


def _about(ratings: pa.Table, votes: pa.Table) -> pa.Table:
    """The ratings of rollouts that the votes are about."""
    rollouts = pa.chunked_array([*votes["rollout_a"].chunks, *votes["rollout_b"].chunks], pa.string())
    return ratings.filter(pc.is_in(ratings["rollout_id"], pc.unique(rollouts)))


def _sum(table: pa.Table, columns: Iterable[str]) -> float:
    total: float = sum(pc.sum(table[name]).as_py() or 0 for name in columns)
    return total

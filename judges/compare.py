"""Compare: two judges on the same pairs, and what would change in a round if one took the other's place.

Judges are asked only about what known votes do not answer already. The difference of accuracies is measured on the same
pairs and has a paired interval (Newcombe 1998) and the exact McNemar test; see `judges.reports.proportions`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from judges.aggregation.gold import anchors
from judges.aggregation.labels import checked_votes
from judges.aggregation.lengths import with_lengths
from judges.aggregation.methods import method_of
from judges.aggregation.verdicts import override, read_people
from judges.check import identity
from judges.judge import Judge
from judges.metrics import account, judge_accuracy, judge_report, paired_accuracy
from judges.pairs import pairs_from_table
from judges.panel import Limits, judge_pairs
from judges.reports import Figures
from judges.reports.agreement import agree
from judges.reports.proportions import bounds, share
from judges.reports.winners import decided, preferences, winner
from judges.requests import ORDERS
from store.errors import UsageError
from store.schemas import VOTES, Status
from store.stage import Progress, silent

MOVED = 0.1
"""A change of p_a beyond this is counted even where the winner stays."""


@dataclass(frozen=True)
class Round:
    """The tables of a round's judge and audit stages, and how it aggregated: `method`, and `lengths` of the stage's
    config. `gold` and `gold_votes`: what the weights are fitted on, both or neither; `verdicts`: those of people that
    count, which override, or None; `reliability`: of auditors, as the stage weighed them."""

    pairs: pa.Table
    votes: pa.Table
    method: str
    gold: pa.Table | None = None
    gold_votes: pa.Table | None = None
    verdicts: pa.Table | None = None
    lengths: bool = True
    reliability: Mapping[str, float] | None = None


@dataclass(frozen=True)
class Answers:
    """`votes`: of one judge on all pairs that it was asked about. `reused`: how many of them were known before."""

    votes: pa.Table
    reused: int


def ask(
    judge: Judge,
    pairs: pa.Table,
    known: Sequence[tuple[pa.Table, pa.Table]] = (),
    *,
    seed: int,
    shards: Path | None = None,
    progress: Progress = silent,
) -> Answers:
    """The judge's votes on `pairs` (PAIRS or GOLD). `known`: tables of pairs, and votes on them, from earlier runs.

    Known votes count where judge and texts are the same, for both orders of a pair and without an error. Votes that
    follow from ratings or from other judges' votes are made anew: they depend on more than a fingerprint.
    """
    wanted = pairs_from_table(pairs)
    old = VOTES.schema.empty_table()
    if judge.digest == judge.fingerprint:
        text_of = {pair.pair_id: (pair.prompt, pair.response_a, pair.response_b) for pair in wanted}
        for their_pairs, votes in known:
            old = pa.concat_tables([old, _usable(judge, text_of, their_pairs, votes, set(old["pair_id"].to_pylist()))])
    answered = set(old["pair_id"].to_pylist())
    missing = [pair for pair in wanted if pair.pair_id not in answered]
    new = old.slice(0, 0)
    if missing:
        new = judge_pairs([judge], missing, seed=seed, progress=progress, shards=shards, limits=Limits(0.5, after=20))
    votes = pa.concat_tables([old, new.select(VOTES.schema.names)]).combine_chunks()
    return Answers(votes.sort_by([("pair_id", "ascending"), ("order", "ascending")]), old.num_rows)


def _usable(
    judge: Judge,
    text_of: dict[str, tuple[str, str, str]],
    pairs: pa.Table,
    votes: pa.Table,
    there: set[str],
) -> pa.Table:
    columns = ("pair_id", "prompt", "response_a", "response_b")
    same = {
        pair
        for pair, *texts in zip(*(pairs[name].to_pylist() for name in columns), strict=True)
        if pair not in there and text_of.get(pair) == tuple(texts)
    }
    of_judge = pc.and_(
        pc.equal(votes["fingerprint"], judge.fingerprint), pc.not_equal(votes["status"], str(Status.ERROR))
    )
    found = votes.filter(pc.and_(of_judge, pc.is_in(votes["pair_id"], pa.array(sorted(same), pa.string()))))
    whole = sorted(pair for pair, orders in Counter(found["pair_id"].to_pylist()).items() if orders == len(ORDERS))
    return found.filter(pc.is_in(found["pair_id"], pa.array(whole, pa.string()))).select(VOTES.schema.names)


def refuse_one_judge(one: Judge, other: Judge) -> None:
    """Raises UsageError where both are the same judge."""
    if one.fingerprint == other.fingerprint and one.digest == other.digest:
        raise UsageError(
            f"{one.name} ({one.folder}) and {other.name} ({other.folder}) are the same judge, with the fingerprint "
            f"{one.fingerprint[:12]}: name two that differ."
        )


def compare_votes(
    one: Judge, first: Answers, other: Judge, second: Answers, pairs: pa.Table, *, examples: int = 5
) -> Figures:
    """What the votes of two judges on the same `pairs` (PAIRS, or GOLD with a winner) say.

    `judges`: for each what it is, its votes, biases, cost for 1,000 pairs, latency, and accuracy where there is gold;
    `agreement`: see `agree`; `accuracy_difference`: first minus second, see `paired_accuracy`, or None; `examples`: the
    pairs with the largest difference of p_a, as they are: their texts are untrusted.
    """
    has_gold = "winner" in pairs.column_names
    sides = [(one, first), (other, second)]
    return {
        "pairs": pairs.num_rows,
        "judges": [_side(judge, answers, pairs, has_gold) for judge, answers in sides],
        "agreement": agree(decided(first.votes), decided(second.votes)),
        "accuracy_difference": paired_accuracy(first.votes, second.votes, pairs) if has_gold else None,
        "examples": _examples(preferences(first.votes), preferences(second.votes), pairs, examples),
    }


def _side(judge: Judge, answers: Answers, pairs: pa.Table, has_gold: bool) -> Figures:
    (report,) = judge_report(answers.votes, pairs).values()
    accuracy = judge_accuracy(answers.votes, pairs) if has_gold else {}
    return {
        **identity(judge),
        "votes": account(answers.votes),
        "reused_votes": answers.reused,
        "cost_per_1000_pairs": share(1000 * report["cost"], pairs.num_rows),
        "latency_s": {key: report[f"{key}_latency_s"] for key in ("median", "p95")},
        "biases": report,
        "accuracy": next(iter(accuracy.values()), None),
    }


def _examples(one: dict[str, float], other: dict[str, float], pairs: pa.Table, most: int) -> list[Figures]:
    both = one.keys() & other.keys()
    ranked = sorted(both, key=lambda pair: (-abs(one[pair] - other[pair]), pair))
    chosen = [pair for pair in ranked if winner(one[pair]) != winner(other[pair])][:most]
    shown = pairs.filter(pc.is_in(pairs["pair_id"], pa.array(chosen, pa.string())))
    rows = {row["pair_id"]: row for row in shown.to_pylist()}
    keys = ("pair_id", "group", "prompt", "response_a", "response_b", "reference")
    return [
        {
            **{key: rows[pair].get(key) for key in keys},
            "gold": rows[pair].get("winner"),
            "p_a": [one[pair], other[pair]],
        }
        for pair in chosen
    ]


def refuse_stranger(judge: Judge, round_: Round) -> None:
    """Raises UsageError where the judge has no votes in the round, naming those that have."""
    if judge.fingerprint not in pc.unique(round_.votes["fingerprint"]).to_pylist():
        names = ", ".join(sorted(pc.unique(round_.votes["judge"]).to_pylist()))
        raise UsageError(
            f"Judge {judge.name}, as it is now, has no votes in the last round, whose judges are {names}: name one of "
            f"them first, unchanged since."
        )


def replaced(
    round_: Round, out: Judge, into: Judge, votes: pa.Table, gold_votes: pa.Table | None, pairs: pa.Table
) -> Figures:
    """What changes in the round's labels where judge `out` is replaced by judge `into`, on `pairs` (of the round).

    `votes`: of `into` on `pairs`; `gold_votes`: on the round's gold, where it has one: the weights are fitted again.
    Both sets of labels are made here, by the round's method, and people's verdicts override both.

    `direction_changes`: another response wins; `to_or_from_tie`; `moved`: p_a changes by more than 0.1, whoever wins;
    `gained` and `lost`: labelled only afterwards or only before; with shares and Wilson intervals of the pairs labelled
    both times, `labelled`. `already_in_panel`: `into` was in the round's panel, so that only `out` goes.
    """
    within = pc.is_in(round_.votes["pair_id"], pairs["pair_id"].combine_chunks())
    panel = round_.votes.filter(within)
    before = _labels(round_, panel, round_.gold_votes, pairs)
    present = into.fingerprint in pc.unique(panel["fingerprint"]).to_pylist()
    after = _labels(
        round_,
        _swapped(panel, out, votes, present),
        None if round_.gold_votes is None else _swapped(round_.gold_votes, out, gold_votes, present),
        pairs,
    )
    both = before.keys() & after.keys()
    winners = [(winner(before[pair]), winner(after[pair])) for pair in both]
    directions = sum(None not in pair and pair[0] != pair[1] for pair in winners)
    ties = sum((pair[0] is None) != (pair[1] is None) for pair in winners)
    moved = sum(abs(before[pair] - after[pair]) > MOVED for pair in both)
    n = len(both)
    return {
        "method": round_.method,
        "pairs": pairs.num_rows,
        "pairs_in_round": round_.pairs.num_rows,
        "labelled": n,
        "direction_changes": {"count": directions, "rate": share(directions, n), **bounds(directions, n)},
        "moved": {"count": moved, "rate": share(moved, n), **bounds(moved, n), "beyond": MOVED},
        "to_or_from_tie": ties,
        "gained": len(after.keys() - before.keys()),
        "lost": len(before.keys() - after.keys()),
        "already_in_panel": present,
        "panel_before": sorted(pc.unique(panel["judge"]).to_pylist()),
    }


def _labels(round_: Round, votes: pa.Table, gold_votes: pa.Table | None, pairs: pa.Table) -> dict[str, float]:
    checked, _ = checked_votes(votes, pairs)
    people = None if round_.verdicts is None else read_people(round_.verdicts, pairs, round_.reliability)
    gold = None
    if round_.gold is not None and gold_votes is not None:
        gold, gold_votes = round_.gold, checked_votes(gold_votes, round_.gold)[0]
        if round_.lengths:
            gold_votes = with_lengths(gold_votes, gold)
    if round_.lengths:
        checked = with_lengths(checked, pairs)
    known_votes, answers = anchors(checked, people.p_a if people else {}, gold, gold_votes if gold else None)
    labels = method_of(round_.method).fit(known_votes, answers).predict(checked)
    if people is not None:
        labels, _ = override(labels, people)
    return dict(zip(labels["pair_id"].to_pylist(), labels["p_a"].to_pylist(), strict=True))


def _swapped(panel: pa.Table, out: Judge, votes: pa.Table | None, present: bool) -> pa.Table:
    names = VOTES.schema.names
    rest = panel.filter(pc.not_equal(panel["fingerprint"], out.fingerprint)).select(names)
    return rest if present or votes is None else pa.concat_tables([rest, votes.select(names)]).combine_chunks()

"""Whether a judge favours responses of its own family (Panickssery et al. 2024, arXiv 2404.13076).

On the pairs of which exactly one response is of the judge's own family, let s be the share that the own response wins
(order-averaged; a tie counts one half). That alone says nothing: the own responses may be better. Self-preference is

    beyond_gold    s minus the share that they win by gold, on the pairs that have gold;
    beyond_others  s minus the mean share that they win by the other judges, those left out to whose family either
                   response belongs, on the pairs that at least one of them judged.

Both are means of differences on the same pairs; the interval is a bootstrap over prompts. Where neither can be
computed, they are None and `reason` says why: in a round all responses are of one policy, so that no pair shows it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa

from judges.aggregation.gold import P_A
from judges.judge import Judge
from judges.reports import Figures
from judges.reports.accounting import split_by_judge
from judges.reports.accuracy import gold_winners
from judges.reports.proportions import clustered_mean
from judges.reports.winners import preferences, winner
from store.hashing import hash_path

Names = frozenset[str]


def own_names(judge: Judge) -> Names:
    """What a response's origin may be called that is the judge's own: its family, and its model's name or content."""
    if judge.members:
        return frozenset().union(*(own_names(member) for member in judge.members))
    content = hash_path(Path(judge.model)) if judge.model and Path(judge.model).is_dir() else None
    family = getattr(judge.settings, "family", None)
    return frozenset(name for name in (family, judge.model, content) if name)


def origins_of(rollouts: pa.Table) -> dict[str, str]:
    """rollout_id -> its family where the table has such a column and a value, else its policy."""
    families = rollouts["family"].to_pylist() if "family" in rollouts.column_names else [None] * rollouts.num_rows
    ids, policies = rollouts["rollout_id"].to_pylist(), rollouts["policy"].to_pylist()
    return {rollout: family or policy for rollout, family, policy in zip(ids, families, policies, strict=True)}


def self_preference(
    votes: pa.Table,
    pairs: pa.Table,
    own: Mapping[str, Names],
    origins: Mapping[str, str],
    gold: pa.Table | None = None,
) -> dict[str, Figures]:
    """judge -> {"own_win_share", "pairs", "beyond_gold", "beyond_others", "reason", "by_group"}; see the module.

    `pairs`: PAIRS, for their groups; `own`: fingerprint -> the judge's own names; `origins`: rollout_id -> where it
    comes from. `by_group`: the first five for each group; empty where nothing could be computed for all.
    """
    tables = split_by_judge(votes)
    panel = {
        name: _Wins(
            own.get(table["fingerprint"][0].as_py(), frozenset()),
            {pair: _win(p_a) for pair, p_a in preferences(table).items()},
        )
        for name, table in tables.items()
    }
    columns = ("pair_id", "prompt_id", "rollout_a", "rollout_b")
    matches = {
        pair: _Match(prompt, origins.get(a), origins.get(b))
        for pair, prompt, a, b in sorted(zip(*(votes[name].to_pylist() for name in columns), strict=True))
    }
    gold_wins: dict[str, float] = {}
    if gold is not None:
        gold_wins = {pair: P_A[won] for pair, won in gold_winners(gold).items()}
    known = {origin for origin in origins.values() if origin}
    groups: dict[str, dict[str, _Match]] = {}
    for pair, group in zip(pairs["pair_id"].to_pylist(), pairs["group"].to_pylist(), strict=True):
        if pair in matches:
            groups.setdefault(group, {})[pair] = matches[pair]
    report = {}
    for name in panel:
        figures = _of_one(name, panel, matches, gold_wins, known)
        parts = {} if figures["reason"] else dict(sorted(groups.items()))
        by_group = {group: _of_one(name, panel, part, gold_wins, known) for group, part in parts.items()}
        report[name] = {**figures, "by_group": by_group}
    return report


class _Wins(NamedTuple):
    """`of_a`: pair_id -> 1, 0 or one half, what response a won by this judge."""

    names: Names
    of_a: Mapping[str, float]


class _Match(NamedTuple):
    prompt_id: str
    a: str | None
    b: str | None


def _of_one(
    name: str,
    panel: Mapping[str, _Wins],
    matches: Mapping[str, _Match],
    gold: Mapping[str, float],
    known: set[str],
) -> Figures:
    mine = panel[name].names
    mixed = {pair: match for pair, match in matches.items() if (match.a in mine) != (match.b in mine)}
    judged = {pair: match for pair, match in mixed.items() if pair in panel[name].of_a}
    others = [one for other, one in panel.items() if other != name]
    own, by_gold, by_others = {}, {}, {}
    for pair, match in judged.items():
        is_a = match.a in mine
        own[pair] = _of(is_a, panel[name].of_a[pair])
        if pair in gold:
            by_gold[pair] = _of(is_a, gold[pair])
        seen = [one.of_a[pair] for one in others if pair in one.of_a and not one.names & {match.a, match.b}]
        if seen:
            by_others[pair] = _of(is_a, sum(seen) / len(seen))
    figures: Figures = {
        "own_win_share": sum(own.values()) / len(own) if own else None,
        "pairs": len(own),
        "beyond_gold": _beyond(own, by_gold, matches),
        "beyond_others": _beyond(own, by_others, matches),
    }
    found = by_gold or by_others
    return {**figures, "reason": None if found else _reason(mine, known, len(mixed), len(judged))}


def _of(is_a: bool, win_of_a: float) -> float:
    return win_of_a if is_a else 1 - win_of_a


def _beyond(own: Mapping[str, float], baseline: Mapping[str, float], matches: Mapping[str, _Match]) -> Figures | None:
    if not baseline:
        return None
    return clustered_mean(
        [own[pair] - value for pair, value in baseline.items()], [matches[pair].prompt_id for pair in baseline]
    )


def _reason(mine: Names, known: set[str], mixed: int, judged: int) -> str:
    if not mine:
        return "the judge has no family and no model"
    if not known & mine:
        return "no response is of the judge's family or model"
    if not mixed:
        return "no pair has exactly one response of the judge's family or model"
    if not judged:
        return "the judge decided none of the pairs with one response of its family or model"
    return "neither gold nor a judge of another family is there to compare with"


def _win(p_a: float) -> float:
    return P_A[winner(p_a) or "tie"]

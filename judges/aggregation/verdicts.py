"""People's verdicts override the judges: a pair with a standing verdict takes its label from people alone.

A verdict stands unless another one supersedes it or it is a skip (no winner). Several auditors on one pair are weighed
by the log-odds of their reliability, with a tie as 0.5 (`store.statistics.weighted_share`); equally, where nothing is
known about them. An auditor whose own standing verdicts on a pair contradict each other is left
out on that pair: which one was meant is not known.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field

import pyarrow as pa
import pyarrow.compute as pc

from judges.aggregation.gold import P_A
from judges.aggregation.labels import LABELS
from store.errors import UsageError
from store.statistics import weighted_share

UNKNOWN = 0.8
"""Reliability of an auditor about whom nothing is known."""


@dataclass(frozen=True)
class People:
    """`p_a`: pair_id -> share of the auditors, by weight, for a: 0..1. `auditors`: pair_id -> how many. `counts`: see
    `read_people`."""

    p_a: dict[str, float]
    auditors: dict[str, int]
    counts: dict[str, int] = field(default_factory=dict)


def read_people(verdicts: pa.Table, pairs: pa.Table, reliability: Mapping[str, float] | None = None) -> People:
    """Combine a VERDICTS table. Raises UsageError for a winner other than a, b, tie or null.

    `reliability`: auditor -> probability to be right; UNKNOWN for who is not in it.

    counts: `verdicts`, of which `superseded`, `skipped`, `unknown_pair`, `contradictory` (left out), `repeated` (the
    same auditor said the same again) and `standing`; `simulated` among the standing ones; `pairs` with a label.
    """
    known = set(pairs["pair_id"].to_pylist())
    rows = verdicts.select(["verdict_id", "pair_id", "auditor", "winner", "supersedes", "simulated"]).to_pylist()
    replaced = {row["supersedes"] for row in rows if row["supersedes"] is not None}
    counts = dict.fromkeys(
        ("verdicts", "superseded", "skipped", "unknown_pair", "contradictory", "repeated", "standing", "simulated"), 0
    )
    said: dict[tuple[str, str], list[tuple[str, bool]]] = defaultdict(list)
    for row in rows:
        counts["verdicts"] += 1
        if row["winner"] is not None and row["winner"] not in P_A:
            raise UsageError(
                f"Verdict {row['verdict_id']} has the winner {row['winner']!r}: use a, b, tie, or empty for a skip."
            )
        if row["verdict_id"] in replaced:
            counts["superseded"] += 1
        elif row["winner"] is None:
            counts["skipped"] += 1
        elif row["pair_id"] not in known:
            counts["unknown_pair"] += 1
        else:
            said[row["pair_id"], row["auditor"]].append((row["winner"], row["simulated"]))
    known_q = reliability or {}
    of_pair: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for (pair_id, auditor), answers in sorted(said.items()):
        if len({winner for winner, _ in answers}) > 1:
            counts["contradictory"] += len(answers)
            continue
        counts["standing"] += 1
        counts["repeated"] += len(answers) - 1
        counts["simulated"] += answers[0][1]
        of_pair[pair_id].append((P_A[answers[0][0]], known_q.get(auditor, UNKNOWN)))
    counts["pairs"] = len(of_pair)
    return People(
        {pair_id: weighted_share([v for v, _ in given], [q for _, q in given]) for pair_id, given in of_pair.items()},
        {pair_id: len(given) for pair_id, given in of_pair.items()},
        counts,
    )


def override(labels: pa.Table, people: People) -> tuple[pa.Table, int]:
    """LABELS with people's answers in place of the judges', and on how many pairs the two chose different winners.

    A pair that no judge could judge gets a label of n_votes 0.
    """
    rows = {row["pair_id"]: row for row in labels.filter(_among(labels, people)).to_pylist()}
    human, disagreements = [], 0
    for pair_id, p_a in sorted(people.p_a.items()):
        row = rows.get(pair_id) or {"pair_id": pair_id, "n_votes": 0, "votes_a": 0, "votes_b": 0, "p_a": 0.5}
        disagreements += (row["p_a"] - 0.5) * (p_a - 0.5) < 0
        human.append({**row, "p_a": p_a, "source": "human"})
    judged = labels.filter(pc.invert(_among(labels, people)))
    joined = pa.concat_tables([judged, pa.Table.from_pylist(human, schema=LABELS.schema)])
    return joined.sort_by("pair_id"), disagreements


def _among(labels: pa.Table, people: People) -> pa.ChunkedArray:
    return pc.is_in(labels["pair_id"], value_set=pa.array(list(people.p_a), pa.string()))

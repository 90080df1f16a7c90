"""What people say about each pair, from the verdicts in force."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

import pyarrow as pa

from audit.reliability import PRIOR_RIGHT, PRIOR_WRONG, VALUE, answers_in_force
from audit.verdicts import from_table, in_force
from store.statistics import weighted_share


@dataclass(frozen=True)
class Said:
    """`share_for_a`: pair_id -> 0..1, above 1/2 where people are for a. `skipped`: pair ids of all skips."""

    share_for_a: dict[str, float]
    skipped: list[str]


def people(verdicts: pa.Table, reliability: Mapping[str, float] | None = None) -> Said:
    """Each pair's share for a, of auditors weighted by how reliable they are (`store.statistics.weighted_share`).

    A tie counts half. `reliability`: auditor -> q, such as `audit.reliability.reliability` gives; who is not in it, and
    everybody without it, has the prior's. Who contradicts themself on a pair has no part there. Raises UsageError for a
    winner other than a, b or tie.
    """
    known = reliability or {}
    prior = PRIOR_RIGHT / (PRIOR_RIGHT + PRIOR_WRONG)
    given: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for row in answers_in_force(verdicts):
        given[row.pair_id].append((VALUE[row.winner or "tie"], known.get(row.auditor, prior)))
    skipped = [row.pair_id for row in in_force(from_table(verdicts)) if row.winner is None]
    shares = {pair_id: weighted_share([v for v, _ in rows], [q for _, q in rows]) for pair_id, rows in given.items()}
    return Said(shares, skipped)

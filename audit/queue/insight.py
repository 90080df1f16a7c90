"""Numbers for leads and ML ops about people's work. Quarantined people are shown, and left out of agreement.

Signals of trolls (a sign is no proof; a lead decides):

    score   sensitivity + specificity - 1 on hidden gold items (Youden 1950; the spammer score of Raykar and Yu, JMLR
            13, 2012): sensitivity = P(says left | gold left), specificity = P(says right | gold right), a tie counts
            half. 0 for anybody whose answer does not depend on the item, however lopsided; below 0 for an inverter. As
            a difference of two independent proportions it has Newcombe's hybrid score interval (Statistics in Medicine
            17, 1998, method 10).
    left    answers left against right: sides are drawn by a fair coin for each person and item, so without a habit of
            the hand left has probability 1/2 exactly, whatever the items are. Exact two-sided binomial test.
    fast    answers given faster than anybody reads.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import combinations, pairwise
from statistics import median
from typing import Any

import sqlalchemy as sa

from audit.queue import record
from audit.queue.database import Database
from audit.queue.model import Kind, VerdictKind
from audit.queue.tables import batches, items, users, verdicts
from store.statistics import newcombe, wilson

READS_AT_MOST = 25.0
"""Words a second. Silent reading of English is 4 on average (Brysbaert 2019); nobody takes in six times as many."""

LEVEL = 0.01
"""Of the test for a left-clicker over all auditors together; each is tested at this over their number (Bonferroni)."""

_PAUSE_S = 300.0


@dataclass(frozen=True)
class Share:
    """`count` of `n`, with the 95 % Wilson interval; None where n is 0."""

    count: int
    n: int
    value: float | None
    low: float | None
    high: float | None

    @classmethod
    def of(cls, count: int, n: int) -> Share:
        return cls(count, n, count / n, *wilson(count, n)) if n else cls(0, 0, None, None, None)


@dataclass(frozen=True)
class Throughput:
    """`per_hour`: answers per hour of work, a pause of over 5 minutes counted as none; None below 2 answers."""

    auditor: str
    simulated: bool
    quarantined: bool
    answers: int
    ties: int
    skips: int
    median_seconds: float | None
    per_hour: float | None
    last_at: datetime | None


@dataclass(frozen=True)
class Agreement:
    """`items`: answered by two or more people. `pairs`: pairs of answers that are the same, of all on these items.

    Pairs on one item depend on each other, so above an overlap of 2 the interval is a little too narrow.
    """

    items: int
    pairs: Share


@dataclass(frozen=True)
class Gold:
    """Of one auditor on hidden gold items: right answers (a tie is right where gold is a tie)."""

    auditor: str
    simulated: bool
    quarantined: bool
    right: Share


@dataclass(frozen=True)
class Signals:
    """Signs of a troll, a left-clicker or an inverter; signs only, a lead decides.

    `score`: sensitivity + specificity - 1 on gold items, -1..1, with its 95 % interval; 0 is chance, below 0 an
    inverter. `left`: share of left among left and right; `left_p`: exact two-sided p-value against a fair coin. `fast`:
    share of answers given faster than anybody reads. `flags`: in words, empty where nothing stands out.
    """

    auditor: str
    simulated: bool
    quarantined: bool
    gold: int
    score: float | None
    score_low: float | None
    score_high: float | None
    left: Share
    left_p: float | None
    fast: Share
    agreement: Share
    flags: tuple[str, ...]


@dataclass(frozen=True)
class Dispute:
    """An item on which people named different winners. `settled`: a lead adjudicated it."""

    item_id: str
    batch_id: str
    pair_id: str
    group: str
    reason: str
    for_a: int
    for_b: int
    ties: int
    settled: bool


class Insight:
    """Only reads. `batch_id` None means all batches."""

    def __init__(self, database: Database) -> None:
        self.database = database

    def throughput(self, batch_id: str | None = None) -> list[Throughput]:
        """By auditor, of verdicts in force; adjudications are left out."""
        rows = self._rows(batch_id, VerdictKind.ANSWER, VerdictKind.SKIP)
        return [_throughput(mine) for mine in _by_auditor(rows)]

    def agreement(self, batch_id: str | None = None) -> Agreement:
        by_item = _by_item(_trusted(self._rows(batch_id, VerdictKind.ANSWER)))
        shared = [group for group in by_item.values() if len(group) > 1]
        same = [a.winner == b.winner for group in shared for a, b in combinations(group, 2)]
        return Agreement(len(shared), Share.of(sum(same), len(same)))

    def ratings(self, batch_id: str | None = None) -> list[tuple[str, str, str]]:
        """(auditor, item, winner) of all answers in force, without quarantine: for agreement coefficients."""
        return [(row.name, row.item, row.winner) for row in _trusted(self._rows(batch_id, VerdictKind.ANSWER))]

    def gold(self, batch_id: str | None = None) -> list[Gold]:
        """By auditor; who saw no gold item yet is there with n = 0."""
        found = []
        for mine in _by_auditor(self._rows(batch_id, VerdictKind.ANSWER)):
            seen = [row.winner == row.gold_winner for row in mine if row.kind == Kind.GOLD.value]
            found.append(Gold(*_who(mine[0]), Share.of(sum(seen), len(seen))))
        return found

    def signals(self, batch_id: str | None = None) -> list[Signals]:
        """By auditor."""
        rows = self._rows(batch_id, VerdictKind.ANSWER)
        by_item = _by_item(_trusted(rows))
        people = _by_auditor(rows)
        return [_signals(mine, by_item, LEVEL / len(people)) for mine in people]

    def disputes(self, batch_id: str | None = None, settled: bool = False) -> list[Dispute]:
        """Open ones, oldest first; with `settled` those that a lead has decided."""
        rows = _trusted(self._rows(batch_id, VerdictKind.ANSWER))
        decided = {row.item for row in self._rows(batch_id, VerdictKind.ADJUDICATION)}
        found = []
        for item, group in _by_item(rows).items():
            count = Counter(row.winner for row in group)
            if len(count) > 1 and (item in decided) == settled:
                row = group[0]
                counts = (count["a"], count["b"], count["tie"])
                found.append(Dispute(item, row.batch, row.pair_id, row.group, row.reason, *counts, settled))
        return found

    def _rows(self, batch_id: str | None, *kinds: VerdictKind) -> Sequence[Any]:
        found = (
            sa.select(
                users.c.name,
                users.c.simulated,
                users.c.quarantined,
                items.c.public_id.label("item"),
                items.c.pair_id,
                items.c.kind,
                items.c.gold_winner,
                items.c.group,
                items.c.reason,
                items.c.words,
                batches.c.public_id.label("batch"),
                verdicts.c.winner,
                verdicts.c.shown_left,
                verdicts.c.seconds,
                verdicts.c.elapsed,
                verdicts.c.created_at,
                verdicts.c.supersedes,
            )
            .select_from(verdicts)
            .join(users, users.c.id == verdicts.c.user_id)
            .join(items, items.c.id == verdicts.c.item_id)
            .join(batches, batches.c.id == items.c.batch_id)
            .where(verdicts.c.kind.in_([kind.value for kind in kinds]), record.in_force())
            .order_by(verdicts.c.id)
        )
        if batch_id is not None:
            found = found.where(batches.c.public_id == batch_id)
        with self.database.read() as connection:
            return connection.execute(found).all()


def spammer_score(said: Iterable[tuple[str, str]]) -> tuple[float, float, float] | None:
    """Score, low and high from (answer, gold), each left, right or tie; None without gold on both sides.

    Gold that is a tie is left out: it has no side to be found.
    """
    half = {"left": 1.0, "tie": 0.5, "right": 0.0}
    on = defaultdict[str, list[float]](list)
    for answer, gold in said:
        on[gold].append(half[answer])
    if not on["left"] or not on["right"]:
        return None
    # specificity - 1 = -P(says left | gold right)
    return newcombe(sum(on["left"]), len(on["left"]), sum(on["right"]), len(on["right"]))


def _throughput(mine: Sequence[Any]) -> Throughput:
    answers = [row for row in mine if row.winner is not None]
    times = sorted(row.created_at for row in answers)
    gaps = [(later - earlier).total_seconds() for earlier, later in pairwise(times)]
    worked = [gap for gap in gaps if gap <= _PAUSE_S]
    return Throughput(
        *_who(mine[0]),
        answers=len(answers),
        ties=sum(row.winner == "tie" for row in answers),
        skips=len(mine) - len(answers),
        median_seconds=median(map(_seconds, answers)) if answers else None,
        per_hour=3600 * len(worked) / sum(worked) if sum(worked) else None,
        last_at=times[-1] if times else None,
    )


def _signals(mine: Sequence[Any], by_item: dict[str, list[Any]], level: float) -> Signals:
    said = [record.choice(row.winner, row.shown_left) for row in mine]
    gold = [
        (choice, record.choice(row.gold_winner, row.shown_left))
        for row, choice in zip(mine, said, strict=True)
        if row.kind == Kind.GOLD.value
    ]
    score = spammer_score(gold)
    # Here, not above: it weighs 60 MB in a server that may never be asked for this page.
    from scipy.stats import binomtest

    left, right = said.count("left"), said.count("right")
    p = float(binomtest(left, left + right, 0.5).pvalue) if left + right else None
    # A corrected answer takes a moment: its item was read before.
    first = [row for row in mine if row.supersedes is None]
    fast = Share.of(sum(row.words > READS_AT_MOST * _seconds(row) for row in first), len(first))
    others = [
        (row.winner, other.winner) for row in mine for other in by_item.get(row.item, []) if other.name != row.name
    ]
    agreement = Share.of(sum(own == other for own, other in others), len(others))
    flags = []
    if score is not None and score[2] < 0:
        flags.append("answers gold items the wrong way round")
    elif score is not None and score[1] <= 0 and score[2] < 0.5:
        flags.append("answers gold items no better than chance")
    if p is not None and p < level:
        flags.append(f"presses {'left' if left > right else 'right'} far more often than a fair coin")
    if fast.low is not None and fast.low > 0.1:
        flags.append("answers faster than anybody reads")
    low, high = (None, None) if score is None else score[1:]
    value = None if score is None else score[0]
    return Signals(
        *_who(mine[0]), len(gold), value, low, high, Share.of(left, left + right), p, fast, agreement, tuple(flags)
    )


def _seconds(row: Any) -> float:
    """The shorter of the page's time and the queue's: a page can be made to say anything."""
    elapsed: float = row.elapsed
    return elapsed if row.seconds is None else min(row.seconds, elapsed)


def _who(row: Any) -> tuple[str, bool, bool]:
    return row.name, row.simulated, row.quarantined is not None


def _trusted(rows: Iterable[Any]) -> list[Any]:
    return [row for row in rows if row.quarantined is None]


def _by_auditor(rows: Iterable[Any]) -> list[list[Any]]:
    found: dict[str, list[Any]] = defaultdict(list)
    for row in rows:
        found[row.name].append(row)
    return [found[name] for name in sorted(found)]


def _by_item(rows: Iterable[Any]) -> dict[str, list[Any]]:
    found: dict[str, list[Any]] = defaultdict(list)
    for row in rows:
        found[row.item].append(row)
    return found

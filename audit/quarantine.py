"""Which auditors' verdicts are set aside, and why. Takes a verdicts table and hidden gold, gives a report and the rest.

Four tests an auditor, on answers in force:

    inverted  on hidden gold, left is said more often where right is known than where left is known: one-sided Fisher
              test of the sign of the spammer score;
    gold      the share right on hidden gold is below `min_gold_accuracy`: one-sided exact binomial test;
    left      left and right are not pressed equally often: exact two-sided binomial test against 1/2, which is exact
              because sides are drawn by a fair coin, whatever the items are;
    fast      more than `max_fast_share` of the answers took less than `min_seconds`: one-sided exact binomial test.

The spammer score is sensitivity + specificity - 1 on gold with a side, sensitivity = P(says left | left is known),
specificity = P(says right | right is known), a tie counts half (Youden 1950; Raykar and Yu, JMLR 13, 2012): 0 for
anybody whose answer does not depend on the item, below 0 for an inverter.

Many tests are made, so an auditor is set aside only by a p-value that survives Holm's correction over all tests of all
auditors at `level`: with 50 honest auditors the chance to lose any of them is still `level`. Nothing is deleted:
whoever is set aside stays in the tables and in this report, and everything that is computed from verdicts is computed
without them. A person's decision overrides the tests in both directions: `quarantined` and `trusted` of the limits, and
a true value in a column `quarantined`, as exports of the audit queue have.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from audit.reliability import VALUE, answers_in_force, gold_answers, one_coin
from audit.verdicts import Verdict
from store.errors import UsageError
from store.limits import AuditorLimits
from store.schemas import Table
from store.statistics import holm, newcombe

INVERTED, GOLD, LEFT, FAST = "inverted", "gold", "left", "fast"
BY_HAND = "by hand"


@dataclass(frozen=True)
class Auditor:
    """One auditor's figures and fate. Shares in 0..1, None where there is nothing to count.

    `reasons`: the tests that set the auditor aside, or `by hand`; empty for who is kept. `answers`: in force, of which
    `ties`. `gold`, `gold_right`: hidden gold answered and right (a tie is right where gold is a tie). `score`: the
    spammer score, -1..1, with its 95 % Newcombe interval. `left`, `right`: answers on that side. `timed`, `fast`: first
    answers with a time, and those below `min_seconds`. `compared`, `agreed`: answers of others on the same pairs, and
    those that are the same. `reliability`: q of `audit.reliability`. `*_p`: p-values of the four tests, uncorrected.
    """

    auditor: str
    simulated: bool
    quarantined: bool
    reasons: tuple[str, ...]
    answers: int
    ties: int
    gold: int
    gold_right: int
    score: float | None
    score_low: float | None
    score_high: float | None
    left: int
    right: int
    timed: int
    fast: int
    compared: int
    agreed: int
    reliability: float
    inverted_p: float | None
    gold_p: float | None
    left_p: float | None
    fast_p: float | None


@dataclass(frozen=True)
class Quarantine:
    """`auditors`: everybody with an answer in force, by name. `verdicts`: rows of the table; `set_aside`: rows of those
    in quarantine. `tests`: how many were made, which is what Holm's correction is over."""

    auditors: tuple[Auditor, ...]
    verdicts: int
    set_aside: int
    tests: int

    @property
    def names(self) -> tuple[str, ...]:
        """The auditors in quarantine."""
        return tuple(auditor.auditor for auditor in self.auditors if auditor.quarantined)

    @property
    def reliability(self) -> dict[str, float]:
        """auditor -> q of those who are kept, estimated without the others."""
        return {row.auditor: row.reliability for row in self.auditors if not row.quarantined}

    def table(self) -> pa.Table:
        rows = [asdict(row) | {"reasons": list(row.reasons)} for row in self.auditors]
        return pa.Table.from_pylist(rows, schema=QUARANTINE.schema)

    def to_json(self) -> dict[str, Any]:
        """Counts, and each quarantined auditor's reasons, for metrics."""
        return {
            "auditors": len(self.auditors),
            "quarantined": {row.auditor: list(row.reasons) for row in self.auditors if row.quarantined},
            "verdicts": self.verdicts,
            "verdicts_set_aside": self.set_aside,
            "tests": self.tests,
        }


_text, _int, _real, _bool = pa.string(), pa.int64(), pa.float64(), pa.bool_()
_NULLABLE = ("score", "score_low", "score_high", "inverted_p", "gold_p", "left_p", "fast_p")
_COUNTS = ("answers", "ties", "gold", "gold_right", "left", "right", "timed", "fast", "compared", "agreed")
QUARANTINE = Table(
    "quarantine",
    pa.schema(
        [
            pa.field("auditor", _text, nullable=False),
            pa.field("simulated", _bool, nullable=False),
            pa.field("quarantined", _bool, nullable=False),
            pa.field("reasons", pa.list_(_text), nullable=False),
            *(pa.field(name, _int, nullable=False) for name in _COUNTS),
            pa.field("reliability", _real, nullable=False),
            *(pa.field(name, _real) for name in _NULLABLE),
        ]
    ),
    key="auditor",
)
"""One row an auditor; the columns are described at `Auditor`."""


def quarantine(verdicts: pa.Table, gold: pa.Table | None = None, limits: AuditorLimits | None = None) -> Quarantine:
    """See the module. `verdicts`: a verdicts table with hidden gold items among the rest; `gold`: a table with the
    columns pair_id and winner (a, b, tie) of these, and of any other pairs.

    Raises UsageError for another winner, in verdicts or gold, and for an auditor both trusted and quarantined by hand.
    """
    limits = limits or AuditorLimits()
    both = sorted(set(limits.trusted) & set(limits.quarantined))
    if both:
        raise UsageError(f"Auditor {both[0]!r} is named under both trusted and quarantined: keep one.")
    answers, known = answers_in_force(verdicts), gold_answers(gold)
    of_auditor: dict[str, list[Verdict]] = defaultdict(list)
    for row in answers:
        of_auditor[row.auditor].append(row)
    p_values = {name: _tests(rows, known, limits) for name, rows in of_auditor.items()}
    made = [(name, test, p) for name, tests in sorted(p_values.items()) for test, p in tests.items() if p is not None]
    fallen = holm([p for _, _, p in made], limits.level) if limits.level > 0 else [False] * len(made)
    reasons: dict[str, list[str]] = defaultdict(list)
    for (name, test, _), fell in zip(made, fallen, strict=True):
        if fell:
            reasons[name].append(test)
    for name in {*limits.quarantined, *_marked(verdicts)}:
        reasons[name].append(BY_HAND)
    for name in limits.trusted:
        reasons.pop(name, None)
    kept = one_coin([row for row in answers if row.auditor not in reasons], known)
    everybody = one_coin(answers, known)
    of_pair: dict[str, list[Verdict]] = defaultdict(list)
    for row in answers:
        of_pair[row.pair_id].append(row)
    q = everybody | kept
    auditors = [
        _figures(rows, tuple(reasons.get(name, ())), of_pair, known, limits, p_values[name], q[name])
        for name, rows in sorted(of_auditor.items())
    ]
    aside = verdicts.num_rows - without(verdicts, reasons).num_rows
    return Quarantine(tuple(auditors), verdicts.num_rows, aside, len(made))


def without(verdicts: pa.Table, auditors: Sequence[str] | Mapping[str, Any]) -> pa.Table:
    """The verdicts of everybody else."""
    return verdicts.filter(pc.invert(pc.is_in(verdicts["auditor"], value_set=pa.array(list(auditors), pa.string()))))


def _marked(verdicts: pa.Table) -> set[str]:
    if "quarantined" not in verdicts.column_names:
        return set()
    return set(verdicts.filter(pc.fill_null(verdicts["quarantined"], False))["auditor"].to_pylist())


def _tests(rows: list[Verdict], known: Mapping[str, str], limits: AuditorLimits) -> dict[str, float | None]:
    # Imported where it is used: it takes half a second and 60 MB.
    from scipy.stats import binom, binomtest, hypergeom

    said = Counter(_side(row.winner, row) for row in rows)
    on_gold = _on_gold(rows, known)
    right = sum(row.winner == known[row.pair_id] for row in on_gold)
    timed, fast = _times(rows, limits)
    decided = said["left"] + said["right"]
    cells = Counter((_side(row.winner, row), _side(known[row.pair_id], row)) for row in on_gold)
    left_known, right_known = (cells["left", side] + cells["right", side] for side in ("left", "right"))
    said_left = cells["left", "left"] + cells["left", "right"]
    tests: dict[str, float | None] = dict.fromkeys((INVERTED, GOLD, LEFT, FAST))
    if left_known and right_known:
        tests[INVERTED] = float(hypergeom.cdf(cells["left", "left"], left_known + right_known, left_known, said_left))
    if on_gold:
        tests[GOLD] = float(binom.cdf(right, len(on_gold), limits.min_gold_accuracy))
    if decided:
        tests[LEFT] = float(binomtest(said["left"], decided, 0.5).pvalue)
    if timed:
        tests[FAST] = float(binom.sf(fast - 1, timed, limits.max_fast_share))
    return tests


def _figures(
    rows: list[Verdict],
    reasons: tuple[str, ...],
    of_pair: Mapping[str, list[Verdict]],
    known: Mapping[str, str],
    limits: AuditorLimits,
    tests: Mapping[str, float | None],
    reliability: float,
) -> Auditor:
    others = [(row, other) for row in rows for other in of_pair[row.pair_id] if other.auditor != row.auditor]
    on_gold = _on_gold(rows, known)
    said = Counter(_side(row.winner, row) for row in rows)
    score = spammer_score([(_side(row.winner, row), _side(known[row.pair_id], row)) for row in on_gold])
    timed, fast = _times(rows, limits)
    return Auditor(
        auditor=rows[0].auditor,
        simulated=any(row.simulated for row in rows),
        quarantined=bool(reasons),
        reasons=reasons,
        answers=len(rows),
        ties=said["tie"],
        gold=len(on_gold),
        gold_right=sum(row.winner == known[row.pair_id] for row in on_gold),
        score=None if score is None else score[0],
        score_low=None if score is None else score[1],
        score_high=None if score is None else score[2],
        left=said["left"],
        right=said["right"],
        timed=timed,
        fast=fast,
        compared=len(others),
        agreed=sum(row.winner == other.winner for row, other in others),
        reliability=reliability,
        inverted_p=tests[INVERTED],
        gold_p=tests[GOLD],
        left_p=tests[LEFT],
        fast_p=tests[FAST],
    )


def spammer_score(said: Sequence[tuple[str, str]]) -> tuple[float, float, float] | None:
    """Score with its 95 % interval from (answer, gold), each left, right or tie; None without gold on both sides."""
    value = {"left": 1.0, "tie": 0.5, "right": 0.0}
    on: dict[str, list[float]] = defaultdict(list)
    for answer, gold in said:
        on[gold].append(value[answer])
    if not on["left"] or not on["right"]:
        return None
    # specificity - 1 = -P(says left | right is known)
    return newcombe(sum(on["left"]), len(on["left"]), sum(on["right"]), len(on["right"]))


def _side(winner: str | None, row: Verdict) -> str:
    if winner not in VALUE or winner == "tie":
        return "tie"
    return "left" if winner == row.shown_left else "right"


def _on_gold(rows: list[Verdict], known: Mapping[str, str]) -> list[Verdict]:
    return [row for row in rows if row.pair_id in known]


def _times(rows: list[Verdict], limits: AuditorLimits) -> tuple[int, int]:
    """A corrected answer takes a moment: its item was read before. Who measured no time cannot be too fast."""
    seconds = [row.seconds for row in rows if row.supersedes is None and not math.isnan(row.seconds)]
    return len(seconds), sum(value < limits.min_seconds for value in seconds)

"""The gate between judging and training: are these judges, and the labels made of their votes, fit to train on?

In: the votes, the labels, pairs with texts, gold. Out: one `Check` a figure and limit of `judges.config.GateConfig`.
A rate is broken where the near end of its 95 % interval lies beyond the limit: evidence stops a round, want of evidence
does not, and what could not be measured says so. For agreement with gold it is the other way round, since labels are
not trusted until they have shown something: its lower bound must reach the limit, from `min_gold_pairs` on.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from judges.aggregation.gold import folds, known_answers
from judges.aggregation.labels import Aggregator
from judges.aggregation.slots import SlotVotes, slot_votes
from judges.config import GateConfig
from judges.reports.accounting import account, split_by_judge
from judges.reports.proportions import clustered_slope
from store.errors import RlaifError
from store.schemas import Status
from store.statistics import Z_95, wilson

FEWEST = 20
"""Labels below which their mean entropy stops nothing."""
PANEL = "panel"

Reals = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Check:
    """One figure against its limit. `of`: a judge, or the panel. `low`, `high`: 95 % interval. `n`: observations.
    `limit`: as in the config, under the key `key`. `state`: ok, broken, few (too few to tell), unmeasured or off."""

    figure: str
    of: str
    value: float | None
    low: float | None
    high: float | None
    n: int
    limit: float | None
    key: str
    state: str


class GateError(RlaifError):
    """The judges did not pass. `checks`: all of them; `details`: the same as a table."""

    def __init__(self, message: str, checks: Sequence[Check]) -> None:
        super().__init__(message)
        self.checks = list(checks)
        self.details = table_of(checks)


def check_gate(
    votes: pa.Table,
    labels: pa.Table,
    pairs: pa.Table | None,
    config: GateConfig,
    *,
    agreement: tuple[int, int] | None = None,
    canaries: Mapping[str, Mapping[str, Any]] | None = None,
) -> list[Check]:
    """All checks, broken or not.

    `votes`: checked VOTES; `labels`: LABELS of judges, before people override them; `pairs`: PAIRS, for the lengths of
    responses; `agreement`: how many gold winners the labels have right, and of how many (`gold_agreement`); `canaries`:
    fingerprint -> the figures `all` of `judges.canaries.canary_report`.
    """
    found = slot_votes(votes)
    judges = split_by_judge(votes)
    column = {fingerprint: at for at, fingerprint in enumerate(found.judges)}
    checks = [_rate("order flips", PANEL, *panel_flips(found), config.max_flip_rate, "max_flip_rate")]
    for name, own in judges.items():
        at = column.get(own["fingerprint"][0].as_py())
        flips = (0, 0) if at is None else _flips(found.log_odds[0, :, at], found.log_odds[1, :, at])
        checks.append(_rate("order flips", name, *flips, config.max_judge_flip_rate, "max_judge_flip_rate"))
    for name, own in judges.items():
        counts = account(own)
        failures = counts[Status.PARSE_FAILURE], counts["attempted"]
        checks.append(_rate("parse failures", name, *failures, config.max_parse_failure_rate, "max_parse_failure_rate"))
    for name, own in judges.items():
        figures = (canaries or {}).get(own["fingerprint"][0].as_py(), {})
        flips = int(figures.get("flipped", 0)), int(figures.get("attempted", 0))
        checks.append(_rate("canary flips", name, *flips, config.max_canary_flip_rate, "max_canary_flip_rate"))
    return [*checks, _length(labels, pairs, config), _gold(agreement, config), *_entropy(labels, config)]


def decide(checks: Sequence[Check], override: str | None) -> dict[str, Any]:
    """The gate's metrics: `passed`, `broken` (names), `override` (the reason, where it was needed), `checks`.

    Raises GateError where a limit is broken and nobody gave a reason to go on.
    """
    broken = [check for check in checks if check.state == "broken"]
    if broken and override is None:
        said = "; ".join(_sentence(check) for check in broken)
        raise GateError(
            f"The judges did not pass the gate: {said}. Look at them with rlaif judges check, or set a limit in "
            f"aggregate.gate, or go on with rlaif run --override-gate REASON (of the stage alone: --set "
            f"gate.override=REASON).",
            checks,
        )
    return {
        "passed": not broken,
        "broken": [f"{check.figure} of {check.of}" for check in broken],
        "override": override if broken else None,
        "checks": [asdict(check) for check in checks],
    }


def panel_flips(votes: SlotVotes) -> tuple[int, int]:
    """Pairs whose panel winner changes with the order, and pairs with a panel winner in both orders.

    The panel's winner in an order is that of the mean p_a of the judges with a valid vote in both orders of the pair.
    """
    p = 1 / (1 + np.exp(-votes.log_odds))
    both = ~np.isnan(p).any(axis=0)
    count = both.sum(axis=1)
    mean = [
        np.divide(np.where(both, p[order], 0.0).sum(axis=1), count, out=np.full(count.shape, np.nan), where=count > 0)
        for order in (0, 1)
    ]
    # Rounded, so that votes which cancel are no winner by their last bit.
    return _flips(*(np.round(one - 0.5, 12) for one in mean))


def gold_agreement(
    new: Callable[[], Aggregator], votes: pa.Table, gold: pa.Table, people: pa.Table | None = None
) -> tuple[int, int]:
    """How many winners of GOLD the labels have right, of how many that are a or b; a tie or no label is not right.

    Cross-fitted: each fifth of the gold, by the prompt's hash, is labelled by a method that was fitted on the rest, so
    that weights are not measured on what they were learnt from. `people`: ANSWERS to fit on besides.
    """
    answers = known_answers(gold)
    prompts = dict(zip(gold["pair_id"].to_pylist(), gold["prompt_id"].to_pylist(), strict=True))
    fold = folds([prompts[pair] for pair in answers["pair_id"].to_pylist()])
    decided = answers["p_a"].to_numpy() != 0.5
    right = 0
    for number in np.unique(fold[decided]).tolist():
        rest, own = answers.filter(pa.array(fold != number)), answers.filter(pa.array((fold == number) & decided))
        known = rest if people is None else pa.concat_tables([rest, people])
        method = new().fit(_on(votes, known), known)
        labels = method.predict(_on(votes, own))
        p_a = dict(zip(labels["pair_id"].to_pylist(), labels["p_a"].to_pylist(), strict=True))
        right += sum((p_a.get(row["pair_id"], 0.5) - 0.5) * (row["p_a"] - 0.5) > 0 for row in own.to_pylist())
    return right, int(decided.sum())


def label_entropy(labels: pa.Table) -> float | None:
    """Mean entropy of the labels in bits: 0 where all are certain, 1 where all are coin tosses; None without any."""
    if not labels.num_rows:
        return None
    return float(_entropies(labels).mean())


def table_of(checks: Sequence[Check]) -> str:
    """The checks as aligned lines, broken ones marked."""
    rows = [("", "figure", "of", "value", "95 % interval", "n", "limit")]
    for check in checks:
        between = "-" if check.low is None or check.high is None else f"{check.low:.3f} to {check.high:.3f}"
        value, limit = ("-" if one is None else f"{one:.3f}" for one in (check.value, check.limit))
        bound = "" if check.limit is None else f"{_bound(check)[0]} "
        rows.append((check.state, check.figure, check.of, value, between, str(check.n), bound + limit))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)


def _rate(figure: str, of: str, count: int, n: int, limit: float | None, key: str) -> Check:
    if not n:
        return Check(figure, of, None, None, None, 0, limit, key, "off" if limit is None else "unmeasured")
    low, high = wilson(count, n)
    state = "off" if limit is None else "broken" if low > limit else "ok"
    return Check(figure, of, count / n, low, high, n, limit, key, state)


def _flips(ab: Reals, ba: Reals) -> tuple[int, int]:
    """Pairs with another winner in the other order, and pairs with a winner in both; nan and 0 are none."""
    decided = ~np.isnan(ab) & ~np.isnan(ba) & (ab != 0) & (ba != 0)
    return int(np.sum(decided & (np.sign(ab) != np.sign(ba)))), int(decided.sum())


def _length(labels: pa.Table, pairs: pa.Table | None, config: GateConfig) -> Check:
    """The slope of p_a - 1/2 on the length difference in standard deviations, through the origin: which response is a
    was drawn at random."""
    limit, key = config.max_length_slope, "max_length_slope"
    nothing = Check("length slope", PANEL, None, None, None, 0, limit, key, "off" if limit is None else "unmeasured")
    if pairs is None:
        return nothing
    at = pc.index_in(labels["pair_id"], value_set=pairs["pair_id"].combine_chunks())
    own = pairs.take(at.drop_null())
    a, b = (pc.utf8_length(own[f"response_{side}"]).to_numpy().astype(np.float64) for side in "ab")
    y = labels["p_a"].filter(pc.is_valid(at)).to_numpy() - 0.5
    spread = math.sqrt(float(np.mean((a - b) ** 2))) if len(a) else 0.0
    if not spread:
        return nothing
    slope, error = clustered_slope((a - b) / spread, y, own["prompt_id"].to_pylist())
    if error is None:
        return nothing
    low, high = slope - Z_95 * error, slope + Z_95 * error
    nearest = 0.0 if low <= 0 <= high else min(abs(low), abs(high))
    state = "off" if limit is None else "broken" if nearest > limit else "ok"
    return Check("length slope", PANEL, slope, low, high, len(a), limit, key, state)


def _gold(agreement: tuple[int, int] | None, config: GateConfig) -> Check:
    limit, key = config.min_gold_agreement, "min_gold_agreement"
    right, n = agreement or (0, 0)
    if not n:
        return _rate("agreement with gold", PANEL, 0, 0, limit, key)
    low, high = wilson(right, n)
    state = "off" if limit is None else "few" if n < config.min_gold_pairs else "broken" if low < limit else "ok"
    return Check("agreement with gold", PANEL, right / n, low, high, n, limit, key, state)


def _entropy(labels: pa.Table, config: GateConfig) -> list[Check]:
    """With the interval of a mean; labels are taken as independent. A few that are alike would have none."""
    n, value = labels.num_rows, label_entropy(labels)
    limits = [("max_label_entropy", config.max_label_entropy)]
    if config.min_label_entropy is not None:
        limits.append(("min_label_entropy", config.min_label_entropy))
    if value is None or n < 2:
        return [Check("label entropy", PANEL, value, None, None, n, limit, key, "unmeasured") for key, limit in limits]
    half = Z_95 * float(_entropies(labels).std(ddof=1)) / math.sqrt(n)
    low, high = value - half, value + half
    checks = []
    for key, limit in limits:
        broken = limit is not None and (low > limit if key.startswith("max_") else high < limit)
        state = "off" if limit is None else "few" if n < FEWEST else "broken" if broken else "ok"
        checks.append(Check("label entropy", PANEL, value, low, high, n, limit, key, state))
    return checks


def _entropies(labels: pa.Table) -> Reals:
    p = labels["p_a"].to_numpy()
    inside = np.clip(p, 1e-300, 1 - 1e-16)
    bits = -(inside * np.log2(inside) + (1 - inside) * np.log1p(-inside) / math.log(2))
    return np.where((p <= 0) | (p >= 1), 0.0, bits)


def _sentence(check: Check) -> str:
    between = "" if check.low is None or check.high is None else f" (95 % interval {check.low:.3f} to {check.high:.3f})"
    return f"{check.figure} of {check.of} {check.value:.3f}{between}, {_bound(check)[1]} {check.key} = {check.limit:g}"


def _bound(check: Check) -> tuple[str, str]:
    """What the limit asks for, and how it is broken."""
    if check.key == "max_length_slope":
        return "either way at most", "steeper than"
    return ("at least", "below") if check.key.startswith("min_") else ("at most", "above")


def _on(votes: pa.Table, answers: pa.Table) -> pa.Table:
    return votes.filter(pc.is_in(votes["pair_id"], value_set=answers["pair_id"].combine_chunks()))

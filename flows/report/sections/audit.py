"""The audit: which pairs people were shown, what each auditor did, and what the judges are worth by their verdicts."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import median
from typing import Any

from audit.verdicts import Verdict, in_force
from flows.report.data import Round
from flows.report.measures import proportion
from flows.report.values import Estimate, estimate, integer

_WINNERS = {"a": "response a is better", "b": "response b is better", "tie": "tie", None: "skipped"}


@dataclass(frozen=True)
class Auditor:
    """What one auditor did. `gold`: share right of the hidden pairs with known winners, with Wilson's interval."""

    name: str
    simulated: bool
    n: int
    skipped: int
    median_s: float | None
    gold: Estimate | None


@dataclass(frozen=True)
class Audited:
    """A judge against the auditors: the same share by the four estimators of `audit.estimates.accuracy`."""

    judge: str
    n: int | None
    naive: Estimate | None
    corrected: Estimate | None
    weighted: Estimate | None
    uniform: Estimate | None


def audit(round_: Round) -> dict[str, Any] | None:
    if "audit" not in round_.manifests or round_.setting("audit", "mode") == "off":
        return None
    selection, verdicts = round_.selection, round_.verdicts or []
    current = in_force(verdicts)
    by_auditor: dict[tuple[str, bool], list[Verdict]] = {}
    for verdict_ in current:
        by_auditor.setdefault((verdict_.auditor, verdict_.simulated), []).append(verdict_)
    simulated = sum(verdict_.simulated for verdict_ in current)
    golds, late, left_out = (_counts(round_.metrics("audit").get(name)) for name in ("gold", "late", "left_out"))
    drawn = None if selection is None else selection[selection["drawn"]]
    return {
        "judged": None if selection is None else len(selection),
        "drawn": None if drawn is None else len(drawn),
        "strata": {}
        if drawn is None
        else {str(k): int(n) for k, n in drawn["stratum"].value_counts().sort_index().items()},
        "auditors": [_auditor(*who, own, golds.get(who[0])) for who, own in sorted(by_auditor.items())],
        "by_winner": Counter(_WINNERS.get(verdict_.winner, str(verdict_.winner)) for verdict_ in current),
        "people": len(current) - simulated,
        "simulated": simulated,
        "replaced": len(verdicts) - len(current),
        "estimates": _audit_estimates(round_),
        "late": late if late.get("verdicts") else None,
        "left_out": {name.replace("_", " "): n for name, n in left_out.items() if n},
        "problem_files": round_.metrics("audit").get("problem_files") or [],
    }


def _counts(value: Any) -> dict[str, Any]:
    return dict(value) if isinstance(value, Mapping) else {}


def _auditor(name: str, simulated: bool, verdicts: list[Verdict], gold: Any) -> Auditor:
    """`gold`: how many hidden pairs with known winners they answered, and how many right."""
    seconds = [verdict_.seconds for verdict_ in verdicts if math.isfinite(verdict_.seconds)]
    skipped = sum(verdict_.winner is None for verdict_ in verdicts)
    known = _counts(gold)
    right, n = integer(known.get("right")), integer(known.get("answered"))
    found = proportion(Estimate(right / n, n=n)) if n and right is not None else None
    return Auditor(name, simulated, len(verdicts), skipped, median(seconds) if seconds else None, found)


def _audit_estimates(round_: Round) -> list[Audited]:
    found = round_.metrics("audit").get("estimates")
    if not isinstance(found, Mapping):
        return []
    rows = [row for row in [found.get("panel"), *(found.get("judges") or [])] if isinstance(row, Mapping)]
    return [
        Audited(
            str(row.get("judge", "")),
            integer(row.get("audited")),
            _audit_estimate(row, "naive", "naive_"),
            _audit_estimate(row, "corrected", "corrected_"),
            _audit_estimate(row, "hajek", "hajek_"),
            _audit_estimate(row, "uniform", ""),
        )
        for row in rows
    ]


def _audit_estimate(row: Mapping[str, Any], name: str, bounds: str) -> Estimate | None:
    return estimate({"mean": row.get(name), "low": row.get(f"{bounds}low"), "high": row.get(f"{bounds}high")})

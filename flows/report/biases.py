"""Rows of the table of biases: what the judge stage measured on each judge, and by group where it did."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from flows.report.data import Round
from flows.report.measures import per_judge
from flows.report.values import Estimate, estimate, integer, mapping, real


@dataclass(frozen=True)
class Bias:
    """`flips`: winners that change with the order; `first_slot`: winners shown first; `length`: p for 100 characters
    more; `pairs`: with a winner in both orders, which the first two are of; `ties`, `abstains`: shares of votes."""

    label: str
    pairs: int | None
    flips: Estimate | None
    first_slot: Estimate | None
    length: Estimate | None
    ties: float | None
    abstains: float | None


@dataclass(frozen=True)
class JudgeBias:
    """`own`: what a judge adds to its own family's wins beyond gold or the other judges, with `against` which; or
    `reason`, why that is not known. `controlled`: accuracy at equal lengths, on the calibration set."""

    whole: Bias
    groups: list[Bias]
    controlled: float | None
    own: Estimate | None
    against: str | None
    reason: str | None


def biases(round_: Round) -> list[JudgeBias]:
    measured = per_judge(round_)
    own = mapping(round_.metrics("judge").get("self_preference"))
    accuracy = mapping(round_.metrics("judge").get("judge_accuracy"))
    rows = []
    for name, item in sorted(measured.items()):
        if "order_flip_rate" not in item:
            continue
        family = mapping(own.get(name))
        beyond = {what: estimate(family.get(f"beyond_{what}")) for what in ("gold", "others")}
        against = next((what for what, value in beyond.items() if value is not None), None)
        groups = mapping(item.get("by_group"))
        rows.append(
            JudgeBias(
                whole=_bias(name, item),
                groups=[_bias(group, value) for group, value in groups.items() if isinstance(value, Mapping)],
                controlled=real(mapping(mapping(accuracy.get(name)).get("length")).get("controlled_accuracy")),
                own=beyond[against] if against else None,
                against=against,
                reason=str(family["reason"]) if family.get("reason") else None,
            )
        )
    return rows


def _bias(label: str, item: Mapping[str, Any]) -> Bias:
    return Bias(
        label=label,
        pairs=integer(item.get("pairs_in_both_orders")),
        flips=_estimate(item, "order_flip_rate", "order_flip"),
        first_slot=_estimate(item, "first_slot_rate", "first_slot"),
        length=_estimate(item, "length_slope", "length_slope"),
        ties=real(item.get("tie_rate")),
        abstains=real(item.get("abstain_rate")),
    )


def _estimate(item: Mapping[str, Any], mean: str, bounds: str) -> Estimate | None:
    value = real(item.get(mean))
    return None if value is None else Estimate(value, real(item.get(f"{bounds}_low")), real(item.get(f"{bounds}_high")))

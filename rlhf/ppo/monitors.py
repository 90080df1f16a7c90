"""Monitors: figures of each update that tell a policy going wrong before any judge is asked, and their limits.

repetition: share of repeated token trigrams. length_drift: mean response length over that of the first update.
perplexity_drift: perplexity of the responses under the reference over that of the first update: far above 1 the policy
writes what the reference would not; far below 1 it has collapsed to the reference's favourite phrases, which the
entropy shows. kl_budget_used: KL to the reference over its budget; the budget itself always stops (rlhf.ppo.guard).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rlhf.config import Monitors

DRIFTS = {"length_drift": "response_length", "perplexity_drift": "reference_perplexity"}


def drifts(row: Mapping[str, Any], first: Mapping[str, Any]) -> dict[str, float]:
    """Each drifting figure of `row` over that of the run's `first` row."""
    return {name: row[column] / first[column] for name, column in DRIFTS.items()}


def passed(row: Mapping[str, Any], monitors: Monitors) -> tuple[dict[str, str], str | None]:
    """(name -> sentence of each monitor above its limit, why to stop or None)."""
    found: dict[str, str] = {}
    stop = None
    for name in type(monitors).model_fields:
        limit = getattr(monitors, name)
        if limit is None or row[name] <= limit.at:
            continue
        found[name] = f"{name}: {row[name]:.3g} at update {row['update']}, the limit is {limit.at:g}"
        if limit.action == "stop" and stop is None:
            stop = found[name]
    return found, stop

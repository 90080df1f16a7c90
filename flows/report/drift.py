"""Rows of the table of drift: what judges answered on the anchor pairs in this round against what they had answered."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from flows.report.data import Round
from flows.report.values import Estimate, integer, mapping, real


@dataclass(frozen=True)
class Drifted:
    """A judge's answers in this round against earlier ones. `since`: which, and when; None for a judge that was asked
    for the first time. `flips`: share of anchors with another winner, with Wilson's interval; `to_wrong`, `to_right`:
    how many of them. `before`, `now`: digests. `changed`: parts of the digest, in words. `beyond`: whether the whole
    interval of the flips is above the round's limit."""

    judge: str
    asked_at: str
    now: str
    since: str | None = None
    flips: Estimate | None = None
    flipped: int | None = None
    to_wrong: int | None = None
    to_right: int | None = None
    before: str | None = None
    changed: tuple[str, ...] = ()
    beyond: bool = False


def drifts(round_: Round) -> list[Drifted]:
    limit = real(mapping(round_.config.get("drift")).get("max_flip_rate"))
    rows = []
    for event in sorted(round_.drift, key=lambda event: str(event.get("judge"))):
        about = (str(event.get("judge")), str(event.get("asked_at", "")), str(event.get("fingerprint", "")))
        parts = [(name, mapping(event.get(name))) for name in ("previous", "first")]
        found = [_row(*about, name, part, event, limit) for name, part in parts if part]
        rows += found or [Drifted(*about)]
    return rows


def _row(
    judge: str,
    asked_at: str,
    now: str,
    name: str,
    part: Mapping[str, Any],
    event: Mapping[str, Any],
    limit: float | None,
) -> Drifted:
    before, rate, low = mapping(part.get("before")), real(part.get("flip_rate")), real(part.get("flip_low"))
    flips = None if rate is None else Estimate(rate, low, real(part.get("flip_high")), integer(part.get("pairs")))
    changed = event.get("changed") if name == "previous" else None
    return Drifted(
        judge,
        asked_at,
        now,
        f"{'the asking before' if name == 'previous' else 'the first asking'}, {before.get('asked_at', 'unknown')}",
        flips,
        integer(part.get("flips")),
        integer(part.get("from_gold")),
        integer(part.get("toward_gold")),
        str(before.get("fingerprint", "")),
        tuple(str(one) for one in changed) if isinstance(changed, list) else (),
        limit is not None and low is not None and low > limit,
    )

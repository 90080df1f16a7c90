"""How often one side wins, say the policy against its reference: what judges say, and what people make of it.

A pair counts 1 for a win of that side, 1/2 for a tie, 0 for a loss. Four figures, side by side:

    judges     the panel's mean over all judged pairs, without people: precise, and as wrong as judges are biased;
    naive      people's mean over the audited pairs: biased as soon as doubtful pairs are audited more often;
    hajek      the same, weighted by 1 / pi_i;
    corrected  people's answers and the panel's opinions on all pairs together (`audit.estimates.means`).

Intervals are of 95 %. Where a prompt has several pairs these are alike, and the intervals too narrow: give one pair a
prompt, or read them as for these pairs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from audit.estimates.accuracy import answered
from audit.estimates.means import Mean, Target, corrected_mean, hajek_mean
from audit.estimates.people import people
from audit.opinions import Floats, Opinions
from store.errors import UsageError


@dataclass(frozen=True)
class WinRate:
    """`pairs`: judged pairs with an opinion of the panel. `audited`: those of them on which people said something. None
    where there are none."""

    pairs: int
    audited: int
    judges: Mean | None
    naive: Mean | None
    hajek: Mean | None
    corrected: Mean | None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def win_rate(
    opinions: Opinions,
    selection: pa.Table,
    verdicts: pa.Table,
    side: Mapping[str, str],
    reliability: Mapping[str, float] | None = None,
    target: Target = "judged",
) -> WinRate:
    """`side`: pair_id -> a or b, which rollout is that side's; the judged pairs that it lacks are left out.

    Raises UsageError for another side, and for a verdict that the selection could not have drawn.
    """
    odd = next((name for name in side.values() if name not in ("a", "b")), None)
    if odd is not None:
        raise UsageError(f"A pair's side is {odd!r}: it must be a or b, the rollout whose wins are counted.")
    said = people(verdicts, reliability)
    audit = answered(opinions.pair_ids, selection, said)
    panel = opinions.panel
    is_a = np.array([side.get(pair_id) == "a" for pair_id in opinions.pair_ids])
    asked = np.array([pair_id in side for pair_id in opinions.pair_ids]) & ~np.isnan(panel)
    f: Floats = np.where(is_a, panel, 1 - panel)
    share = np.array([said.share_for_a[opinions.pair_ids[row]] for row in audit.rows], dtype=np.float64)
    here = asked[audit.rows]
    rows = audit.rows[here]
    # A win, a tie or a loss: how clear a majority was is no part of a win rate.
    y: Floats = 0.5 + np.sign(np.where(is_a[rows], share[here], 1 - share[here]) - 0.5) / 2
    n, total = len(y), int(asked.sum())
    chance, even = audit.chance[here], np.full(n, n / total if total else 1.0)
    judged = f[asked]
    return WinRate(
        pairs=total,
        audited=n,
        judges=hajek_mean(judged, np.ones(total), total, target=target) if total else None,
        naive=hajek_mean(y, even, total, target=target) if n else None,
        hajek=hajek_mean(y, chance, total, target=target) if n else None,
        corrected=corrected_mean(y, chance, f[rows], judged, target=target) if n else None,
    )

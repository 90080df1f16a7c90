"""How likely the judges are wrong on a pair, estimated from their votes alone; it steers targeted audits.

Three views of the error rate on a pair, each in 0..1/2, are averaged:

    margin        e = min(P, 1 - P), P the panel's mean probability: the error that the judges admit themselves;
    disagreement  d = share of judges in the minority (undecided ones count half on each side): who must be wrong;
    order flips   f / 2, f the share of judges that change their mind with the order: such a judge is wrong in exactly
                  one of its two orders.

It needs no calibration: inclusion probabilities correct for however wrong it is, so a poor estimate costs precision and
never bias. Judges share their errors (law 7), so a low value means "no doubt visible", not "right".
"""

from __future__ import annotations

import numpy as np

from audit.opinions import Floats, Opinions

UNKNOWN = 0.5
"""The doubt about a pair on which no judge has an opinion."""


def estimated_error(opinions: Opinions) -> Floats:
    """[N] values u in 0..1/2; the flips have no part where no judge answered in both orders."""
    panel = opinions.panel
    margin = np.minimum(panel, 1 - panel)
    disagreement = _share(minority(opinions), opinions.answered.sum(axis=1))
    flips = _share(opinions.flipped.sum(axis=1), opinions.both_orders.sum(axis=1)) / 2
    views = np.stack([margin, disagreement, flips])
    known = ~np.isnan(views)
    u = _share(np.nansum(views, axis=0), known.sum(axis=0))
    return np.where(np.isnan(u), UNKNOWN, u)


def minority(opinions: Opinions) -> Floats:
    """[N] number of judges on the side of the fewer; an undecided judge counts half on each."""
    for_a = np.where(opinions.answered, 0.5 + np.sign(np.nan_to_num(opinions.p_a, nan=0.5) - 0.5) / 2, 0).sum(axis=1)
    few: Floats = np.minimum(for_a, opinions.answered.sum(axis=1) - for_a)
    return few


def describe(opinions: Opinions) -> list[str]:
    """What speaks for doubt about each pair, in words for ML ops. Auditors never see it."""
    panel, few = opinions.panel, minority(opinions)
    judges, both = opinions.answered.sum(axis=1), opinions.both_orders.sum(axis=1)
    flipped = opinions.flipped.sum(axis=1)
    return [
        f"panel {max(panel[i], 1 - panel[i]):.2f} for {'a' if panel[i] >= 0.5 else 'b'}, "
        f"{few[i]:g} of {judges[i]} judges in the minority, {flipped[i]} of {both[i]} changed with the order"
        if judges[i]
        else "no judge gave an answer"
        for i in range(len(panel))
    ]


def _share(part: Floats, whole: Floats) -> Floats:
    out = np.full(part.shape, np.nan)
    np.divide(part, whole, out=out, where=whole > 0)
    return out

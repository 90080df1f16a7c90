"""How likely the labels are wrong on a pair; it steers targeted audits.

Where labels were fitted on pairs with known winners, the best view of the error rate is what they admit themselves:

    labels        l = min(p, 1 - p), p the fitted label: it knows which judges to believe

Without, there are three views of the votes alone, each in 0..1/2:

    margin        e = min(P, 1 - P), P the panel's mean probability: the error that the judges admit themselves;
    disagreement  d = share of judges in the minority (undecided ones count half on each side): who must be wrong;
    order flips   f / 2, f the share of judges that change their mind with the order: such a judge is wrong in exactly
                  one of its two orders.

Three flags of strength s in 0..1, where the votes cannot tell the error rate, so that it is taken as 1/2, unknown:

    new group     1 where no audit has a verdict on the pair's group, though there were audits;
    canary        the share of the attacks on the pair that won a judge over, where any were planted (judge.canaries);
    gate failure  the share of the votes without a valid answer (abstain, parse failure, error).

The doubt is their weighted mean; a view that nothing is known of, and a flag that is not raised, have no part in it:

    u = (sum_views w_k v_k + sum_flags w_k s_k / 2) / (sum_views w_k + sum_flags w_k s_k)

where the labels' view, if there is one and it has a weight, stands for the three others. On simulated panels it found
more wrong labels than these from ten known winners on, and gave narrower estimates from none on.

It need not be right: inclusion probabilities correct for however wrong it is, so a poor estimate costs precision and
never bias. Judges share their errors (law 7), so a low value means "no doubt visible", not "right".
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from audit.config import DoubtWeights
from audit.opinions import Floats, Opinions
from store.errors import UsageError
from store.schemas import Status

UNKNOWN = 0.5
"""The doubt about a pair on which no judge has an opinion."""

EQUAL = DoubtWeights()


@dataclass(frozen=True)
class Flags:
    """[N] strengths in 0..1, in the row order of the pairs. `attacks`: [N] how many `canary` is a share of."""

    new_group: Floats
    canary: Floats
    gate_failure: Floats
    attacks: Floats

    @classmethod
    def none(cls, n: int) -> Flags:
        return cls(np.zeros(n), np.zeros(n), np.zeros(n), np.zeros(n))

    @property
    def strengths(self) -> dict[str, Floats]:
        """By the names of their weights."""
        return {"new_group": self.new_group, "canary": self.canary, "gate_failure": self.gate_failure}


def raise_flags(
    pairs: pa.Table, votes: pa.Table, audited_groups: Collection[str], attacks: pa.Table | None = None
) -> Flags:
    """`audited_groups`: the groups with a verdict of an earlier audit. Empty means that there was none, so that every
    group is as new as any other, and no flag is raised. `attacks`: ATTACKS on some of the pairs, by any judges.

    Raises UsageError for an attack on a pair that is not there."""
    new = [bool(audited_groups) and group not in audited_groups for group in pairs["group"].to_pylist()]
    rows = pc.index_in(votes["pair_id"], value_set=pairs["pair_id"].combine_chunks()).to_numpy()
    answered = pc.is_in(votes["status"], pa.array([Status.SCORED.value, Status.TIE.value])).to_numpy()
    n = pairs.num_rows
    cast = np.bincount(rows, minlength=n).astype(np.float64)
    failed = np.bincount(rows, weights=~answered, minlength=n).astype(np.float64)
    tried, won = _attacked(pairs, attacks) if attacks is not None else (np.zeros(n), np.zeros(n))
    canary, failure = np.nan_to_num(_share(won, tried)), np.nan_to_num(_share(failed, cast))
    return Flags(np.array(new, dtype=np.float64), canary, failure, tried)


def _attacked(pairs: pa.Table, attacks: pa.Table) -> tuple[Floats, Floats]:
    """[N] attacks on each pair, and how many of them won a judge over. One without an answer did not."""
    at = pc.index_in(attacks["pair_id"], value_set=pairs["pair_id"].combine_chunks())
    if at.null_count:
        stranger = attacks.filter(pc.is_null(at))["pair_id"][0].as_py()
        raise UsageError(
            f"The attacks are on the pair {stranger!r}, which is not among the {pairs.num_rows} judged pairs: give the "
            f"attacks.parquet of the judge stage that made the pairs."
        )
    rows, n = at.to_numpy(), pairs.num_rows
    won = pc.equal(attacks["outcome"], "flipped").to_numpy()
    tried = np.bincount(rows, minlength=n).astype(np.float64)
    return tried, np.bincount(rows, weights=won, minlength=n).astype(np.float64)


def views(opinions: Opinions, labels: Floats | None = None) -> dict[str, Floats]:
    """[N] values each in 0..1/2, NaN where nothing is known: no answer, or for flips no judge asked in both orders.

    labels: [N] fitted probabilities that a is better, NaN for none."""
    if labels is not None:
        return {"labels": np.minimum(labels, 1 - labels)}
    panel = opinions.panel
    return {
        "margin": np.minimum(panel, 1 - panel),
        "disagreement": _share(minority(opinions), opinions.answered.sum(axis=1)),
        "order_flips": _share(opinions.flipped.sum(axis=1), opinions.both_orders.sum(axis=1)) / 2,
    }


def estimated_error(
    opinions: Opinions, flags: Flags | None = None, weights: DoubtWeights = EQUAL, labels: Floats | None = None
) -> Floats:
    """[N] the doubt u in 0..1/2. labels: as in `views`."""
    total = np.zeros(len(opinions.pair_ids))
    weight = np.zeros_like(total)
    for name, value in views(opinions, labels if weights.labels else None).items():
        known = ~np.isnan(value)
        w = getattr(weights, name) * known
        total, weight = total + w * np.where(known, value, 0), weight + w
    for name, strength in flags.strengths.items() if flags else ():
        w = getattr(weights, name) * strength
        total, weight = total + w * UNKNOWN, weight + w
    u = _share(total, weight)
    # Weights of 0 throughout leave nothing to go by, which is not the same as a pair that no judge answered.
    return np.where(np.isnan(u), UNKNOWN, u)


def minority(opinions: Opinions) -> Floats:
    """[N] number of judges on the side of the fewer; an undecided judge counts half on each."""
    for_a = np.where(opinions.answered, 0.5 + np.sign(np.nan_to_num(opinions.p_a, nan=0.5) - 0.5) / 2, 0).sum(axis=1)
    few: Floats = np.minimum(for_a, opinions.answered.sum(axis=1) - for_a)
    return few


def describe(opinions: Opinions, flags: Flags | None = None) -> list[str]:
    """What speaks for doubt about each pair, in words for ML ops. Auditors never see it."""
    panel, few = opinions.panel, minority(opinions)
    judges, both = opinions.answered.sum(axis=1), opinions.both_orders.sum(axis=1)
    flipped = opinions.flipped.sum(axis=1)
    found = flags or Flags.none(len(panel))
    return [
        (
            f"panel {max(panel[i], 1 - panel[i]):.2f} for {'a' if panel[i] >= 0.5 else 'b'}, "
            f"{few[i]:g} of {judges[i]} judges in the minority, {flipped[i]} of {both[i]} changed with the order"
            if judges[i]
            else "no judge gave an answer"
        )
        + "".join(f", {words}" for words in _raised(found, i))
        for i in range(len(panel))
    ]


def explain(
    opinions: Opinions, flags: Flags | None = None, weights: DoubtWeights = EQUAL, labels: Floats | None = None
) -> list[str]:
    """The parts of each pair's u with their weights, such as `margin 0.45 x 1, order flips 0.25 x 1, new group x 1`."""
    parts: list[list[str]] = [[] for _ in opinions.pair_ids]
    for name, value in views(opinions, labels if weights.labels else None).items():
        if (w := getattr(weights, name)) > 0:
            for i in np.flatnonzero(~np.isnan(value)):
                parts[i].append(f"{_words(name)} {value[i]:.2f} x {w:g}")
    for name, strength in flags.strengths.items() if flags else ():
        if (w := getattr(weights, name)) > 0:
            for i in np.flatnonzero(strength):
                parts[i].append(f"{_words(name)} {UNKNOWN:.2f} x {w * strength[i]:.3g}")
    return [", ".join(part) or "nothing known" for part in parts]


def _raised(flags: Flags, i: int) -> list[str]:
    found = []
    if flags.new_group[i]:
        found.append("its group is new to audits")
    if flags.canary[i]:
        tried, won = int(flags.attacks[i]), round(flags.canary[i] * flags.attacks[i])
        found.append(f"{won} of {tried} attack{'s' * (tried > 1)} on it won a judge over")
    if flags.gate_failure[i]:
        found.append(f"{100 * flags.gate_failure[i]:.0f} % of the votes without a valid answer")
    return found


def _words(name: str) -> str:
    return name.replace("_", " ")


def _share(part: Floats, whole: Floats) -> Floats:
    out = np.full(part.shape, np.nan)
    np.divide(part, whole, out=out, where=whole > 0)
    return out

"""Simulated judge panels: the only data on which the aggregation's form and defaults were chosen.

A panel judges N pairs with J judges in two orders. For pair i, judge j and order o (sign +1 for ab, -1 for ba) the
judge's private evidence that a is better is

    u_ijo = s_j d_i t_i + sum_f l_jf F_if + sign_o b_j + e_ij + g_ijo

    t   what can be seen of the truth, +-1. The gold label y equals t but for a share `noise` of pairs, on which a judge
        can be right only by luck: irreducible error, the ceiling of any method is 1 - noise
    d   how easy the pair is, log-normal
    s   skill, log-normal: from panels of peers to panels of one expert among the blind
    F   nuisance factors that several judges follow (length, tone, confidence). On a share `trap` of pairs they point
        against the truth, as adversarial test sets make them; elsewhere they lean slightly to it
    l   how much a judge follows each; the less skilled follow more
    b   preference for the first slot
    e,g a judge's own error, common to its two orders and per order

Its vote is p_a = logistic(k_j u) in panels of soft votes and [u > 0] in those of hard ones; k differs between judges,
so that some are overconfident. A share of votes is missing, and in some panels some judges answer in one order only.
All of it is drawn anew for each panel; `regime` fixes the ceiling, to look at easy and hopeless panels apart.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from scipy.special import expit

from judges.aggregation.lengths import LENGTH
from store.schemas import GOLD, VOTES

Array = npt.NDArray[np.float64]

REGIMES = {"clear": (0.0, 0.03), "noisy": (0.03, 0.12), "murky": (0.12, 0.3)}
"""Range of the share of pairs whose gold label the evidence does not show."""


@dataclass(frozen=True)
class Panel:
    """`p_a`: [2, N, J], order ab then ba, nan where there is no vote. `truth`: [N], +1 where a is better, else -1.
    `length`: [N] log-ratio of the lengths of a and b."""

    p_a: Array
    truth: Array
    soft: bool
    noise: float
    length: Array


def panel(seed: int, regime: str, pairs: int | None = None, judges: int | None = None) -> Panel:
    """One panel; `pairs` and `judges` are drawn (300 to 1,500 and 2 to 8) unless given."""
    rng = np.random.default_rng([seed, list(REGIMES).index(regime)])
    n = pairs or int(np.exp(rng.uniform(np.log(300), np.log(1500))))
    j = judges or int(rng.integers(2, 9))
    noise, trap = rng.uniform(*REGIMES[regime]), rng.uniform(0, 0.95)
    seen = rng.choice([-1.0, 1.0], n)
    truth = np.where(rng.random(n) < noise, -seen, seen)
    ease = np.exp(rng.normal(0, rng.uniform(0.2, 0.8), n))
    factors = int(rng.integers(1, 4))
    lean = 0.3 * seen[:, None] + rng.normal(size=(n, factors))
    trapped = -seen[:, None] * np.abs(rng.normal(1, 0.6, (n, factors)))
    nuisance = np.where((rng.random(n) < trap)[:, None], trapped, lean)
    skill = np.exp(rng.normal(rng.uniform(-0.8, 0.4), rng.uniform(0.1, 1.1), j))
    follow = np.abs(rng.normal(size=(j, factors))) * rng.uniform(0, 1.5) * np.exp(-0.5 * skill)[:, None]
    slot = rng.normal(0, rng.uniform(0.1, 1.2), j)
    own = rng.normal(size=(n, j)) * rng.uniform(0.5, 1.2)
    soft, sharp = bool(rng.random() < 0.5), np.exp(rng.normal(0.3, 0.6, j))
    missing = rng.random((2, n, j)) < rng.uniform(0, 0.08)
    if rng.random() < 0.3:
        alone = rng.random(j) < 0.5
        first = rng.random((n, j)) < 0.5
        missing |= np.stack([first, ~first]) & alone
    votes = []
    for sign in (1.0, -1.0):
        jitter = rng.normal(0, 0.5, (n, j))
        u = skill * (ease * seen)[:, None] + nuisance @ follow.T + sign * slot + own + jitter
        votes.append(expit(sharp * u) if soft else (u > 0).astype(float))
    # In every other panel the length shows something of the first taste that judges share, in the others nothing.
    shown = rng.uniform(0.2, 0.9) * (rng.random() < 0.5)
    taste = nuisance[:, 0] / nuisance[:, 0].std()
    length = 0.5 * (shown * taste + np.sqrt(1 - shown**2) * rng.normal(size=n))
    return Panel(np.where(missing, np.nan, np.stack(votes)), truth, soft, noise, length)


def votes_table(panel: Panel) -> pa.Table:
    """The panel's VOTES; a missing vote is a parse failure."""
    orders, pairs, judges = panel.p_a.shape
    o, i, j = (part.ravel() for part in np.meshgrid(range(orders), range(pairs), range(judges), indexing="ij"))
    p = panel.p_a.ravel()
    known = ~np.isnan(p)
    pair, judge = np.char.zfill(i.astype(str), 7), np.char.add("judge-", j.astype(str))
    order = np.where(o == 0, "ab", "ba")
    zero = np.zeros(len(p), np.int64)
    winner = np.where(p > 0.5, "a", "b").astype(object)
    winner[~known | (p == 0.5)] = None
    columns = {
        "vote_id": np.char.add(np.char.add(pair, judge), order),
        "pair_id": pair,
        "prompt_id": pair,
        "rollout_a": np.char.add(pair, "a"),
        "rollout_b": np.char.add(pair, "b"),
        "judge": judge,
        "fingerprint": np.char.add("of-", judge),
        "order": order,
        "status": np.where(~known, "parse_failure", np.where(p == 0.5, "tie", "scored")),
        "tokens_in": zero,
        "tokens_out": zero,
        "cost": zero.astype(float),
        "latency_s": zero.astype(float),
        "attempts": zero + 1,
        "winner": pa.array(winner, pa.string()),
        "p_a": pa.array(p, mask=~known),
    }
    absent = {field.name: pa.nulls(len(p), field.type) for field in VOTES.schema if field.name not in columns}
    return pa.table(columns | absent).select(VOTES.schema.names).cast(VOTES.schema)


def measured(panel: Panel) -> pa.Table:
    """The panel's VOTES with the lengths of the responses, as methods are given them where there are texts."""
    votes = votes_table(panel)
    return votes.append_column(LENGTH, pa.array(panel.length[pc.cast(votes["pair_id"], pa.int64()).to_numpy()]))


def gold_table(panel: Panel, chosen: npt.NDArray[np.int64]) -> pa.Table:
    """GOLD of the chosen rows; texts are placeholders."""
    names = np.char.zfill(chosen.astype(str), 7)
    blank = dict.fromkeys(("prompt", "response_a", "response_b", "group", "split"), np.full(len(chosen), "x"))
    ids = {"rollout_a": np.char.add(names, "a"), "rollout_b": np.char.add(names, "b")}
    columns = {"pair_id": names, "prompt_id": names, **blank, **ids, "reference": pa.nulls(len(chosen), pa.string())}
    columns["winner"] = np.where(panel.truth[chosen] > 0, "a", "b")
    return pa.table(columns).select(GOLD.schema.names).cast(GOLD.schema)

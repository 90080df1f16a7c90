"""Gold-anchored labels: a Bayesian logistic stack of the judges, learned from pairs whose winner is known.

For pair i and judge j let x_ij be the mean log-odds of its votes, freed of its slot preference (`slots`), divided by
one root mean square s over all judges and pairs; 0 where the judge has no valid vote. Then

    p_i = sigmoid(sum_j w_j x_ij),   w ~ N(c / J, K / r),   K = (1 - a) S + a I,   S = mean x x', trace J,   a = 1/10

with y = 1, 0 or 1/2 for a tie and no intercept. S comes from all votes, with gold or without: judges that vote alike
deserve alike, so that twenty answers decide between camps of judges before they decide between members of one. A model
(c, r) says how much judges are worth before any is known, and how surely:

    c in {1, 2, 4}       half of what they say, about that, or twice that
    r in {1/2, 2, 8}     they may differ wildly, or hardly

Where votes carry the lengths of the responses (`lengths`), each model stands twice, as it is and with one more term:

    z_i = sum_j w_j x_ij + v t_i,   v ~ N(0, 1 / r),   t the log-ratio of the lengths over its root mean square

Judges that like long responses like them together, so that the gold alone can show it. The term is as odd in a and b as
the votes are, and without gold it is left out.

For each the posterior of w is approximated by a Gaussian at its maximum (Laplace) with covariance C; the models are
averaged by their evidence (MacKay 1992, Bayesian Interpolation), so that the gold itself decides how far to trust the
prior: where the judges are misled it leaves their mean early, where little can be known at all it stays close.
A label is the average over w, not the label of the best w: sigmoid(z / sqrt(1 + pi/8 x'Cx)), which keeps it from
claiming more than so few gold pairs can tell (MacKay 1992, The Evidence Framework Applied to Classification Networks).
Last, the label's log-odds are divided by a temperature T (Guo et al. 2017, arXiv 1706.04599), log T ~ N(0, 1 / 16),
that makes the gold likeliest under what each of its pairs is given without itself (`left_out`): the models know how
unsure they are of w, not that their form is wrong.

Why so, and not by independent confusions or log-odds weights: judges share their errors, and the stack sees from the
gold that two of them say the same thing. Weights may be negative: the difference of a good judge from one that shares
its taste is evidence. Without intercept, and with one weight for both slots, the label is the same, mirrored, when a
and b change places. Without gold the nine models weigh the same: the winner is that of the mean log-odds, and the
label is held back, since nothing shows that the judges are right; votes are then not blown up by s. A judge without
gold keeps the prior. Stacking: Wolpert 1992, Stacked Generalization.

Precondition: the pairs to be labelled are of the kind that the gold is of. Gold picked for the judges' doubts is fine
(the model is one of y given x), gold picked for its answer is not. The form and its constants were chosen on the
simulated panels of benchmarks/simulated_panels.py alone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Self

import numpy as np
import pyarrow as pa
from scipy.linalg import block_diag
from scipy.optimize import minimize_scalar
from scipy.special import expit, softmax

from judges.aggregation.gold import aligned, known_answers
from judges.aggregation.labels import labels_of
from judges.aggregation.slots import Array, over_slots, slot_preference, slot_votes

STRENGTHS = (1.0, 2.0, 4.0)
RIDGES = (0.5, 2.0, 8.0)
WITH_LENGTH = (False, True)
TEMPERATURE_SD = 0.25
"""Of log T, before any gold."""
APART = 0.1
"""a: the part of a judge's worth that has nothing to do with whom it votes like."""


@dataclass(frozen=True)
class Posterior:
    """One model (c, r): `mean` [judges] and `covariance` [judges, judges] of w, with a last row for v where the model
    has it, and the log evidence up to a constant that all models share. `prior` and `variance`: of the weight of any
    judge that is not among these."""

    mean: Array
    covariance: Array
    log_evidence: float
    prior: float
    variance: float


@dataclass(frozen=True)
class _Learned:
    """`scale`: s, in log-odds; `length_scale`: that of the lengths. `preference`: [judges] slot preferences. `share`:
    [models] posterior probabilities. `temperature`: T."""

    judges: list[str]
    scale: float
    length_scale: float
    preference: Array
    models: list[Posterior]
    share: Array
    temperature: float


class StackedJudges:
    """See the module. `gold_pairs`: how many pairs the weights were fitted on; `weights`: fingerprint -> mean weight of
    one log-odds of that judge; `length_weight`: log-odds for a where it is e times as long as b, None without lengths.
    """

    def __init__(self) -> None:
        self.gold_pairs = 0
        self.weights: dict[str, float] = {}
        self.length_weight: float | None = None
        self._learned: _Learned | None = None

    def fit(self, votes: pa.Table, gold: pa.Table | None = None) -> Self:
        """Learn from `votes` on the pairs of `gold`, which has pair_id and either winner (a, b, tie) or p_a.

        Votes on other pairs help too: scale and slot preferences need no gold. Raises UsageError for gold that is not
        as it must be (`gold.known_answers`).
        """
        found = slot_votes(votes)
        preference = slot_preference(found)
        x = over_slots(found, preference)
        rows, y = np.zeros(0, np.int64), np.zeros(0)
        if gold is not None:
            rows, y = aligned(found.pairs, known_answers(gold))
        self.gold_pairs = len(rows)
        scale = _root_mean_square(x)
        if not len(rows):
            scale = max(scale, STRENGTHS[-1])
        x = np.nan_to_num(x) / scale
        alike = likeness(x)
        length_scale = 1.0 if found.length is None else _root_mean_square(found.length)
        forms = [(x[rows], 0)]
        if found.length is not None and len(rows):
            longer = np.column_stack([x, found.length / length_scale])
            forms = [(longer[rows], 1) if has else (x[rows], 0) for has in WITH_LENGTH]
        fitted = [
            (known, posterior(known, y, alike, strength, ridge, others))
            for known, others in forms
            for strength in STRENGTHS
            for ridge in RIDGES
        ]
        models = [model for _, model in fitted]
        share = softmax([model.log_evidence for model in models])
        lean = share @ np.stack([left_out(known, y, model) for known, model in fitted])
        temperature = best_temperature(lean, y)
        self._learned = _Learned(found.judges, scale, length_scale, preference, models, share, temperature)
        if len(rows):
            judges = len(found.judges)
            mean = share @ np.stack([np.append(model.mean, 0.0)[: judges + 1] for model in models])
            self.weights = dict(zip(found.judges, (mean[:judges] / scale).tolist(), strict=True))
            self.length_weight = None if found.length is None else float(mean[judges] / length_scale)
        return self

    def predict(self, votes: pa.Table) -> pa.Table:
        """LABELS of the pairs with at least one valid vote. Learns scale and slots from `votes` if never fitted."""
        learned = self._learned or StackedJudges().fit(votes)._learned
        found = slot_votes(votes)
        if learned is None or not found.judges:
            return labels_of(pa.table({"pair_id": found.pairs, "p_a": pa.array([], pa.float64())}), votes)
        place = {judge: at for at, judge in enumerate(learned.judges)}
        known = np.array([judge in place for judge in found.judges])
        at = np.array([place.get(judge, 0) for judge in found.judges])
        preference = np.where(known, learned.preference[at] if learned.judges else 0.0, 0.0)
        x = np.nan_to_num(over_slots(found, preference)) / learned.scale
        t = np.zeros(len(x)) if found.length is None else found.length / learned.length_scale
        # Odd in x and t to the last bit: a tie stays 1/2 exactly, and a mirrored pair gets the mirrored label.
        lean = np.zeros(len(x))
        for share, model in zip(learned.share, learned.models, strict=True):
            mean = np.where(known, model.mean[at] if learned.judges else 0.0, model.prior)
            z = x @ mean
            inside, of = x[:, known], at[known]
            if len(model.mean) > len(learned.judges):
                z += t * model.mean[-1]
                inside, of = np.column_stack([inside, t]), np.append(of, len(learned.judges))
            variance = np.einsum("ij,jk,ik->i", inside, model.covariance[np.ix_(of, of)], inside)
            variance += model.variance * (x[:, ~known] ** 2).sum(axis=1)
            lean += share * _lean(z, variance)
        p_a = 0.5 + np.tanh(_half_odds(lean) / learned.temperature) / 2
        return labels_of(pa.table({"pair_id": found.pairs, "p_a": p_a}), votes)


def likeness(x: Array) -> Array:
    """K [judges, judges] of x [pairs, judges]; see the module. The unit matrix where no vote says anything."""
    judges = x.shape[1]
    moment = x.T @ x
    trace = float(np.trace(moment))
    moment = moment / trace * judges if trace else np.eye(judges)
    return np.asarray((1 - APART) * moment + APART * np.eye(judges), dtype=np.float64)


def posterior(x: Array, y: Array, alike: Array, strength: float, ridge: float, others: int = 0) -> Posterior:
    """The Laplace posterior of one model for x [pairs, judges], y [pairs] in 0..1 and K = `alike`; see the module.

    others: how many of x's last columns are no judges; their weights have the prior N(0, 1 / ridge).

    The objective is strictly convex, so Newton's method with halved steps finds its one minimum, also where the gold
    is separable or there is none.
    """
    judges = x.shape[1] - others
    prior = np.repeat([strength / max(1, judges), 0.0], [judges, others])
    precision = ridge * block_diag(np.linalg.inv(alike), np.eye(others))

    def loss(w: Array) -> float:
        z = x @ w
        return float(np.sum(np.logaddexp(0.0, z) - y * z) + (w - prior) @ precision @ (w - prior) / 2)

    def hessian(w: Array) -> Array:
        p = expit(x @ w)
        return np.asarray(x.T @ (x * (p * (1 - p))[:, None]) + precision, dtype=np.float64)

    w = prior
    value = loss(w)
    for _ in range(100):
        gradient = x.T @ (expit(x @ w) - y) + precision @ (w - prior)
        if np.abs(gradient).max(initial=0.0) < 1e-9:
            break
        step = np.linalg.solve(hessian(w), gradient)
        for halvings in range(40):
            trial = w - step / 2**halvings
            new = loss(trial)
            # The slack is rounding: at the minimum a step may lose the last bit.
            if new <= value + 1e-12 * (1 + abs(value)):
                break
        w, value = trial, new
    curvature = hessian(w)
    evidence = -value + float(np.linalg.slogdet(precision)[1] - np.linalg.slogdet(curvature)[1]) / 2
    covariance = np.asarray(np.linalg.inv(curvature), dtype=np.float64)
    return Posterior(w, covariance, evidence, strength / max(1, judges), 1 / ridge)


def left_out(x: Array, y: Array, model: Posterior) -> Array:
    """[pairs] what the model would say of each row of the x and y that it was fitted on, had the row not been there, as
    2 p - 1.

    With z and v the mean and variance of z_i, p = sigmoid(z) and h = p (1 - p), they are z + (p - y) v / (1 - h v) and
    v / (1 - h v) without row i (Opper and Winther 2000, Gaussian Processes for Classification, section 5).
    """
    z, variance = x @ model.mean, np.einsum("ij,jk,ik->i", x, model.covariance, x)
    p = expit(z)
    without = variance / (1 - p * (1 - p) * variance)
    return _lean(z + (p - y) * without, without)


def best_temperature(lean: Array, y: Array) -> float:
    """T of largest posterior, where `lean` [pairs] is 2 p - 1 of predictions of y [pairs] in 0..1; see the module."""
    if not len(y):
        return 1.0
    odds = 2 * _half_odds(lean)

    def loss(log_t: float) -> float:
        z = odds * math.exp(-log_t)
        return float(np.sum(np.logaddexp(0.0, z) - y * z)) + (log_t / TEMPERATURE_SD) ** 2 / 2

    return math.exp(minimize_scalar(loss, bounds=(-4 * TEMPERATURE_SD, 4 * TEMPERATURE_SD), method="bounded").x)


def _lean(z: Array, variance: Array) -> Array:
    """2 p - 1, with p the mean of sigmoid over a Gaussian, about."""
    return np.asarray(np.tanh(z / np.sqrt(1 + math.pi / 8 * variance) / 2), dtype=np.float64)


def _half_odds(lean: Array) -> Array:
    return np.asarray(np.arctanh(np.clip(lean, -1 + 1e-12, 1 - 1e-12)), dtype=np.float64)


def _root_mean_square(x: Array) -> float:
    """Over all pairs and judges that have one; 1 where every vote is a tie or there is none."""
    known = x[~np.isnan(x)]
    size = math.sqrt(float(np.mean(known**2))) if len(known) else 0.0
    # What is left of votes that cancel may be rounding, which must not be blown up to an opinion.
    return size if size > 1e-9 else 1.0

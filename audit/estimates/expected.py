"""What people are expected to say of a pair of which the judges say f: where errors are likely to be."""

from __future__ import annotations

import numpy as np

from audit.opinions import Floats

_LEAST_DOUBT = 1e-3
_SLOPE_VARIANCE = 2.0


def expected(y: Floats, prediction: Floats, counts: Floats, mean: float) -> Floats:
    """[n] the expected y, a + b logit f through the logistic function (Platt 1999), by penalised likelihood.

    y, prediction: [n] in 0..1 of the audited pairs. counts: [n] 1.0 for pairs to learn from, 0.0 for others. b is taken
    to be normal around 0, where the judges say nothing; a is free. Where predictions or answers do not differ there is
    nothing to learn, and all are `mean`.
    """
    from scipy.optimize import minimize  # imported where it is used: it takes half a second and 60 MB
    from scipy.special import expit, logit

    x = logit(np.clip(prediction, _LEAST_DOUBT, 1 - _LEAST_DOUBT))
    x -= np.average(x, weights=counts)
    share = np.average(y, weights=counts)
    if np.ptp(x) == 0 or share in (0.0, 1.0):
        return np.full(len(y), mean)

    def loss(line: Floats) -> tuple[float, Floats]:
        odds = line[0] + line[1] * x
        lost = float((counts * (np.logaddexp(0, odds) - y * odds)).sum())
        pull = counts * (expit(odds) - y)
        prior = line[1] / _SLOPE_VARIANCE
        return lost + line[1] * prior / 2, np.array([pull.sum(), (pull * x).sum() + prior])

    a, b = minimize(loss, np.array([logit(share), 0.0]), jac=True, method="BFGS").x
    return np.asarray(expit(a + b * x), np.float64)

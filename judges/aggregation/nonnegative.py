"""Ridge logistic regression with weights not below zero, for features that can only speak one way.

    w = argmin_{w >= 0}  sum_i CE(y_i, sigmoid(x_i . w)) + (ridge / 2) sum_k (w_k - prior_k)^2

Without intercept: a pair mirrored is a label mirrored. Nonnegative stacking: Breiman 1996, Stacked Regressions.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize
from scipy.special import expit

Array = npt.NDArray[np.float64]

RIDGE = 1.0


def fit_weights(x: Array, y: Array, ridge: float, prior: Array | None = None) -> Array:
    """w [features] >= 0 that minimises the module's objective for x [pairs, features] and y [pairs] in 0..1.

    `prior` [features]: what the ridge draws to, 1 / features each unless given. The objective is strictly convex for
    ridge > 0, so there is one minimum, also where the gold is separable.
    """
    centre = np.full(x.shape[1], 1.0 / x.shape[1]) if prior is None else prior

    def objective(w: Array) -> tuple[float, Array]:
        z = x @ w
        loss = float(np.sum(np.logaddexp(0.0, z) - y * z)) + ridge / 2 * float(np.sum((w - centre) ** 2))
        return loss, x.T @ (expit(z) - y) + ridge * (w - centre)

    found = minimize(objective, centre, jac=True, method="L-BFGS-B", bounds=[(0, None)] * len(centre), tol=1e-12)
    return np.asarray(found.x, dtype=np.float64)

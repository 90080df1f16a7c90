"""ppi-python's side of estimates.py, in an environment of its own: `python estimates_ppi.py DRAWS.npz`.

DRAWS.npz: `right` and `prediction` [draws, pairs], `drawn` [draws, audited] row numbers, `tuning` [draws], the lambda
that ours took. Prints JSON, lists of a number a draw: `value`, `low`, `high` with a lambda of its own (PPI++,
Angelopoulos et al. 2023), and `same`, the estimate with ours.
"""

from __future__ import annotations

import json
import sys

import numpy as np
from ppi_py import ppi_mean_ci, ppi_mean_pointestimate


def main() -> None:
    given = np.load(sys.argv[1], allow_pickle=False)
    found: dict[str, list[float]] = {"value": [], "low": [], "high": [], "same": []}
    for right, prediction, drawn, tuning in zip(
        given["right"], given["prediction"], given["drawn"], given["tuning"], strict=True
    ):
        others = np.setdiff1d(np.arange(len(right)), drawn)
        data = (right[drawn], prediction[drawn], prediction[others])
        low, high = (float(np.squeeze(end)) for end in ppi_mean_ci(*data, alpha=0.05))
        found["low"].append(low)
        found["high"].append(high)
        found["value"].append(float(np.squeeze(ppi_mean_pointestimate(*data))))
        found["same"].append(float(np.squeeze(ppi_mean_pointestimate(*data, lam=float(tuning)))))
    print(json.dumps(found))


if __name__ == "__main__":
    main()

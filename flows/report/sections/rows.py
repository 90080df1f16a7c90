"""What several sections do with rows: the lowest groups for a plot, and the numbers in a table's columns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from flows.report.values import Estimate

MAX_ROWS = 30
"""Groups that a plot shows, the lowest ones; the table beside it shows all."""


def lowest(rows: list[tuple[str, Estimate]]) -> list[tuple[str, Estimate]]:
    """At most `MAX_ROWS` rows, those with the lowest means, by name."""
    return sorted(sorted(rows, key=lambda row: row[1].mean)[:MAX_ROWS])


def title_of(title: str, rows: Sequence[Any]) -> str:
    """The title of a plot of `lowest` rows, which says so where it leaves any out."""
    return title if len(rows) <= MAX_ROWS else f"{title}, lowest {MAX_ROWS} of {len(rows):,} groups"


def points(frame: pd.DataFrame, x: str, y: str) -> tuple[list[float], list[float]]:
    """The rows in which both are finite numbers: a figure that was not recorded leaves a gap, not a zero."""
    numbers = frame[[x, y]].apply(pd.to_numeric, errors="coerce").astype("float64")
    known = numbers[np.isfinite(numbers).all(axis=1)]
    return floats(known[x]), floats(known[y])


def floats(values: pd.Series[Any]) -> list[float]:
    return [float(value) for value in values.to_numpy(dtype=float)]

"""Figures of a stage as flat rows, for the terminal and the Prefect UI."""

from __future__ import annotations

from typing import Any


def flatten(value: dict[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested figures as flat rows `a.b: 3`; lists are left out, they are in the report."""
    rows: dict[str, str] = {}
    for key, item in value.items():
        name = f"{prefix}{key}"
        if isinstance(item, dict):
            rows |= flatten(item, f"{name}.")
        elif isinstance(item, float):
            rows[name] = f"{item:.4g}"
        elif not isinstance(item, list):
            rows[name] = str(item)
    return rows

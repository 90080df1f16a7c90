"""What is in the output of the stage aggregate, as figures: for `rlaif labels report`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from judges.aggregation.labels import LABELS
from judges.gate import label_entropy
from store.errors import UsageError
from store.manifest import need_manifest
from store.schemas import PREFERENCES
from store.tables import read_table

BINS = 10
"""Of the histogram, over 0.5..1."""


def label_report(folder: Path) -> dict[str, Any]:
    """Figures of a finished aggregate stage: `votes` (the accounting), `agreement`, `weights`, `length_weight`,
    `labels`, `confidence` (histogram), `dropped`, `by_group`, `gold`, `gate`, `verdicts`, `ratings_warning`, `method`.

    Raises UsageError where `folder` is not the output of that stage.
    """
    manifest = need_manifest(folder)
    if manifest.stage != "aggregate":
        raise UsageError(f"{folder} is the output of the stage {manifest.stage}: give one of the stage aggregate.")
    path = folder / "labels.parquet"
    if not path.exists():
        raise UsageError(f"{folder} has no labels.parquet, an older version made it: run the stage aggregate again.")
    labels = read_table(path, LABELS, allow_empty=True)
    there = (folder / "preferences.parquet").exists()
    preferences = read_table(folder / "preferences.parquet", PREFERENCES) if there else None
    metrics = manifest.metrics
    p_a = labels["p_a"].to_numpy()
    return {
        "method": manifest.config.get("method"),
        "pairs": metrics.get("pairs"),
        "votes": metrics.get("votes"),
        "votes_excluded": metrics.get("votes_excluded"),
        "pairs_in_one_order": metrics.get("pairs_in_one_order"),
        "agreement": metrics.get("agreement"),
        "weights": metrics.get("judge_weights"),
        "length_weight": metrics.get("length_weight"),
        "gold": {
            "pairs": metrics.get("gold_pairs"),
            "without_votes": metrics.get("gold_pairs_without_votes"),
            "votes_excluded": metrics.get("gold_votes_excluded"),
            "judges_without": metrics.get("judges_without_gold"),
        },
        "labels": {
            "all": labels.num_rows,
            "of_people": int(pc.sum(pc.equal(labels["source"], "human")).as_py() or 0),
            "ties": int((p_a == 0.5).sum()),
            "entropy": label_entropy(labels),
            "entropy_of_judges": metrics.get("label_entropy"),
        },
        "confidence": _histogram(np.maximum(p_a, 1 - p_a)),
        "preferences": None if preferences is None else preferences.num_rows,
        "dropped": metrics.get("dropped"),
        "splits": metrics.get("splits"),
        "by_group": {} if preferences is None else _by_group(preferences, metrics.get("by_group") or {}),
        "ratings_warning": metrics.get("ratings_warning"),
        "verdicts": metrics.get("verdicts"),
        "people_against_judges": metrics.get("people_against_judges"),
        "auditors": metrics.get("auditors"),
        "gate": metrics.get("gate"),
    }


def _histogram(confidence: np.ndarray[Any, np.dtype[np.float64]]) -> list[dict[str, Any]]:
    """Labels by the probability of their likelier winner; the last bin holds 1 too."""
    counts, edges = np.histogram(confidence, bins=BINS, range=(0.5, 1.0))
    return [
        {"from": round(float(low), 4), "to": round(float(high), 4), "labels": int(count)}
        for low, high, count in zip(edges[:-1], edges[1:], counts, strict=True)
    ]


def _by_group(preferences: pa.Table, counts: dict[str, dict[str, int]]) -> dict[str, dict[str, Any]]:
    found = {}
    for group, numbers in counts.items():
        own = preferences.filter(pc.equal(preferences["group"], group))
        found[group] = {
            **numbers,
            "human": int(pc.sum(pc.equal(own["source"], "human")).as_py() or 0),
            "mean_confidence": pc.mean(own["p_chosen"]).as_py(),
            "mean_agreement": pc.mean(own["agreement"]).as_py(),
        }
    return found

"""What judging cost: calls, tokens and money of each judge in each stage of a round, as the stages' manifests tell."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from flows.stages.spent import Spent
from store.manifest import Manifest, read_manifest

STAGES = ("judge", "anchors", "ppo", "evaluate")
"""Stages that ask judges."""


def judge_costs(round_folder: Path) -> list[dict[str, Any]]:
    """Rows `judge, stage, calls, tokens_in, tokens_out, cost`, by judge; of a cascade its members."""
    manifests = {stage: read_manifest(round_folder / stage) for stage in STAGES}
    rows = [
        {"judge": judge, "stage": stage, **figures}
        for stage, manifest in manifests.items()
        for judge, figures in spent_by(manifest).items()
    ]
    return sorted(rows, key=lambda row: (row["judge"], row["stage"]))


def spent_by(manifest: Manifest | None) -> Spent:
    """What a stage asked of its judges; of one that an earlier version made, its votes alone."""
    metrics = manifest.metrics if manifest else {}
    if "spent" in metrics:
        found: Spent = metrics["spent"]
        return found
    per_judge = metrics.get("per_judge") or {}
    names = {"calls": "attempted", "tokens_in": "tokens_in", "tokens_out": "tokens_out", "cost": "cost"}
    return {judge: {name: own.get(old) or 0 for name, old in names.items()} for judge, own in per_judge.items()}

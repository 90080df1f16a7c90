"""The state of a workspace's last round as one JSON value: what `rlaif status --json` prints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from flows.plan import plan_round
from flows.specs import STAGES
from flows.workspace import Round, Workspace
from store.files import read_json
from store.manifest import Manifest, read_manifest


def round_status(round_: Round) -> dict[str, Any]:
    """`round`, `stages` (name -> state, seconds, attempts), `metrics`, `report`, `finished`."""
    planned = [step.stage for step in plan_round(round_)]
    events = round_.journal.events()
    manifests = {name: read_manifest(round_.stage(name)) for name in STAGES}
    stages = {
        name: {**_stage(name, name in planned, manifests[name], events), "attempts": round_.journal.attempts(name)}
        for name in STAGES
    }
    report = round_.folder / "report.html"
    return {
        "round": round_.number,
        "finished": round_.finished,
        "stages": stages,
        "metrics": _metrics(round_, manifests, events),
        "report": str(report) if report.is_file() else None,
    }


def status(workspace: Workspace) -> dict[str, Any]:
    last = workspace.last_round()
    champion = workspace.champion()
    head: dict[str, Any] = {"workspace": str(workspace.root), "champion": champion and champion["policy"]}
    if last is None:
        return {**head, "round": None, "finished": False, "stages": {}, "metrics": {}, "report": None}
    return {**head, **round_status(last)}


def _stage(name: str, planned: bool, manifest: Manifest | None, events: list[dict[str, Any]]) -> dict[str, Any]:
    last = next((event["event"] for event in reversed(events) if event.get("stage") == name), None)
    if last == "waiting":
        state = "waiting"  # what lies there, if anything, is of an earlier config
    elif manifest is not None:
        state = "done"
    elif not planned:
        state = "skipped"
    elif last in ("failed", "interrupted"):
        state = last
    else:
        # Started and never ended: it runs, or its process was killed; the lock of a run tells which.
        state = "running" if last == "started" else "pending"
    return {"state": state, "seconds": manifest.seconds if manifest else None}


def _metrics(round_: Round, manifests: dict[str, Manifest | None], events: list[dict[str, Any]]) -> dict[str, Any]:
    def of(stage: str) -> dict[str, Any]:
        manifest = manifests[stage]
        return manifest.metrics if manifest else {}

    evaluation = _evaluation(round_.stage("evaluate"), manifests["evaluate"])
    win_rate = evaluation.get("win_rate") or {}
    rewards = evaluation.get("expected_reward") or {}
    accuracies = of("judge").get("judge_accuracy") or {}
    peaks = [event["peak_rss_mb"] for event in events if "peak_rss_mb" in event]
    peaks += [manifest.peak_rss_mb for manifest in manifests.values() if manifest]
    return {
        "expected_reward_reference": (rewards.get("reference") or {}).get("mean"),
        "expected_reward_policy": (rewards.get("policy") or {}).get("mean"),
        "win_rate": win_rate.get("mean"),
        "win_rate_low": win_rate.get("low"),
        "win_rate_high": win_rate.get("high"),
        "kl": (evaluation.get("kl") or {}).get("mean"),
        "reward_model_accuracy": of("reward").get("accuracy"),
        "reward_model_gold_accuracy": (of("reward").get("gold_accuracy") or {}).get("mean"),
        "judge_accuracy": {judge: figures.get("accuracy") for judge, figures in accuracies.items()},
        "votes": of("judge").get("votes"),
        "promoted": of("promote").get("promoted"),
        "promotion_reason": of("promote").get("reason"),
        "peak_rss_mb": max(peaks, default=None),
        "seconds": next((event["seconds"] for event in reversed(events) if event["event"] == "round_finished"), None),
    }


def _evaluation(folder: Path, manifest: Manifest | None) -> dict[str, Any]:
    value: dict[str, Any] = read_json(folder / "evaluation.json") if manifest else {}
    return value

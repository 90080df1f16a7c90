"""The state of a workspace's last round as one JSON value: what `rlaif status --json` prints."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

from flows.plan import plan_round
from flows.specs import ROUND
from flows.telemetry.costs import judge_costs
from flows.telemetry.progress import read_progress
from flows.workspace import LOCK, Round, Workspace
from store.files import read_json, read_lines
from store.locks import is_held
from store.manifest import Manifest, read_manifest


def round_status(round_: Round) -> dict[str, Any]:
    """`round`, `stages` (name -> state, seconds, attempts, and of a running one its progress, of a waiting one what it
    said and until when), `alive` (a run is at it), `cost` so far, `eta_s`, `metrics`, `report`, `finished`."""
    planned = [step.stage for step in plan_round(round_)]
    events = round_.journal.events()
    manifests = {name: read_manifest(round_.stage(name)) for name in ROUND}
    alive = is_held(round_.folder.parent.parent / LOCK)
    stages = {
        name: {
            **_stage(round_, name, name in planned, manifests[name], events, alive),
            "attempts": round_.journal.attempts(name),
        }
        for name in ROUND
    }
    report = round_.folder / "report.html"
    return {
        "round": round_.number,
        "finished": round_.finished,
        "alive": alive,
        "stages": stages,
        "cost": _cost(round_),
        "eta_s": _eta(round_, stages) if alive else None,
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


def _stage(
    round_: Round, name: str, planned: bool, manifest: Manifest | None, events: list[dict[str, Any]], alive: bool
) -> dict[str, Any]:
    """What happened last tells the state: a result that lies there may be of an earlier config."""
    last: dict[str, Any] = next((event for event in reversed(events) if event.get("stage") == name), {})
    kind, more = last.get("event"), dict[str, Any]()
    if not planned:
        state = "skipped"
    elif kind == "waiting":
        state, more = "waiting", {"said": last.get("said"), "until": last.get("until")}
    elif kind in ("failed", "interrupted"):
        state = kind
    elif kind == "started":
        state = "running" if alive else "killed"
        more = {"progress": read_progress(round_.folder, name)} if alive else more
    else:
        state = "done" if manifest is not None else "pending"
    return {"state": state, "seconds": manifest.seconds if manifest else None, **more}


def _cost(round_: Round) -> float:
    """Of all calls so far, those of an unfinished stage too, in the currency of the judges' prices."""
    shards = (path for folder in round_.folder.glob(".*.partial/.*") for path in folder.rglob("*.jsonl"))
    told = sum(float(row["cost"]) for row in judge_costs(round_.folder))
    return told + sum(_cost_of_shard(path, path.stat().st_size) for path in shards)


@lru_cache(maxsize=4096)
def _cost_of_shard(path: Path, size: int) -> float:
    """A shard of a journal only grows."""
    return float(sum(row.get("cost") or 0.0 for row in read_lines(path) if isinstance(row, dict)))


def _eta(round_: Round, stages: dict[str, dict[str, Any]]) -> float | None:
    """Seconds to the round's end: what is left of the running stage, and for the others their time in the last round
    that has it. None where one of these is not known."""
    rounds = [path for path in round_.folder.parent.iterdir() if path.name.isdecimal()]
    earlier = sorted(rounds, key=lambda path: int(path.name), reverse=True)
    total = 0.0
    for name, stage in stages.items():
        if stage["state"] in ("done", "skipped"):
            continue
        left = (stage.get("progress") or {}).get("seconds_left")
        if left is None:
            found = (manifest.seconds for folder in earlier if (manifest := read_manifest(folder / name)))
            left = next(found, None)
        if left is None:
            return None
        total += left
    return total


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

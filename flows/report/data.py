"""A round as the page needs it. What is absent is None; what cannot be read is None and named in `problems`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import yaml

from audit.verdicts import Verdict
from flows.anchors import drift_events
from flows.report.reader import Reader
from flows.report.values import Estimate, VoteCount, estimate, estimates, integer, mapping, real, vote_counts
from judges.metrics import Cause
from store.errors import RlaifError, UsageError
from store.files import read_json
from store.journal import Journal
from store.manifest import Manifest, read_manifest

STAGES = {
    "sft": "Fine-tune on expert demonstrations",
    "sample": "Sample responses from the policy",
    "judge": "Let the judges compare pairs",
    "audit": "Have people check some judgments",
    "aggregate": "Turn votes into preferences",
    "reward": "Train the reward model",
    "ppo": "Optimise the policy",
    "evaluate": "Compare policy and reference",
    "promote": "Decide on the champion",
}
"""The stages in their order, with what each does in a reader's words."""


@dataclass(frozen=True)
class Judge:
    """A judge of the training pairs. `flip_rate`: share of pairs whose winner changes with the order.

    `first_slot_rate`: share of winners that were shown first.
    """

    name: str
    fingerprint: str | None = None
    accuracy: Estimate | None = None
    flip_rate: float | None = None
    first_slot_rate: float | None = None
    cost: float | None = None
    tokens: int | None = None


@dataclass(frozen=True)
class StageRow:
    """One stage of the round. `state`: finished, reused, failed, unfinished, missing, off or absent.

    `error` is that of the last attempt that failed, also where a later one succeeded.
    """

    name: str
    does: str
    state: str
    seconds: float | None
    attempts: int | None
    peak_rss_mb: float | None
    error: str | None = None


@dataclass(frozen=True)
class Check:
    """One condition of the promotion."""

    name: str
    value: Any
    bar: Any
    passed: bool | None


@dataclass(frozen=True)
class Decision:
    """What the promote stage decided."""

    promoted: bool
    reason: str
    checks: list[Check]


@dataclass(frozen=True)
class Evaluation:
    """evaluation.json. `both`: figures of policy and reference by name (expected_reward, reward_model, length)."""

    win_rate: Estimate | None
    by_group: dict[str, Estimate]
    by_split: dict[str, Estimate]
    length_controlled: float | None
    both: dict[str, dict[str, Estimate]]
    pairs: dict[str, int]
    kl: Estimate | None
    votes: dict[str, VoteCount]
    confidence: float | None


@dataclass
class Round:
    """Everything that the page shows of one round. `causes`: why votes have no answer, by what they were votes on.
    `drift`: the journal's events on judges and anchors, the last of each judge."""

    name: str
    manifests: dict[str, Manifest]
    stages: list[StageRow]
    config_text: str | None
    config: dict[str, Any]
    rollouts: int | None
    prompts: int | None
    votes: pa.Table | None
    calibration_votes: pa.Table | None
    evaluation_votes: pa.Table | None
    causes: list[tuple[str, Cause]]
    selection: pd.DataFrame | None
    verdicts: list[Verdict] | None
    preferences: pd.DataFrame | None
    sft_curve: pd.DataFrame | None
    reward_curve: pd.DataFrame | None
    predictions: pd.DataFrame | None
    updates: pd.DataFrame | None
    responses: pd.DataFrame | None
    evaluation: Evaluation | None
    decision: Decision | None
    drift: list[dict[str, Any]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def metrics(self, stage: str) -> dict[str, Any]:
        """A finished stage's metrics; empty where it has not run."""
        manifest = self.manifests.get(stage)
        return manifest.metrics if manifest else {}

    def setting(self, stage: str, *names: str) -> Any:
        """A value of the config that a finished stage ran with, or None."""
        manifest = self.manifests.get(stage)
        value: Any = manifest.config if manifest else {}
        for name in names:
            value = value.get(name) if isinstance(value, Mapping) else None
        return value


def read_round(folder: Path) -> Round:
    """Read what a round has so far. Raises UsageError where `folder` is no folder, or has neither stage nor config."""
    if not folder.is_dir():
        raise UsageError(f"The round folder {folder} does not exist: give the folder that holds round.yaml.")
    problems: list[str] = []
    manifests = _manifests(folder, problems)
    config_text, config = _config(folder / "round.yaml", problems)
    if not manifests and config_text is None:
        raise UsageError(f"{folder} holds neither round.yaml nor a finished stage: give the folder of a round.")
    read = Reader(folder, manifests, problems)
    journal = Journal(folder / "journal.jsonl")
    tuned = _starts_tuned(folder / "round.json", problems)
    rollouts = read.table("sample", "rollouts.parquet", ["prompt_id"])
    return Round(
        name=folder.resolve().name,
        manifests=manifests,
        stages=[_stage_row(name, journal, manifests.get(name), _is_off(name, config, tuned)) for name in STAGES],
        config_text=config_text,
        config=config,
        rollouts=None if rollouts is None else len(rollouts),
        prompts=None if rollouts is None else int(rollouts["prompt_id"].nunique()),
        votes=read.votes("judge", "votes.parquet"),
        calibration_votes=read.votes("judge", "calibration_votes.parquet", optional=True),
        evaluation_votes=read.votes("evaluate", "votes.parquet", optional=True),
        causes=[(title, cause) for title, stage, name in VOTES_OF for cause in read.causes(stage, name)],
        selection=read.table("audit", "selection.parquet", ["pair_id", "drawn", "stratum"], optional=True),
        verdicts=read.verdicts(),
        preferences=read.table("aggregate", "preferences.parquet", ["p_chosen", "source", "group", "split"]),
        sft_curve=read.table("sft", "curve.parquet"),
        reward_curve=read.table("reward", "curve.parquet"),
        predictions=read.table("reward", "predictions.parquet", ["p_chosen", "predicted", "group", "split"]),
        updates=read.table("ppo", "updates.parquet"),
        responses=read.table("evaluate", "responses.parquet", _RESPONSE_COLUMNS),
        evaluation=_evaluation(read, manifests),
        decision=_decision(read),
        drift=drift_events(journal),
        problems=problems,
    )


VOTES_OF = (
    ("Training pairs", "judge", "votes.parquet"),
    ("Calibration set", "judge", "calibration_votes.parquet"),
    ("Evaluation", "evaluate", "votes.parquet"),
)
"""Who voted on what: a title, the stage, and its table."""
_RESPONSE_COLUMNS = [
    "prompt_id",
    "prompt",
    "response",
    "group",
    "split",
    "policy",
    "sample",
    "reward",
    "oracle",
    "oracle_reasons",
    "win_probability",
]


def _manifests(folder: Path, problems: list[str]) -> dict[str, Manifest]:
    found = {}
    for stage in STAGES:
        try:
            manifest = read_manifest(folder / stage)
        except RlaifError as error:
            problems.append(f"The stage {stage} is not shown: {error}")
            continue
        if manifest is not None:
            found[stage] = manifest
    return found


def _config(path: Path, problems: list[str]) -> tuple[str | None, dict[str, Any]]:
    """The text of round.yaml as it is, and what it means; an unreadable one is shown as text all the same."""
    if not path.is_file():
        return None, {}
    text = path.read_text(encoding="utf-8", errors="replace")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        problems.append("round.yaml is not valid YAML.")
        return text, {}
    return text, value if isinstance(value, dict) else {}


def _starts_tuned(path: Path, problems: list[str]) -> bool:
    """Whether the round started from a champion, so that there is nothing to fine-tune."""
    if not path.is_file():
        return False
    try:
        value = read_json(path)
    except UsageError as error:
        problems.append(str(error))
        return False
    return isinstance(value, dict) and value.get("tuned") is True


def _is_off(stage: str, config: Mapping[str, Any], tuned: bool) -> bool:
    section = config.get(stage)
    off = isinstance(section, Mapping) and (section.get("enabled") is False or section.get("mode") in ("off", False))
    return off or (stage == "sft" and (tuned or ("demonstrations" in config and not config["demonstrations"])))


def _stage_row(name: str, journal: Journal, manifest: Manifest | None, off: bool) -> StageRow:
    events = [event for event in journal.events() if event.get("stage") == name]
    last = events[-1] if events else {}
    finished = [event for event in events if event.get("event") == "finished"]
    seconds = real(finished[-1].get("seconds")) if finished else None
    if seconds is None:
        seconds = manifest.seconds if manifest else None
    failures = [
        event["error"] for event in events if event.get("event") in ("failed", "interrupted") and event.get("error")
    ]
    return StageRow(
        name=name,
        does=STAGES[name],
        state=_state(last.get("event"), manifest, bool(finished), off),
        seconds=seconds,
        attempts=journal.attempts(name) if events else None,
        peak_rss_mb=manifest.peak_rss_mb if manifest else None,
        error=str(failures[-1]) if failures else None,
    )


def _state(event: Any, manifest: Manifest | None, finished: bool, off: bool) -> str:
    if event == "failed":
        return "failed"
    if event in ("started", "interrupted"):
        return "unfinished"
    if manifest is not None:
        # A round that is continued finds its own results again; only what it never made itself is reused.
        return "reused" if event == "reused" and not finished else "finished"
    if event in ("finished", "reused"):
        return "missing"
    return "off" if off else "absent"


def _evaluation(read: Reader, manifests: Mapping[str, Manifest]) -> Evaluation | None:
    value = read.json("evaluate", "evaluation.json")
    if value is None:
        return None
    return Evaluation(
        win_rate=estimate(value.get("win_rate")),
        by_group=estimates(value.get("by_group")),
        by_split=estimates(value.get("by_split")),
        length_controlled=real(value.get("length_controlled_win_rate")),
        both={name: estimates(value.get(name)) for name in ("expected_reward", "reward_model", "length")},
        pairs={name: n for name, item in mapping(value.get("pairs")).items() if (n := integer(item)) is not None},
        kl=estimate(value.get("kl")),
        votes=vote_counts(value.get("votes"), "evaluation judges"),
        confidence=real(value.get("confidence")) or real(manifests["evaluate"].config.get("confidence")),
    )


def _decision(read: Reader) -> Decision | None:
    value = read.json("promote", "decision.json")
    if value is None or not isinstance(value.get("promoted"), bool):
        return None
    checks = [
        Check(str(item.get("name", "")), item.get("value"), item.get("bar"), item.get("passed"))
        for item in value.get("checks") or []
        if isinstance(item, dict)
    ]
    return Decision(value["promoted"], str(value.get("reason") or ""), checks)

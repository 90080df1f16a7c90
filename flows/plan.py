"""The plan of a round: its steps in order, each with its inputs, config, seed and output folder.

A plan is pure data, made from the round's config and its start alone. Whoever executes it, the flow or a person on the
command line, gets the same files.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from audit.config import AuditConfig
from flows.config import RoundConfig
from flows.specs import STAGES, StageSpec
from flows.workspace import Start
from store.config import Config
from store.hashing import hash_json
from store.stage import Source

AUDIT_DATABASE = "audit.db"


class Planned(Protocol):
    """What a plan is made from: a round, or what will be one."""

    @property
    def number(self) -> int: ...

    @property
    def folder(self) -> Path: ...

    @property
    def config(self) -> RoundConfig: ...

    @property
    def start(self) -> Start: ...

    def stage(self, name: str) -> Path: ...


@dataclass(frozen=True)
class Step:
    """One stage of a round. `inputs`: for each input its values; files of earlier steps may not exist yet."""

    stage: str
    inputs: Mapping[str, list[str]]
    config: Config
    seed: int
    out: Path

    @property
    def spec(self) -> StageSpec:
        return STAGES[self.stage]

    def sources(self) -> dict[str, list[Source]]:
        """The inputs with their content hashes. UsageError where one is not there."""
        return resolve_inputs(self.spec, self.inputs)


def resolve_inputs(spec: StageSpec, values: Mapping[str, list[str]]) -> dict[str, list[Source]]:
    kinds = {item.name: item.source for item in spec.inputs}
    return {name: [kinds[name](value) for value in given] for name, given in values.items() if given}


def stage_seed(seed: int, number: int, stage: str) -> int:
    """Independent seeds for each stage and round from the one in the config; 31 bits fit every generator."""
    return int(hash_json([seed, number, stage])[:8], 16) >> 1


def audit_config(config: AuditConfig, workspace: Path, wait: bool = False) -> AuditConfig:
    """The section with the database's place filled in: in the workspace, unless it names another. All of this is
    operational, so no key depends on it."""
    changes: dict[str, object] = {"wait": True} if wait else {}
    if config.database_env is None and config.inbox is None and "://" not in (config.database or ""):
        changes["database"] = str(workspace / Path(config.database or AUDIT_DATABASE).expanduser())
    return config.model_copy(update=changes)


def plan_round(round_: Planned, wait: bool = False) -> list[Step]:
    """`wait`: the audit stays and polls until people are done, instead of saying that it waits."""
    config, start = round_.config, round_.start
    steps: list[Step] = []

    def add(stage: str, section: Config, **inputs: str | Path | list[str] | None) -> Path:
        values = {
            name: [] if value is None else value if isinstance(value, list) else [str(value)]
            for name, value in inputs.items()
        }
        out = round_.stage(stage)
        steps.append(Step(stage, values, section, stage_seed(config.seed, round_.number, stage), out))
        return out

    policy = start.policy
    if config.sft.enabled and config.demonstrations and not start.tuned:
        policy = str(add("sft", config.sft, policy=policy, demonstrations=config.demonstrations) / "model")
    sample = add("sample", config.sample, policy=policy, prompts=config.prompts)
    judge = add(
        "judge",
        config.judge,
        rollouts=sample / "rollouts.parquet",
        prompts=config.prompts,
        judge=config.judges,
        calibration=config.calibration,
    )
    pairs, votes = judge / "pairs.parquet", judge / "votes.parquet"
    audit = add(
        "audit",
        audit_config(config.audit, round_.folder.parent.parent, wait),
        pairs=pairs,
        votes=votes,
        oracle=config.oracle,
        gold=config.calibration,
        gold_votes=judge / "calibration_votes.parquet" if config.calibration else None,
        attacks=judge / "attacks.parquet" if config.judge.canaries else None,
        earlier=list(start.audits),
    )

    def with_late(path: Path, name: str) -> list[str]:
        return [str(path), *([str(audit / f"late_{name}.parquet")] if start.audits else [])]

    aggregate = add(
        "aggregate",
        config.aggregate,
        votes=with_late(votes, "votes"),
        pairs=with_late(pairs, "pairs"),
        verdicts=with_late(audit / "verdicts.parquet", "verdicts"),
        gold_verdicts=audit / "gold_verdicts.parquet",
        gold=config.calibration,
        gold_votes=judge / "calibration_votes.parquet" if config.calibration else None,
        prompts=config.prompts,
        checks=[*config.judge_checks, *([str(judge / "canaries.json")] if config.judge.canaries else [])],
    )
    preferences = [str(aggregate / "preferences.parquet"), *start.replayed]
    reward = add(
        "reward",
        config.reward,
        model=policy,
        preferences=preferences,
        prompts=config.prompts,
        calibration=config.calibration,
    )
    reward_model = reward / "model"
    ppo = add(
        "ppo",
        config.ppo,
        policy=policy,
        reward=reward_model,
        prompts=config.prompts,
        judge=config.probe_judges or config.judges,
        constraint=config.constraints,
    )
    evaluate = add(
        "evaluate",
        config.evaluate,
        policy=ppo / "policy",
        reference=policy,
        reward=reward_model,
        prompts=config.prompts,
        judge=config.evaluation_judges,
        oracle=config.oracle,
    )
    add("promote", config.promote, evaluation=evaluate / "evaluation.json", policy=ppo / "policy")
    return steps

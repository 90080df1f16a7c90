"""The round's configuration: one YAML file."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from audit.config import AuditConfig
from judges.config import AggregateConfig, JudgeStageConfig
from rlhf.config import EvaluateConfig, PPOConfig, RewardConfig, SampleConfig, SFTConfig
from store.config import Config


class PromoteConfig(Config):
    """When a policy replaces the champion."""

    win_rate_bar: Annotated[float, Field(ge=0, le=1)] = Field(
        0.5, description="the lower bound of the win rate must lie above this"
    )
    group_bar: Annotated[float, Field(ge=0, le=1)] = Field(
        0.4, description="the lower bound of every group's win rate must lie above this"
    )
    kl_bar: Annotated[float, Field(gt=0)] | None = Field(None, description="largest KL to the reference, in nats")


class RetryConfig(Config):
    """Retries of a stage that failed in a way that may pass."""

    attempts: Annotated[int, Field(ge=1)] = Field(3, description="tries of a stage, the first included")
    delay_s: Annotated[float, Field(ge=0)] = Field(
        10.0, description="seconds before the second try; doubles after that"
    )
    jitter: Annotated[float, Field(ge=0)] = Field(0.5, description="random share added to the delay")
    timeout_s: Annotated[float, Field(gt=0)] | None = Field(
        None, description="seconds a try may take before it is stopped; null sets no limit"
    )
    silence_s: Annotated[float, Field(gt=0)] | None = Field(
        3600.0, description="seconds without any progress after which a try is taken for hung and stopped; null: never"
    )


class NotifyConfig(Config):
    """Who is told of runs that failed or crashed."""

    webhook_env: Annotated[str, Field(pattern=r"^[A-Z_][A-Z0-9_]*$")] | None = Field(
        None, description="environment variable that holds the address to call; the address itself stays out of files"
    )


class DriftConfig(Config):
    """In each round: do the judges answer the frozen anchor pairs as they did before?"""

    enabled: bool = Field(True, description="look for drift after the judge stage; needs calibration pairs")
    anchors: Annotated[int, Field(ge=1)] = Field(
        100, description="calibration pairs that are frozen as anchors, the first time"
    )
    max_flip_rate: Annotated[float, Field(ge=0, le=1)] = Field(
        0.05, description="a judge drifted where the interval of its share of flipped answers lies above this; reported"
    )


class AnchorsConfig(Config):
    """How many failing answers an asking of anchor pairs bears; a round takes these from its section judge."""

    max_error_rate: Annotated[float, Field(ge=0, le=1)] = Field(0.2, description="share of errors that fails the stage")
    max_parse_failure_rate: Annotated[float, Field(ge=0, le=1)] = Field(
        0.3, description="share of parse failures that fails the stage"
    )
    rate_after: Annotated[int, Field(ge=1)] = Field(
        50, description="votes of a judge before its two rates can end the stage early; at its end they always can"
    )


class RoundConfig(Config):
    """One pass of the loop, from prompts to a promoted policy or none."""

    seed: int = Field(17, description="of everything random in the round")
    policy: str = Field(description="model of the first round: shipped:..., a folder, or a name on a hub")
    prompts: str = Field(description="prompts parquet")
    demonstrations: str | None = Field(None, description="demonstrations parquet for SFT")
    calibration: str | None = Field(None, description="pairs with gold winners, to measure judges on")
    judges: list[str] = Field(min_length=1, description="judges of the training pairs: shipped names or folders")
    evaluation_judges: list[str] = Field(min_length=1, description="judges of the evaluation; best not those above")
    judge_checks: list[str] = Field(
        [], description="reports of rlaif judges check --json on the judges, for the gate's limit on canaries"
    )
    probe_judges: list[str] = Field(
        [], description="judges of PPO's live probe, best not those whose labels it trains on; empty: the judges"
    )
    constraints: list[str] = Field([], description="judges that the terms of ppo.terms ask, shipped names or folders")
    oracle: str | None = Field(None, description="program judge for expected reward and simulated auditors")
    replay_rounds: Annotated[int, Field(ge=0)] = Field(
        3, description="earlier rounds whose preferences are trained on too"
    )
    sft: SFTConfig = SFTConfig()
    sample: SampleConfig = SampleConfig()
    judge: JudgeStageConfig = JudgeStageConfig()
    audit: AuditConfig = AuditConfig()
    aggregate: AggregateConfig = AggregateConfig()
    reward: RewardConfig = RewardConfig()
    ppo: PPOConfig = PPOConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    promote: PromoteConfig = PromoteConfig()
    drift: DriftConfig = DriftConfig()
    retry: RetryConfig = RetryConfig()
    notify: NotifyConfig = NotifyConfig()

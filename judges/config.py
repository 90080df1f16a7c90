"""Configuration of the judge and aggregate stages, and the way in to judges: `load_judge`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, StringConstraints, field_validator

from judges.aggregation.names import DIAGNOSTICS, not_a_method
from judges.judge import Judge, known_judges, load_judge
from store.config import OPERATIONAL, Config
from store.limits import AuditorLimits
from store.sharding import ShardsConfig

__all__ = ["AggregateConfig", "GateConfig", "Judge", "JudgeStageConfig", "known_judges", "load_judge"]

Share = Annotated[float, Field(ge=0, le=1)]


class JudgeStageConfig(Config):
    """Which pairs are judged."""

    pairs: Literal["all", "random", "swiss"] = Field(
        "random",
        description="all pairs of a prompt's responses, a random subset, or rounds between neighbours by rating so far",
    )
    pairs_per_prompt: Annotated[int, Field(ge=1)] = Field(3, description="pairs of a prompt; pairs: random and swiss")
    max_error_rate: Annotated[float, Field(ge=0, le=1)] = Field(0.2, description="share of errors that fails the stage")
    max_parse_failure_rate: Annotated[float, Field(ge=0, le=1)] = Field(
        0.3, description="share of parse failures that fails the stage"
    )
    rate_after: Annotated[int, Field(ge=1)] = Field(
        50, description="votes of a judge before its two rates can end the stage early; at its end they always can"
    )
    canaries: Annotated[int, Field(ge=0)] = Field(
        0,
        description="attacks of each text of the canary corpus on each judge, planted into pairs of the round; their "
        "figures go to the gate, and what each did to the audit's selection",
    )
    shards: ShardsConfig | None = Field(
        None,
        description="judge big tables in parts, on threads or a cluster; null: in one. Both rates hold in each part",
        json_schema_extra=OPERATIONAL,
    )


class GateConfig(Config):
    """Which judges may label training pairs; null switches a limit off. A limit is broken where the 95 % interval of
    the figure lies beyond it, so that a handful of votes stops nothing."""

    max_flip_rate: Share | None = Field(
        0.5, description="share of pairs whose winner by the whole panel changes with the order"
    )
    max_judge_flip_rate: Share | None = Field(
        0.9, description="the same of a single judge; averaging both orders cancels what a judge has for a slot"
    )
    max_parse_failure_rate: Share | None = Field(0.1, description="share of a judge's votes that could not be read")
    max_canary_flip_rate: Share | None = Field(
        0.5, description="share of attacked responses that win a judge over; from reports of rlaif judges check"
    )
    max_length_slope: Annotated[float, Field(ge=0, le=1)] | None = Field(
        0.3, description="change of the labels' p for one standard deviation of length difference, either way"
    )
    min_gold_agreement: Share | None = Field(
        0.5, description="the lower bound of the share of gold winners that labels agree with must reach this"
    )
    min_gold_pairs: Annotated[int, Field(ge=1)] = Field(
        20, description="gold pairs below which agreement is shown, but stops nothing"
    )
    min_label_entropy: Share | None = Field(None, description="least mean entropy of the labels, in bits")
    max_label_entropy: Share | None = Field(
        0.98, description="largest mean entropy of the labels, in bits; at 1 all are coin tosses"
    )
    override: Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)] | None = Field(
        None,
        description="why to go on past broken limits, recorded in manifest and report; this round only",
    )


class AggregateConfig(Config):
    """How votes and verdicts become preferences."""

    method: Literal["stacked", "weighted", "mean", "majority"] = Field(
        "stacked",
        description="how votes are combined; stacked: by weights that judges earn together on gold, equal ones "
        "without; weighted: each by its own accuracy on gold",
    )
    lengths: bool = Field(
        True, description="let the gold say what a vote for the longer response is worth less, or more; stacked alone"
    )
    min_confidence: Annotated[float, Field(ge=0.5, le=1)] = Field(
        0.5, description="pairs below this p_chosen are left out"
    )
    keep_ties: bool = Field(
        True, description="keep pairs of p_chosen exactly 0.5; the soft loss pulls their rewards together"
    )
    human_weight: Annotated[float, Field(gt=0)] = Field(
        1.0, description="weight of a person's preference; a judge's is 1"
    )
    auditor_limits: AuditorLimits = Field(
        AuditorLimits(), description="when an auditor's verdicts are set aside, and labels made without them"
    )
    validation_fraction: Annotated[float, Field(ge=0, lt=1)] = Field(0.1, description="share of prompts in split test")
    judges: list[str] | None = Field(
        None, description="names or fingerprints of the judges whose votes count; others are left out and counted"
    )
    held_out: list[str] = Field(
        ["heldout*", "test*"],
        description="splits of the prompts (* stands for anything) on which no preference may be trained",
    )
    contamination_ngram: Annotated[int, Field(ge=0)] = Field(
        13, description="words of the n-grams that find nearly held-out prompts; 0: only prompts with the same words"
    )
    contamination_share: Annotated[float, Field(gt=0, le=1)] = Field(
        0.7, description="share of a held-out prompt's n-grams in another prompt that makes it held out too"
    )
    max_similarity: Annotated[float, Field(gt=0, le=1)] | None = Field(
        0.95, description="pairs whose responses are alike to this degree (Jaccard of token 5-grams) are left out"
    )
    max_pairs_per_prompt: Annotated[int, Field(ge=0)] = Field(
        0, description="preferences of a prompt at most, those of people first, then drawn; 0: all"
    )
    max_group_ratio: Annotated[float, Field(ge=1)] | None = Field(
        None, description="size of the largest group over that of the smallest, at most; null: as they are"
    )
    part_rows: Annotated[int, Field(ge=0)] = Field(
        0, description="rows of a part file, of which preferences.parquet is then a folder; 0: one file"
    )
    gate: GateConfig = Field(GateConfig(), description="when judges are not good enough to train on")

    @field_validator("method", mode="before")
    @classmethod
    def _no_diagnostic(cls, method: object) -> object:
        if method in DIAGNOSTICS:
            raise ValueError(not_a_method(str(method)))
        return method

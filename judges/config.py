"""Configuration of the judge and aggregate stages, and the way in to judges: `load_judge`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator

from judges.aggregation.names import DIAGNOSTICS, not_a_method
from judges.judge import Judge, known_judges, load_judge
from store.config import Config

__all__ = ["AggregateConfig", "Judge", "JudgeStageConfig", "known_judges", "load_judge"]


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


class AggregateConfig(Config):
    """How votes and verdicts become preferences."""

    method: Literal["stacked", "weighted", "mean", "majority"] = Field(
        "stacked",
        description="how votes are combined; stacked: by weights that judges earn together on gold, equal ones "
        "without; weighted: each by its own accuracy on gold",
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
    validation_fraction: Annotated[float, Field(ge=0, lt=1)] = Field(0.1, description="share of prompts in split test")

    @field_validator("method", mode="before")
    @classmethod
    def _no_diagnostic(cls, method: object) -> object:
        if method in DIAGNOSTICS:
            raise ValueError(not_a_method(str(method)))
        return method

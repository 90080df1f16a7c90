"""Limits that configs of several rooms share."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from store.config import Config


class AuditorLimits(Config):
    """When an auditor's verdicts are set aside. All tests of all auditors together raise a false alarm at `level`."""

    level: Annotated[float, Field(ge=0, lt=0.5)] = Field(
        0.01, description="chance to set aside anybody at all who is within the limits; 0 switches the tests off"
    )
    min_gold_accuracy: Annotated[float, Field(gt=0, lt=1)] = Field(
        0.7, description="least share of hidden gold answers that must be right; proven to be below it, out"
    )
    min_seconds: Annotated[float, Field(ge=0)] = Field(
        2.0, description="an answer in less is too fast to have read two responses"
    )
    max_fast_share: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.1, description="largest share of answers that may be too fast"
    )
    quarantined: list[str] = Field([], description="auditors set aside by a person's decision")
    trusted: list[str] = Field([], description="auditors kept by a person's decision, whatever the tests say")

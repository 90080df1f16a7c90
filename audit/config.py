"""Configuration of the human audit."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from store.config import Config


class SimulatedAuditor(Config):
    """A program that plays an auditor, always marked as simulated."""

    name: Annotated[str, Field(min_length=1, max_length=100)] = Field(
        description="name in the verdicts; 'simulated-' is put before it"
    )
    accuracy: Annotated[float, Field(ge=0, le=1)] = Field(0.95, description="share of verdicts that follow the oracle")


class AuditConfig(Config):
    """Which judged pairs people see, and how long the round waits for them."""

    mode: Literal["off", "people", "simulated"] = Field("off", description="off: select nothing and go on")
    budget: Annotated[int, Field(ge=0)] = Field(
        100,
        description="expected number of pairs to audit a round; pairs are drawn independently, so it varies a little",
    )
    uniform_fraction: Annotated[float, Field(ge=0.3, le=1)] = Field(
        0.3, description="least share drawn uniformly; below 0.3 estimates from the audit become unstable"
    )
    overlap: Annotated[int, Field(ge=1)] = Field(1, description="different auditors who answer each pair")
    quota: Annotated[float, Field(gt=0, le=1)] = Field(1.0, description="share of the drawn pairs that opens the gate")
    timeout_s: Annotated[float, Field(ge=0)] = Field(24 * 3600.0, description="the gate opens after so many seconds")
    poll_s: Annotated[float, Field(gt=0)] = Field(10.0, description="seconds between looks for new verdicts")
    inbox: str | None = Field(
        None, description="mode people: folder in which verdict files arrive; the items are put into its folder items/"
    )
    auditors: list[SimulatedAuditor] = Field(
        default=[SimulatedAuditor(name="careful", accuracy=0.95), SimulatedAuditor(name="hasty", accuracy=0.8)],
        description="used in mode simulated",
    )

    @field_validator("mode", mode="before")
    @classmethod
    def _yaml_off(cls, mode: object) -> object:
        """YAML 1.1 reads an unquoted `off` as false."""
        return "off" if mode is False else mode

    @model_validator(mode="after")
    def _enough_different_auditors(self) -> AuditConfig:
        names = [auditor.name for auditor in self.auditors]
        if len(set(names)) < len(names):
            raise ValueError(f"auditors has a name twice among {', '.join(names)}: give each its own")
        if self.mode == "simulated" and self.overlap > len(names):
            raise ValueError(
                f"overlap {self.overlap} needs as many simulated auditors, there are {len(names)}: add some or lower it"
            )
        return self

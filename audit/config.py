"""Configuration of the human audit."""

from __future__ import annotations

from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import Field, field_validator, model_validator

from store.config import OPERATIONAL, Config
from store.errors import UsageError
from store.limits import AuditorLimits

Weight = Annotated[float, Field(ge=0, le=100)]


class DoubtWeights(Config):
    """How much each reason to doubt the judges counts; 0 leaves it out. `audit.doubt` has the formula."""

    labels: Weight = Field(
        3.0,
        description="labels fitted on pairs with known winners are near 1/2; where there are such, they stand for the "
        "three reasons that follow, which the votes alone give",
    )
    margin: Weight = Field(1.0, description="the panel's mean probability is near 1/2")
    disagreement: Weight = Field(1.0, description="judges are on different sides")
    order_flips: Weight = Field(1.0, description="judges change their mind with the order")
    new_group: Weight = Field(1.0, description="no audit of an earlier round has a verdict on the pair's group")
    canary: Weight = Field(1.0, description="canaries planted into the pair won judges over")
    gate_failure: Weight = Field(1.0, description="judges gave no valid answer: abstained, could not be parsed, failed")


class SimulatedAuditor(Config):
    """A program that plays an auditor, always marked as simulated."""

    name: Annotated[str, Field(min_length=1, max_length=80)] = Field(
        description="name in the verdicts; 'simulated-' is put before it"
    )
    kind: Literal["follows", "troll", "left"] = Field(
        "follows", description="follows the oracle with errors; troll: names the worse response; left: always left"
    )
    accuracy: Annotated[float, Field(ge=0, le=1)] = Field(
        0.95, description="kind follows: share of verdicts that follow the oracle"
    )


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
    sharpness: Annotated[float, Field(ge=0.5, le=8)] = Field(
        2.0,
        description="the power of the doubt that the rest is drawn in proportion to: 0.5 gives the narrowest "
        "estimates, more finds more wrong labels",
    )
    weights: DoubtWeights = DoubtWeights()
    group_caps: dict[str, Annotated[int, Field(ge=1)]] = Field(
        {}, description="group: most pairs of it expected in the audit; the key '*' caps every other group"
    )
    gold_share: Annotated[float, Field(ge=0, le=0.5)] = Field(
        0.1, description="pairs with known winners hidden among the items, as a share of the budget"
    )
    auditor_limits: AuditorLimits = Field(
        AuditorLimits(), description="when an auditor's verdicts are set aside, and estimates made without them"
    )
    overlap: Annotated[int, Field(ge=1, le=100)] = Field(1, description="different auditors who answer each pair")
    quota: Annotated[float, Field(gt=0, le=1)] = Field(1.0, description="share of the drawn pairs that opens the gate")
    timeout_s: Annotated[float, Field(ge=0)] = Field(24 * 3600.0, description="the gate opens after so many seconds")
    guidelines: str | None = Field(None, description="mode people: text file that tells auditors how to compare")
    constitution: str | None = Field(None, description="mode people: file of principles that auditors see")
    inbox: str | None = Field(
        None,
        description="mode people without a database: folder in which verdict files arrive; the items are put into its "
        "folder items/",
    )
    database: str | None = Field(
        None,
        description="mode people: file or URL of the queue's database, without a password; a relative file lies in the "
        "workspace [there, if neither this nor inbox is given: audit.db]",
        json_schema_extra=OPERATIONAL,
    )
    database_env: Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")] | None = Field(
        None,
        description="environment variable that holds the database's URL, for one with a password",
        json_schema_extra=OPERATIONAL,
    )
    url: str | None = Field(
        None, description="where auditors reach the queue; the run links to it", json_schema_extra=OPERATIONAL
    )
    wait: bool = Field(
        False,
        description="stay and look every poll_s seconds; else the stage ends and says that it waits",
        json_schema_extra=OPERATIONAL,
    )
    poll_s: Annotated[float, Field(gt=0)] = Field(
        10.0, description="seconds between looks for new verdicts", json_schema_extra=OPERATIONAL
    )
    auditors: list[SimulatedAuditor] = Field(
        default=[SimulatedAuditor(name="careful", accuracy=0.95), SimulatedAuditor(name="hasty", accuracy=0.8)],
        description="used in mode simulated",
    )
    via: Literal["direct", "http"] = Field(
        "direct",
        description="mode simulated: direct gives the same bytes every time; http answers through a real audit server, "
        "whose ids and sides are random",
    )

    @field_validator("mode", mode="before")
    @classmethod
    def _yaml_off(cls, mode: object) -> object:
        """YAML 1.1 reads an unquoted `off` as false."""
        return "off" if mode is False else mode

    @field_validator("database", "url")
    @classmethod
    def _no_password(cls, value: str | None) -> str | None:
        # Not a ValueError, whose message would show the value.
        if value is not None and _has_password(value):
            raise UsageError(
                "audit.database and audit.url must not hold a password: put the URL into an environment variable and "
                "name it in audit.database_env."
            )
        return value

    @model_validator(mode="after")
    def _one_place(self) -> AuditConfig:
        places = [name for name in ("database", "database_env", "inbox") if getattr(self, name) is not None]
        if len(places) > 1:
            raise ValueError(f"{' and '.join(places)} are given: verdicts arrive in one place, name one of them")
        return self

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


def _has_password(value: str) -> bool:
    try:
        parts = urlsplit(value)
        return bool(parts.password) or "password=" in parts.query.lower()
    except ValueError:
        return True  # what cannot be read is not shown either

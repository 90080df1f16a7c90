"""What auditors send, checked row by row, and turned into verdicts.

An answer names the side (`choice`: left, right, tie, skip), which is mapped back to a rollout with the recorded sides;
or, from a program that knows the rollouts, `winner` (a, b, tie, null) with `shown_left`. The inclusion probability is
always the selection's own; what an answer claims about it is ignored.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from pydantic import (
    AwareDatetime,
    Field,
    StrictBool,
    StrictFloat,
    StrictInt,
    StringConstraints,
    field_validator,
    model_validator,
)

from audit.names import SIMULATED_PREFIX
from audit.verdicts import Verdict
from store.config import Config, parse
from store.errors import UsageError
from store.hashing import short_id

_Name = Annotated[str, StringConstraints(min_length=1, max_length=200, strip_whitespace=True)]
_YEARS = range(2000, 2200)


class Answer(Config):
    """One answer as it arrives: all of a verdict's columns, or the few that a person writes by hand."""

    pair_id: Annotated[str, Field(min_length=1)]
    auditor: _Name
    choice: Literal["left", "right", "tie", "skip"] | None = None
    winner: Literal["a", "b", "tie"] | None = None
    shown_left: Literal["a", "b"] | None = None
    seconds: Annotated[StrictFloat | StrictInt, Field(ge=0, le=1e9)] | None = None
    flaws: list[str] | None = None
    comment: str | None = None
    created_at: AwareDatetime | None = None
    verdict_id: _Name | None = None
    supersedes: _Name | None = None
    simulated: StrictBool = False
    inclusion_probability: float | None = None

    @field_validator("created_at")
    @classmethod
    def _plausible(cls, value: datetime | None) -> datetime | None:
        # Times near the edges of the calendar overflow when they are converted to UTC or to parquet.
        if value is not None and value.year not in _YEARS:
            raise ValueError(f"must lie in the years {_YEARS.start} to {_YEARS.stop - 1}")
        return None if value is None else value.astimezone(UTC)

    @model_validator(mode="after")
    def _one_answer(self) -> Answer:
        by_winner = "winner" in self.model_fields_set
        if by_winner == (self.choice is not None):
            raise ValueError("give either choice (left, right, tie, skip) or winner (a, b, tie, null)")
        if by_winner and self.shown_left is None:
            raise ValueError("winner needs shown_left (a or b), the rollout that stood on the left")
        return self


@dataclass(frozen=True)
class Batch:
    """What is asked: the drawn pairs with their inclusion probabilities, and which rollout stands left in each item.

    `gold`: the hidden gold items among them. Nobody drew them, so their verdicts have no inclusion probability (NaN).
    """

    chances: Mapping[str, float]
    left: Callable[[str], str]
    gold: Collection[str] = ()

    def __contains__(self, pair_id: str) -> bool:
        return pair_id in self.chances or pair_id in self.gold


def read_answer(value: Any, source: str) -> Answer:
    """Raises UsageError, naming `source` and every wrong key, for anything that is no answer."""
    if not isinstance(value, dict):
        raise UsageError(f'{source}: is a {type(value).__name__}, not an object with keys: write {{"pair_id": ...}}.')
    return parse(Answer, {storable(str(key)): storable(item) for key, item in value.items()}, source)


def to_verdict(answer: Answer, batch: Batch, received_at: datetime, repetition: int = 0) -> Verdict:
    """The verdict of an answer on a pair of the batch.

    `received_at` is the time of an answer that has none. Without an id of its own the verdict gets one from what it
    says and from `repetition`, which tells apart the same words said again after a change of mind.
    """
    left = answer.shown_left or batch.left(answer.pair_id)
    winner = answer.winner if answer.choice is None else _rollout(answer.choice, left)
    flaws = None if answer.flaws is None else tuple(answer.flaws)
    said = (answer.pair_id, answer.auditor, winner or "skip", left, answer.comment or "", *(flaws or ()))
    when = answer.created_at.isoformat() if answer.created_at else str(repetition)
    return Verdict(
        verdict_id=answer.verdict_id or short_id("verdict", when, *said),
        pair_id=answer.pair_id,
        auditor=answer.auditor,
        winner=winner,
        shown_left=left,
        seconds=math.nan if answer.seconds is None else float(answer.seconds),
        created_at=answer.created_at or received_at,
        inclusion_probability=batch.chances.get(answer.pair_id, math.nan),
        simulated=answer.simulated or answer.auditor.startswith(SIMULATED_PREFIX),
        flaws=flaws,
        comment=answer.comment,
        supersedes=answer.supersedes,
    )


def storable(value: Any) -> Any:
    """The value with lone surrogates, which no UTF-8 file can hold, spelt out as visible escapes such as \\ud800."""
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode("utf-8")
    if isinstance(value, list):
        return [storable(item) for item in value]
    return value


def _rollout(choice: str, left: str) -> str | None:
    right = "b" if left == "a" else "a"
    return {"left": left, "right": right, "tie": "tie", "skip": None}[choice]

"""What the API takes and gives, as OpenAPI describes it."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StrictFloat, StrictInt

from audit.queue.model import (
    CONFIDENCE,
    MAX_COMMENT,
    MAX_KEY,
    MAX_OVERLAP,
    MAX_PRIORITY,
    MAX_SECONDS,
    Answer,
    BatchProgress,
    Claim,
    Receipt,
)
from audit.web.problems import Problem

FlawName = Literal[
    "wrong",
    "incomplete",
    "off_topic",
    "ignores_instructions",
    "unsafe",
    "badly_written",
    "too_long",
    "gibberish",
]


def _whole(value: Any) -> Any:
    """1.0 is an integer to JSON Schema, and to programs whose numbers are all floating."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


Whole = BeforeValidator(_whole)
ItemId = Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9_-]+$", examples=["f3b1c9d2a8e74c50"])]
FencingToken = Annotated[
    StrictInt,
    Field(ge=0, le=2**53, description="The claim's token. A later claim of the same item has a higher one."),
    Whole,
]
Key = Annotated[
    str,
    Field(
        min_length=1,
        max_length=MAX_KEY,
        pattern=r"^[\x21-\x7e]+$",
        description="Idempotency key: the same call with the same key, however often, is one row.",
    ),
]


class _In(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Held(_In):
    token: FencingToken


class AnswerIn(Held):
    """An answer to a claimed item, in terms of the sides that the claim showed."""

    key: Key
    choice: Literal["left", "right", "tie"]
    confidence: Annotated[StrictInt, Field(ge=CONFIDENCE.start, le=CONFIDENCE.stop - 1), Whole] | None = None
    flaws_left: Annotated[list[FlawName], Field(max_length=20)] = []
    flaws_right: Annotated[list[FlawName], Field(max_length=20)] = []
    # The queue checks the length: with a constraint here, lone surrogates would be refused.
    comment: Annotated[str, Field(json_schema_extra={"maxLength": MAX_COMMENT})] = ""
    seconds: Annotated[StrictFloat, Field(ge=0, le=MAX_SECONDS)] | None = None

    def to_answer(self) -> Answer:
        return Answer(
            self.choice,
            self.confidence,
            tuple(self.flaws_left),
            tuple(self.flaws_right),
            self.comment,
            self.seconds,
        )


class SkipIn(Held):
    key: Key
    reason: Annotated[str, Field(min_length=1, max_length=200)]


class UndoIn(_In):
    key: Key
    item_id: ItemId | None = None


class ItemIn(_In):
    """One pair. `gold_winner` makes it a hidden gold item, with `kind` gold, or a canary."""

    pair_id: Annotated[str, Field(min_length=1, max_length=200)]
    prompt: str
    response_a: str
    response_b: str
    kind: Literal["pair", "gold", "canary"] = "pair"
    gold_winner: Literal["a", "b", "tie"] | None = None
    priority: Annotated[StrictInt, Field(ge=0, le=MAX_PRIORITY), Whole] = 0
    overlap: Annotated[StrictInt, Field(ge=1, le=MAX_OVERLAP), Whole] | None = None
    inclusion_probability: Annotated[StrictFloat, Field(gt=0, le=1)] | None = None
    group: Annotated[str, Field(max_length=200)] = ""
    stratum: Annotated[str, Field(max_length=200)] = ""
    reason: Annotated[str, Field(max_length=1000)] = ""


class GuidelinesIn(_In):
    version: Annotated[str, Field(max_length=100)] = ""
    text: Annotated[str, Field(max_length=200_000)] = ""
    constitution_version: Annotated[str, Field(max_length=100)] = ""
    constitution: Annotated[str, Field(max_length=200_000)] = ""


class BatchIn(_In):
    """The same name with the same items again changes nothing; with other items it is refused."""

    name: Annotated[str, Field(min_length=1, max_length=200)]
    items: Annotated[list[ItemIn], Field(min_length=1)]
    overlap: Annotated[StrictInt, Field(ge=1, le=MAX_OVERLAP), Whole] = 1
    quota: Annotated[StrictFloat, Field(gt=0, le=1)] = 1.0
    guidelines: GuidelinesIn = GuidelinesIn()


class ClaimOut(BaseModel):
    """An item lent until `expires_at`. The texts stand on sides drawn for this person; which is which is not said."""

    item_id: str
    batch_id: str
    prompt: str
    left: str
    right: str
    guidelines_version: str
    constitution_version: str
    token: int
    expires_at: datetime
    previous: dict[str, Any] | None = Field(description="After an undo: what the answer was.")


class ClaimsOut(BaseModel):
    items: list[ClaimOut]


class ExpiryOut(BaseModel):
    expires_at: datetime


class ReceiptOut(BaseModel):
    verdict_id: str
    item_id: str
    created_at: datetime
    repeated: bool = Field(description="The key came before: nothing was stored a second time.")


class MadeOut(BaseModel):
    batch_id: str


class BatchOut(BaseModel):
    batch_id: str
    name: str
    created_at: datetime
    closed_at: datetime | None
    items: int
    complete: int
    pairs: int
    pairs_complete: int
    places: int
    open: int
    held: int
    answered: int
    closed: int
    skips: int
    quota: float
    quota_reached_at: datetime | None


class BatchesOut(BaseModel):
    batches: list[BatchOut]


class ProgressOut(BaseModel):
    answered: int
    answered_today: int
    skipped: int
    held: int
    queue_open: int


class WebhookOut(BaseModel):
    """Set where the server is started. `signed`: the key's environment variable is set."""

    url: str | None
    signed: bool
    key_env: str


def claim_out(claim: Claim) -> dict[str, Any]:
    item, said = claim.item, claim.previous
    previous = None
    if said is not None:
        previous = {
            "choice": said.choice,
            "confidence": said.confidence,
            "flaws_left": list(said.flaws_left),
            "flaws_right": list(said.flaws_right),
            "comment": said.comment,
            "seconds": said.seconds,
        }
    return {
        "item_id": item.item_id,
        "batch_id": item.batch_id,
        "prompt": item.prompt,
        "left": item.left,
        "right": item.right,
        "guidelines_version": item.guidelines_version,
        "constitution_version": item.constitution_version,
        "token": claim.token,
        "expires_at": claim.expires_at.isoformat(),
        "previous": previous,
    }


def receipt_out(receipt: Receipt) -> dict[str, Any]:
    return {
        "verdict_id": receipt.verdict_id,
        "item_id": receipt.item_id,
        "created_at": receipt.created_at.isoformat(),
        "repeated": receipt.repeated,
    }


def batch_out(batch: BatchProgress) -> dict[str, Any]:
    values = {name: getattr(batch, name) for name in BatchOut.model_fields}
    return {name: value.isoformat() if isinstance(value, datetime) else value for name, value in values.items()}


def refusals(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The documented refusals of a route, beside those that every call can meet."""
    words = {
        400: "The request cannot be read.",
        401: "No token, or one that is unknown, expired or revoked.",
        403: "The token lacks the scope, or its owner's role does not permit the call.",
        404: "No such thing for this token's owner; a foreign one gives the same answer.",
        409: "The hold ended, or the item is decided: nothing was changed.",
        410: "The batch is closed.",
        413: "The body is over the limit.",
        415: "The body is of another type.",
        422: "The call cannot be right.",
        503: "The database is busy or full; nothing was changed, trying again is safe.",
    }
    return {
        status: {"model": Problem, "description": words[status]} for status in (400, 401, 403, 413, 422, 503, *statuses)
    }

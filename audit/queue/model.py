"""What goes into the queue and what comes out of it: plain values, checked on the way in.

Texts are kept unchanged, NUL and lone surrogates included; it is the page's part to show them inert.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from audit.queue.errors import BadInput

Clock = Callable[[], datetime]
"""Gives the time, with its zone. Leases and sessions are measured with it alone."""

UserId = int

FLAWS = (
    "wrong",
    "incomplete",
    "off_topic",
    "ignores_instructions",
    "unsafe",
    "badly_written",
    "too_long",
    "gibberish",
)
"""The flaws that a person can tick for each side."""

CONFIDENCE = range(1, 6)
MAX_COMMENT = 20_000
MAX_KEY = 200
MAX_SECONDS = 1e6
MAX_PRIORITY = 99
MAX_OVERLAP = 100


class Role(StrEnum):
    """Each may do what those before it may."""

    AUDITOR = "auditor"
    LEAD = "lead"
    ADMIN = "admin"

    def at_least(self, other: Role) -> bool:
        order = list(Role)
        return order.index(self) >= order.index(other)


class Kind(StrEnum):
    """What an item is for. People never see it: a gold item or a canary looks like any other."""

    PAIR = "pair"
    GOLD = "gold"
    CANARY = "canary"


class VerdictKind(StrEnum):
    """`withdrawn` is the row that an undo appends: it supersedes the answer and says nothing itself."""

    ANSWER = "answer"
    SKIP = "skip"
    WITHDRAWN = "withdrawn"
    ADJUDICATION = "adjudication"


@dataclass(frozen=True)
class NewItem:
    """One pair to put before people.

    `gold_winner`: a, b or tie for kind gold and, if known, canary. `priority`: 0..99, higher comes first. `overlap`:
    how many different people; None takes the batch's. `inclusion_probability`: 0..1 from the selection, None where
    nobody drew the pair. `stratum`, `reason`, `group`: for ML ops, never shown to people.
    """

    pair_id: str
    prompt: str
    response_a: str
    response_b: str
    kind: Kind = Kind.PAIR
    gold_winner: str | None = None
    priority: int = 0
    overlap: int | None = None
    inclusion_probability: float | None = None
    group: str = ""
    stratum: str = ""
    reason: str = ""


@dataclass(frozen=True)
class Guidelines:
    """What a batch's people are told: texts with the versions that its verdicts were given under."""

    version: str = ""
    text: str = ""
    constitution_version: str = ""
    constitution: str = ""


@dataclass(frozen=True)
class Answer:
    """What a person says about an item. `choice`: left, right or tie. `confidence`: 1..5 or None. `seconds`: measured
    by the page, None where it could not. Raises BadInput for anything else."""

    choice: str
    confidence: int | None = None
    flaws_left: tuple[str, ...] = ()
    flaws_right: tuple[str, ...] = ()
    comment: str = ""
    seconds: float | None = None

    def __post_init__(self) -> None:
        if self.choice not in ("left", "right", "tie"):
            raise BadInput(f"The choice {self.choice!r} is none of left, right and tie: choose one of them.")
        if self.confidence is not None and self.confidence not in CONFIDENCE:
            raise BadInput(f"The confidence {self.confidence!r} is not in 1 to 5: choose one of them or leave it out.")
        for flaw in (*self.flaws_left, *self.flaws_right):
            if flaw not in FLAWS:
                raise BadInput(f"The flaw {flaw!r} is unknown: known are {', '.join(FLAWS)}.")
        check_comment(self.comment)
        check_seconds(self.seconds)


@dataclass(frozen=True)
class ItemView:
    """All that a person may see of an item: texts already on the sides that were drawn for this person."""

    item_id: str
    batch_id: str
    prompt: str
    left: str
    right: str
    guidelines_version: str
    constitution_version: str


@dataclass(frozen=True)
class Claim:
    """An item lent to one person until `expires_at`. `token`: the fencing token, sent back with the answer.

    `previous`: after an undo, what the person had answered.
    """

    item: ItemView
    token: int
    expires_at: datetime
    previous: Answer | None = None


@dataclass(frozen=True)
class Receipt:
    """The answer is stored, durably. `repeated`: it was before, under the same key; it is stored once."""

    verdict_id: str
    item_id: str
    created_at: datetime
    repeated: bool = False


@dataclass(frozen=True)
class Progress:
    """Of one person. `answered`, `skipped`: verdicts in force; `answered_today` since midnight UTC. `held`: items that
    are claimed now. `queue_open`: places still open in the whole queue, for anybody; up to 5 seconds old."""

    answered: int
    answered_today: int
    skipped: int
    held: int
    queue_open: int


@dataclass(frozen=True)
class BatchProgress:
    """Of one batch. A place is one of an item's `overlap` answers.

    `items`, `complete`: all items, and those with all their answers; `pairs`, `pairs_complete`: the same without gold
    items. `places` = `open` + `held` + `answered` + `closed`. `skips`: how often a person passed an item on.
    `quota`: share of the pairs that was asked for; `quota_reached_at`: when `Queue.quotas_reached` found it reached.
    """

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


@dataclass(frozen=True)
class Opinion:
    """One verdict in force on an item, as a lead sees it: `choice` in terms of the lead's own left and right."""

    verdict_id: str
    auditor: str
    choice: str
    confidence: int | None
    flaws_left: tuple[str, ...]
    flaws_right: tuple[str, ...]
    comment: str
    seconds: float | None
    created_at: datetime
    simulated: bool
    quarantined: bool


@dataclass(frozen=True)
class Case:
    """A disagreement before a lead. `decision`: the adjudication in force, if there is one."""

    item: ItemView
    opinions: tuple[Opinion, ...]
    decision: Opinion | None


def check_comment(comment: str) -> None:
    if len(comment) > MAX_COMMENT:
        raise BadInput(f"The comment has {len(comment):,} characters, at most {MAX_COMMENT:,} are kept: shorten it.")


def check_seconds(seconds: float | None) -> None:
    if seconds is not None and not (math.isfinite(seconds) and 0 <= seconds <= MAX_SECONDS):
        raise BadInput(f"The time {seconds!r} is not in 0 to {MAX_SECONDS:g} seconds: correct it or leave it out.")


def check_key(key: str) -> None:
    if not (0 < len(key) <= MAX_KEY and key.isascii() and key.isprintable()):
        raise BadInput(f"The idempotency key {key!r} is not 1 to {MAX_KEY} printable ASCII characters: make a new one.")

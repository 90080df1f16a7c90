"""What a mode is: how a judge is asked, and how its reply becomes a finding. One mode a file; see `judges.modes`.

A finding is a status (law: attempted = scored + tie + abstain + parse_failure + error) with, for status scored and tie
only, what was found. Nothing is imputed: a reply that cannot be read is a parse failure, one that declines is an
abstention, and neither carries a number.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Protocol

from judges.backends.base import Reply, Want
from store.schemas import Status


class Kind(StrEnum):
    """What one call shows: two responses, one, or all of a prompt's."""

    PAIR = "pair"
    SINGLE = "single"
    LIST = "list"


@dataclass(frozen=True)
class Finding:
    """What a reply says, in terms of the slots shown.

    `p_first` (kind PAIR): probability in 0..1 that the first response is better. `score` (kind SINGLE): quality in
    0..1, with `thumb`, `overall` and `flaws` as far as the mode has them; see `judges.ratings`. `ranks` (kind LIST):
    the rank of each slot, 1 the best, equal ranks for a tie. `mass`: probability of all valid answers together, in
    0..1; None where the mode has none. `rationale`: what the judge said before it decided.
    """

    status: Status
    p_first: float | None = None
    score: float | None = None
    thumb: str | None = None
    overall: float | None = None
    flaws: Mapping[str, str] | None = None
    ranks: tuple[int, ...] | None = None
    mass: float | None = None
    rationale: str | None = None


class Mode(Protocol):
    """`variables`: what a prompt template must show."""

    @property
    def kind(self) -> Kind: ...

    @property
    def variables(self) -> tuple[str, ...]: ...

    def check(self, settings: Any) -> None:
        """Raise ValueError, in words that follow 'judge.yaml: ', for settings that do not fit the mode."""

    def want(self, settings: Any, slots: int) -> Want:
        """What is wanted of a call that shows `slots` responses."""

    def read(self, reply: Reply, settings: Any) -> Finding:
        """The finding in a reply that has no `error` and no `refusal`: those are dealt with before; see `find`."""


def find(mode: Mode, reply: Reply, settings: Any) -> Finding:
    """The finding of any reply: an error stays an error, a declared refusal is an abstention."""
    if reply.error is not None:
        return Finding(Status.ERROR)
    if reply.refusal is not None:
        return Finding(Status.ABSTAIN, rationale=reply.refusal)
    return mode.read(reply, settings)

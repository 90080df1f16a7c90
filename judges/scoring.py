"""Scores of single responses by a program judge: expected reward in evaluation, oracle of simulated auditors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from judges.judge import Judge
from store.errors import UsageError

if TYPE_CHECKING:
    from judges.backends.rubric import Score


@dataclass(frozen=True)
class Item:
    """A response to score; `reference` and `group` are the prompt's."""

    prompt: str
    response: str
    reference: str | None = None
    group: str = ""


def score_responses(judge: Judge, items: Sequence[Item]) -> list[Score]:
    """One score in 0..1, with its deductions, for each item, in their order.

    Raises UsageError for a judge that is no program: a language model only compares.
    """
    if judge.rubric is None:
        raise UsageError(
            f"Judge {judge.name} has the backend {judge.settings.backend} and cannot score single responses: name a "
            f"judge with the backend rubric."
        )
    from judges.backends.rubric import Rubric

    rubric = Rubric.load(judge.rubric)
    return [rubric.score(item.prompt, item.response, item.reference, item.group) for item in items]

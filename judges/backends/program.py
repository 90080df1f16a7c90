"""The backend of judges that are programs: a rubric scores each response."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterable, Sequence
from functools import lru_cache
from typing import ClassVar

from judges.backends.base import Call, Reply, Scores, Want
from judges.backends.rubric import Rubric, Score
from judges.judge import Judge

_REMEMBERED = 4096  # scores kept: both orders of a pair, and its neighbours of the same prompt, need the same ones


class ProgramBackend:
    """Replies with scores in 0..1 and what was taken off each, and why."""

    wants: ClassVar[tuple[type[Want], ...]] = (Scores,)
    specials: Sequence[str] = ()

    def __init__(self, judge: Judge) -> None:
        if judge.rubric is None:
            raise TypeError(f"Judge {judge.name} has no rubric.")
        self._score = lru_cache(_REMEMBERED)(Rubric.load(judge.rubric).score)

    def answer(self, calls: Iterable[Call]) -> Generator[Reply, None, None]:
        for call in calls:
            if call.answered:
                continue
            start = time.monotonic()
            about = call.subject
            scores = [self._score(about.prompt, response, about.reference, about.group) for response in about.responses]
            yield Reply(
                call,
                scores=tuple(score.value for score in scores),
                reasons="; ".join(
                    f"{name}: {_explain(score)}" for name, score in zip(_names(scores), scores, strict=True)
                ),
                latency_s=time.monotonic() - start,
            )

    def close(self) -> None:
        self._score.cache_clear()


def _names(scores: list[Score]) -> list[str]:
    return ["first", "second"] if len(scores) == 2 else [str(number + 1) for number in range(len(scores))]


def _explain(score: Score) -> str:
    taken = ", ".join(f"{rule} -{amount:.2g} ({trigger})" for rule, amount, trigger in score.deductions)
    return f"{score.value:.3g}" + (f", {taken}" if taken else "")

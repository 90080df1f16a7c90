"""The backend of judges that are programs: a rubric scores each response, their difference is the preference."""

from __future__ import annotations

import math
import time
from collections.abc import Generator, Iterable
from functools import lru_cache

from judges.backends.base import Answer, Request
from judges.backends.rubric import Rubric, Score
from judges.judge import Judge
from judges.settings import RubricSettings
from store.tables import Status

_REMEMBERED = 4096  # scores kept: both orders of a pair, and its neighbours of the same prompt, need the same ones


class ProgramBackend:
    """p_first = 1 / (1 + exp(-(score(first) - score(second)) / scale)); equal scores are a tie."""

    def __init__(self, judge: Judge) -> None:
        if judge.rubric is None:
            raise TypeError(f"Judge {judge.name} has no rubric.")
        self._scale = judge.settings_as(RubricSettings).scale
        self._score = lru_cache(_REMEMBERED)(Rubric.load(judge.rubric).score)

    def answer(self, requests: Iterable[Request]) -> Generator[Answer, None, None]:
        for request in requests:
            start = time.monotonic()
            pair = request.pair
            first = self._score(pair.prompt, request.first, pair.reference, pair.group)
            second = self._score(pair.prompt, request.second, pair.reference, pair.group)
            # Sums of the same deductions in another order differ in the last bits: that is no preference.
            difference = round(first.value - second.value, 9)
            yield Answer(
                request,
                Status.TIE if difference == 0 else Status.SCORED,
                p_first=_logistic(difference / self._scale),
                rationale=f"first: {_explain(first)}; second: {_explain(second)}",
                latency_s=time.monotonic() - start,
            )

    def close(self) -> None:
        self._score.cache_clear()


def _explain(score: Score) -> str:
    taken = ", ".join(f"{rule} -{amount:.2g} ({trigger})" for rule, amount, trigger in score.deductions)
    return f"{score.value:.3g}" + (f", {taken}" if taken else "")


def _logistic(x: float) -> float:
    # Two branches, so that exp never overflows.
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))

"""The mode of judges that are programs: every response has a score, and the difference of two is the preference."""

from __future__ import annotations

import math

from judges.backends.base import Reply, Scores
from judges.modes.base import Finding, Kind
from judges.settings import RubricSettings
from store.schemas import Status


class Program:
    """p_first = 1 / (1 + exp(-(score(first) - score(second)) / scale)); equal scores are a tie."""

    kind = Kind.PAIR
    variables = ()

    def check(self, settings: RubricSettings) -> None:
        return None

    def want(self, settings: RubricSettings, slots: int) -> Scores:
        return Scores()

    def read(self, reply: Reply, settings: RubricSettings) -> Finding:
        if reply.scores is None or len(reply.scores) != 2:
            raise TypeError("a reply to Scores of a pair has two scores")
        first, second = reply.scores
        # Sums of the same deductions in another order differ in the last bits: that is no preference.
        difference = round(first - second, 9)
        status = Status.TIE if difference == 0 else Status.SCORED
        return Finding(status, p_first=logistic(difference / settings.scale), rationale=reply.reasons)


def logistic(x: float) -> float:
    """1 / (1 + exp(-x)), in two branches, so that exp never overflows."""
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))

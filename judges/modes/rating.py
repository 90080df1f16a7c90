"""An overall rating of one response from 1 to 10, as the expected value over the probabilities of the rating labels."""

from __future__ import annotations

import math

from judges.backends.base import Choice, Reply
from judges.modes.base import Finding, Kind
from judges.modes.labels import different, readable_as_tokens
from judges.modes.logprobs import shares
from judges.settings import LanguageModelSettings
from store.schemas import Status

LOWEST, HIGHEST = 1.0, 10.0


class Rating:
    """overall = sum_i v_i P(label_i) / sum_j P(label_j), the values v spread evenly over 1..10 in the labels' order.

    The expected value uses what the likeliest label alone throws away (G-Eval, Liu et al. 2023, section 2).
    score = (overall - 1) / 9.
    """

    kind = Kind.SINGLE
    variables = ("prompt", "response")

    def check(self, settings: LanguageModelSettings) -> None:
        if len(settings.options) < 2:
            raise ValueError(
                f"answers = {list(settings.options)}: give two ratings at least, from the worst to the best"
            )
        different(settings.options, "ratings from the worst to the best")
        readable_as_tokens(settings)

    def want(self, settings: LanguageModelSettings, slots: int) -> Choice:
        return Choice(settings.options)

    def read(self, reply: Reply, settings: LanguageModelSettings) -> Finding:
        if reply.logprobs is None:
            raise TypeError("a reply to a Choice has log-probs")
        found, mass = shares(reply.logprobs)
        if not found or mass < settings.min_mass:
            return Finding(Status.ABSTAIN, mass=mass)
        score = math.fsum(share * step for step, share in enumerate(found)) / (len(found) - 1)
        score = min(1.0, max(0.0, score))
        return Finding(Status.SCORED, score=score, overall=LOWEST + (HIGHEST - LOWEST) * score, mass=mass)

"""Thumb up or down for one response, from the log-probs of the two answer tokens."""

from __future__ import annotations

from judges.backends.base import Choice, Reply
from judges.modes.base import Finding, Kind
from judges.modes.labels import different, readable_as_tokens
from judges.modes.logprobs import preference
from judges.settings import LanguageModelSettings
from store.schemas import Status


class Thumbs:
    """score = P(up) / (P(up) + P(down)); up above 1/2, down below, and exactly 1/2 is a tie without a thumb."""

    kind = Kind.SINGLE
    variables = ("prompt", "response")

    def check(self, settings: LanguageModelSettings) -> None:
        if len(settings.options) != 2:
            raise ValueError(f"answers = {list(settings.options)}: give two, for up and for down")
        different(settings.options, "two answers, for up and for down")
        readable_as_tokens(settings)

    def want(self, settings: LanguageModelSettings, slots: int) -> Choice:
        return Choice(settings.options)

    def read(self, reply: Reply, settings: LanguageModelSettings) -> Finding:
        if reply.logprobs is None:
            raise TypeError("a reply to a Choice has log-probs")
        up, down = reply.logprobs
        status, p_up, mass = preference(up, down, settings.min_mass)
        if p_up is None or status == Status.TIE:
            return Finding(status, score=p_up, mass=mass)
        return Finding(status, score=p_up, thumb="up" if p_up > 0.5 else "down", mass=mass)

"""Soft preference between two responses, from the log-probs of the two answer tokens."""

from __future__ import annotations

from judges.backends.base import Choice, Reply
from judges.modes.base import Finding, Kind
from judges.modes.logprobs import preference
from judges.settings import LanguageModelSettings


class PairwiseLogprobs:
    """p_first = P(first) / (P(first) + P(second)), as in RLAIF (Lee et al. 2023, section 2.1)."""

    kind = Kind.PAIR
    variables = ("prompt", "first", "second")

    def check(self, settings: LanguageModelSettings) -> None:
        two_answers(settings.options)

    def want(self, settings: LanguageModelSettings, slots: int) -> Choice:
        return Choice(settings.options)

    def read(self, reply: Reply, settings: LanguageModelSettings) -> Finding:
        if reply.logprobs is None:
            raise TypeError("a reply to a Choice has log-probs")
        first, second = reply.logprobs
        status, p_first, mass = preference(first, second, settings.min_mass)
        return Finding(status, p_first=p_first, mass=mass)


def two_answers(options: tuple[str, ...]) -> None:
    folded = [option.strip().casefold() for option in options]
    if len(folded) != 2 or not all(folded) or folded[0] == folded[1] or "tie" in folded:
        raise ValueError(
            f"answers = {list(options)}: give two different answers, neither empty nor 'tie', such as ['1', '2']"
        )

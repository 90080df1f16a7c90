"""A verdict between two responses after reasoning: one of the two answers, or a tie. Hard: p_first is 1, 0 or 1/2."""

from __future__ import annotations

from judges.backends.base import Reply, Text
from judges.modes.base import Finding, Kind
from judges.modes.pairwise_logprobs import two_answers
from judges.parsing import parse_verdict
from judges.settings import LanguageModelSettings
from store.schemas import Status

_P_FIRST = {"first": 1.0, "second": 0.0, "tie": 0.5}


class PairwiseVerdict:
    """Read strictly (`judges.parsing`); kept to a JSON schema by servers that can."""

    kind = Kind.PAIR
    variables = ("prompt", "first", "second")

    def check(self, settings: LanguageModelSettings) -> None:
        two_answers(settings.options)

    def want(self, settings: LanguageModelSettings, slots: int) -> Text:
        one, two = settings.options
        schema = {
            "type": "object",
            "properties": {"reasoning": {"type": "string"}, "verdict": {"type": "string", "enum": [one, two, "tie"]}},
            "required": ["reasoning", "verdict"],
            "additionalProperties": False,
        }
        return Text(settings.max_new_tokens, lambda text: parse_verdict(text, (one, two)) is not None, schema)

    def read(self, reply: Reply, settings: LanguageModelSettings) -> Finding:
        one, two = settings.options
        verdict = parse_verdict(reply.text or "", (one, two))
        if verdict is None:
            return Finding(Status.PARSE_FAILURE)
        status = Status.TIE if verdict.choice == "tie" else Status.SCORED
        return Finding(status, p_first=_P_FIRST[verdict.choice], rationale=verdict.rationale)

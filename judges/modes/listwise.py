"""A ranking of several responses to one prompt in one call. Read strictly, as verdicts are (`judges.parsing`).

Two forms count: a line of its own, `RANKING: 3 > 1 = 2`, and a JSON object with the key "ranking", the slots from the
best to the worst, ties as lists within the list. Every slot is named exactly once, or it is no ranking. The last
statement decides, and if that is none, all is a parse failure.
"""

from __future__ import annotations

import re
from typing import Any

from judges.backends.base import Reply, Text
from judges.modes.base import Finding, Kind
from judges.parsing import json_objects
from judges.settings import LanguageModelSettings
from store.schemas import Status

_LINE = re.compile(r"^[ \t>*_#`]*ranking[ \t*_`]*:(?P<answer>[^\n]*)$", re.IGNORECASE | re.MULTILINE)
_DECORATION = " \t\r*_`.\"'"


class Listwise:
    """Slots are numbered from 1, in the order in which they are shown."""

    kind = Kind.LIST
    variables = ("prompt", "responses")

    def check(self, settings: LanguageModelSettings) -> None:
        if settings.options:
            raise ValueError(f"answers = {list(settings.options)}: responses are numbered from 1; leave the key out")

    def want(self, settings: LanguageModelSettings, slots: int) -> Text:
        group = {"type": "array", "items": {"type": "integer", "enum": list(range(1, slots + 1))}}
        schema = {
            "type": "object",
            "properties": {"reasoning": {"type": "string"}, "ranking": {"type": "array", "items": group}},
            "required": ["reasoning", "ranking"],
            "additionalProperties": False,
        }
        return Text(settings.max_new_tokens, lambda text: parse_ranking(text, slots) is not None, schema)

    def read(self, reply: Reply, settings: LanguageModelSettings) -> Finding:
        found = parse_ranking(reply.text or "", len(reply.call.subject.responses))
        if found is None:
            return Finding(Status.PARSE_FAILURE)
        ranks, rationale = found
        return Finding(Status.TIE if max(ranks) == 1 else Status.SCORED, ranks=ranks, rationale=rationale)


def parse_ranking(text: str, slots: int) -> tuple[tuple[int, ...], str] | None:
    """The rank of each slot, 1 the best and equal for a tie, and the rationale; None for a parse failure."""
    statements: list[tuple[int, int, Any, str | None]] = [
        (found.start(), found.end(), found.group("answer"), None) for found in _LINE.finditer(text)
    ]
    for start, end, value in json_objects(text):
        if "ranking" in value and '"ranking"' in text[start:end]:
            reasoning = value.get("reasoning")
            statements.append((start, end, value["ranking"], reasoning if isinstance(reasoning, str) else None))
    if not statements:
        return None
    start, _, answer, reasoning = max(statements, key=lambda statement: statement[1])
    groups = _written(answer) if isinstance(answer, str) else _listed(answer)
    if groups is None or sorted(slot for group in groups for slot in group) != list(range(1, slots + 1)):
        return None
    rank_of = {slot: rank for rank, group in enumerate(groups, start=1) for slot in group}
    rationale = text[:start] if reasoning is None else reasoning
    return tuple(rank_of[slot] for slot in range(1, slots + 1)), rationale.strip()


def _written(answer: str) -> list[list[int]] | None:
    groups = [[_number(part.strip()) for part in group.split("=")] for group in answer.strip(_DECORATION).split(">")]
    return _complete(groups)


def _listed(answer: Any) -> list[list[int]] | None:
    if not isinstance(answer, list):
        return None
    return _complete([[_number(part) for part in (group if isinstance(group, list) else [group])] for group in answer])


def _complete(groups: list[list[int | None]]) -> list[list[int]] | None:
    found = [[slot for slot in group if slot is not None] for group in groups]
    # An empty group would leave a rank that nobody has.
    return found if all(found) and found == groups else None


def _number(value: Any) -> int | None:
    if isinstance(value, bool):
        return None
    if isinstance(value, int):
        return value
    # As many digits as a list could ever need: int() refuses thousands of them with an error of its own.
    return int(value) if isinstance(value, str) and re.fullmatch(r"[1-9][0-9]{0,5}", value) else None

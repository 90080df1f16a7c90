"""Questions about flaws of one response, each answered yes, no or unsure. See `judges.quality` for what they add up to.

Read strictly. A statement is one JSON object with an answer to every question, or lines `name: yes`, one for every
question, whatever stands between them; a question answered for the second time begins a new statement. The last
statement decides. If it leaves a question out, or has an answer that is not on the menu, all is a parse failure: the
judge took back or garbled what it had said before.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from judges.backends.base import Reply, Text
from judges.modes.base import Finding, Kind
from judges.modes.labels import different
from judges.parsing import json_objects
from judges.settings import LanguageModelSettings
from store.schemas import Status

ANSWERS = ("yes", "no", "unsure")
_REASONING = "reasoning"
_BEFORE = re.compile(r"^[ \t>*#`-]*(?:\d+[.)][ \t]*)?")
_DECORATION = " \t\r*_`.\"'"


class Flaws:
    """Every question asked about the response in one call. Nothing but unsure answers is an abstention.

    The answers are found; the score is not: it follows from them and from weights that may change afterwards.
    """

    kind = Kind.SINGLE
    variables = ("prompt", "response", "questions")

    def check(self, settings: LanguageModelSettings) -> None:
        names = [question.name for question in settings.questions]
        if not names:
            raise ValueError("questions: name at least one flaw to ask about")
        if double := next((name for name in names if names.count(name) > 1), None):
            raise ValueError(f"questions: {double!r} is asked twice: give each question a name of its own")
        if _REASONING in names:
            raise ValueError(f"questions: the name {_REASONING!r} is the judge's own: choose another")
        if not any(question.weight for question in settings.questions):
            raise ValueError("questions: all weights are 0: give at least one question a weight")
        if len(settings.options) != len(ANSWERS):
            raise ValueError(f"answers = {list(settings.options)}: give three, for yes, no and unsure")
        different(settings.options, "three answers, for yes, no and unsure")

    def want(self, settings: LanguageModelSettings, slots: int) -> Text:
        names = [question.name for question in settings.questions]
        answer = {"type": "string", "enum": list(settings.options)}
        schema = {
            "type": "object",
            "properties": {_REASONING: {"type": "string"}} | dict.fromkeys(names, answer),
            "required": [_REASONING, *names],
            "additionalProperties": False,
        }
        menu = settings.options
        return Text(settings.max_new_tokens, lambda text: parse_flaws(text, names, menu) is not None, schema)

    def read(self, reply: Reply, settings: LanguageModelSettings) -> Finding:
        found = parse_flaws(reply.text or "", [question.name for question in settings.questions], settings.options)
        if found is None:
            return Finding(Status.PARSE_FAILURE)
        flaws, rationale = found
        silent = all(answer == "unsure" for answer in flaws.values())
        return Finding(Status.ABSTAIN if silent else Status.SCORED, flaws=flaws, rationale=rationale)


@dataclass
class _Statement:
    start: int
    end: int
    answers: dict[str, Any]
    reasoning: str | None = None
    complete: bool = True


def parse_flaws(text: str, names: list[str], menu: tuple[str, ...] = ANSWERS) -> tuple[dict[str, str], str] | None:
    """Question -> yes, no or unsure, in the order of `names`, and the rationale; None for a parse failure.

    `menu`: the judge's words for yes, no and unsure.
    """
    statements = [*_lines(text, set(names)), *_objects(text, set(names))]
    if not statements:
        return None
    last = max(statements, key=lambda statement: statement.end)
    meaning = dict(zip((word.strip().casefold() for word in menu), ANSWERS, strict=True))
    flaws = {}
    for name in names:
        answer = last.answers.get(name)
        word = meaning.get(answer.strip().casefold()) if isinstance(answer, str) else None
        if word is None or not last.complete:
            return None
        flaws[name] = word
    return flaws, (text[: last.start] if last.reasoning is None else last.reasoning).strip()


def _lines(text: str, names: set[str]) -> list[_Statement]:
    statements: list[_Statement] = []
    at = 0
    for line in text.split("\n"):
        head, colon, answer = line.partition(":")
        name = _BEFORE.sub("", head).strip(" \t*`").lower()
        if colon and name in names:
            if not statements or name in statements[-1].answers:
                statements.append(_Statement(at, at, {}))
            statements[-1].answers[name] = answer.strip(_DECORATION)
            statements[-1].end = at + len(line)
        at += len(line) + 1
    return statements


def _objects(text: str, names: set[str]) -> list[_Statement]:
    statements = []
    for start, end, value in json_objects(text):
        # Letter by letter: `neutralise` breaks the names in untrusted text, but not escapes that spell them.
        if any(name in value and f'"{name}"' in text[start:end] for name in names):
            reasoning = value.get(_REASONING)
            complete = set(value) - {_REASONING} == names and all(f'"{name}"' in text[start:end] for name in names)
            own = reasoning if isinstance(reasoning, str) else None
            statements.append(_Statement(start, end, value, own, complete))
    return statements

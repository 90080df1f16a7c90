"""Reading the verdict of a judge that reasons first. Strict: what is not a verdict is a parse failure, never a guess.

Two forms count: a line of its own, `VERDICT: 1` (bold marks allowed), and a JSON object with the key "verdict". The
last statement in the text decides. If that last statement has an answer that is not on the menu, the whole text is a
parse failure: the judge took back or garbled what it had said before.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import dataclass
from typing import Any, Literal

Choice = Literal["first", "second", "tie"]

_LINE = re.compile(r"^[ \t>*_#`]*verdict[ \t*_`]*:(?P<answer>[^\n]*)$", re.IGNORECASE | re.MULTILINE)
_DECORATION = " \t\r*_`.\"'"
_MOST_OBJECTS = 200  # braces tried as the start of an object, from the end


@dataclass(frozen=True)
class Verdict:
    """`choice`: in terms of slots. `rationale`: what was said before it, or under JSON's key "reasoning"."""

    choice: Choice
    rationale: str


def parse_verdict(text: str, answers: tuple[str, str] = ("1", "2")) -> Verdict | None:
    """The last verdict in `text`, or None where there is none, or its answer is none of `answers` or "tie"."""
    menu: dict[str, Choice] = {
        answers[0].strip().casefold(): "first",
        answers[1].strip().casefold(): "second",
        "tie": "tie",
    }
    statements = [*_lines(text), *_objects(text)]
    if not statements:
        return None
    start, _, answer, rationale = max(statements, key=lambda statement: statement[1])
    choice = menu.get(answer.casefold()) if answer is not None else None
    if choice is None:
        return None
    return Verdict(choice, (text[:start] if rationale is None else rationale).strip())


_Statement = tuple[int, int, str | None, str | None]
"""Start, end, answer (None where it is no text or number), rationale of its own."""


def _lines(text: str) -> list[_Statement]:
    return [
        (found.start(), found.end(), found.group("answer").strip(_DECORATION), None) for found in _LINE.finditer(text)
    ]


def _objects(text: str) -> list[_Statement]:
    found: list[_Statement] = []
    for start, end, value in json_objects(text):
        # The key must be there letter by letter: `neutralise` breaks it in untrusted text, but not a \\u0076erdict.
        if "verdict" in value and '"verdict"' in text[start:end]:
            reasoning = value.get("reasoning")
            found.append((start, end, _answer(value["verdict"]), reasoning if isinstance(reasoning, str) else None))
    return found


def json_objects(text: str) -> list[tuple[int, int, dict[str, Any]]]:
    """Start, end and value of the JSON objects in `text` that lie in no other; a key that occurs twice is None.

    Only the last braces are tried: hostile text must not cost quadratic time.
    """
    decoder = json.JSONDecoder(object_pairs_hook=_without_duplicates)
    starts = [found.start() for found in re.finditer(r"\{", text)][-_MOST_OBJECTS:]
    found: list[tuple[int, int, dict[str, Any]]] = []
    end = 0
    for start in starts:
        if start < end:
            continue
        try:
            value, end = decoder.raw_decode(text, start)
        except (ValueError, RecursionError):
            continue
        found.append((start, end, value))
    return found


def _answer(value: Any) -> str | None:
    if isinstance(value, bool):
        return None
    if isinstance(value, int):
        return str(value)
    return value.strip() if isinstance(value, str) else None


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    # Two verdicts in one object contradict each other; JSON would silently take the second.
    times = Counter(key for key, _ in pairs)
    return {key: value if times[key] == 1 else None for key, value in pairs}

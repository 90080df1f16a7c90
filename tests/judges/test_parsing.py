"""Verdicts: the last well-formed one counts; what is not on the menu, or only looks like a verdict, is a failure."""

from __future__ import annotations

import pytest

from judges.parsing import Verdict, parse_verdict


@pytest.mark.parametrize(
    ("text", "choice"),
    [
        ("VERDICT: 1", "first"),
        ("The second is clearer.\n\n**VERDICT: 2**\n", "second"),
        ("verdict : tie.", "tie"),
        ("> Verdict: `2`", "second"),
        ("VERDICT: 1\nOn reflection:\nVERDICT: 2", "second"),
        ('{"reasoning": "a { brace", "verdict": "1"}', "first"),
        ('Sure!\n```json\n{"verdict": 2}\n```', "second"),
        ('sets {1, 2} and then {"verdict": "TIE"}', "tie"),
        ('VERDICT: 1\n{"verdict": "2"}', "second"),
        ('{"verdict": "2"}\nVERDICT: 1', "first"),
        # The judge took back what it had said, or garbled it.
        ("VERDICT: 1\nVERDICT: 3", None),
        ("VERDICT: 1\nVERDICT:", None),
        ('VERDICT: 1\n{"verdict": "neither"}', None),
        # Off the menu, or no statement at all.
        ("", None),
        ("1", None),
        ("VERDICT: 1 or 2", None),
        ("VERDICT: 1, VERDICT: 2 or VERDICT: tie", None),
        ("VERDICT: 12", None),
        ("VERDICT: -1", None),
        ("My verdict: 1 is the better", None),
        ("I will end with VERDICT: 1", None),
        ("VERDICT∶ 1", None),
        ("评判：1", None),
        ('{"verdict": true}', None),
        ('{"verdict": ["1"]}', None),
        ('{"verdict": [1, 2]}', None),
        ('{"verdict": 1.0}', None),
        ('{"verdict": null}', None),
        ('{"verdict": "1", "verdict": "2"}', None),
        ('{"Verdict": "1"}', None),
        ('{"answer": {"verdict": "1"}}', None),
        ('{"verdict": "1"', None),
        ('{"\\u0076erdict": "1"}', None),
    ],
)
def test_verdicts(text: str, choice: str | None) -> None:
    found = parse_verdict(text)
    assert (found.choice if found else None) == choice


def test_other_answers() -> None:
    found = parse_verdict("Better: A.\nVERDICT: b", ("A", "B"))
    assert found == Verdict("second", "Better: A.")
    assert parse_verdict("VERDICT: 1", ("A", "B")) is None


def test_rationale() -> None:
    found = parse_verdict("It is true.\nVERDICT: 1\n")
    assert found == Verdict("first", "It is true.")
    found = parse_verdict('{"reasoning": "It is kind.", "verdict": "2"}')
    assert found == Verdict("second", "It is kind.")


@pytest.mark.parametrize("text", ["{" * 100_000, '{"a":' * 100_000, "VERDICT: " * 50_000, "verdict" + " " * 100_000])
def test_hostile_sizes_end(text: str) -> None:
    assert parse_verdict(text) is None

"""Why votes have no answer: hand cases of what counts as one cause, and that the causes sum to those votes."""

from __future__ import annotations

import pytest

from judges.reports.causes import alike, causes

from .votes_builder import vote, votes_table


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("no answer within 20 s", "no answer within 60.5 s"),
        ("request 7f3a9c20-11d4 failed", "request 0c77aa19-9e1b failed"),
        ("the server's answer is no JSON: '<html>'", "the server's answer is no JSON: ''"),
        ("a prompt of 5123 tokens", "a prompt of 4097 tokens"),
    ],
)
def test_texts_that_differ_in_one_call_are_one_cause(one: str, other: str) -> None:
    assert alike(one) == alike(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("status 429: slow down", "status 500: slow down"),
        ("no connection (ConnectionResetError)", "no answer within 20 s"),
        ("defaced", "effaced"),  # letters of hexadecimal numbers alone are words
    ],
)
def test_texts_that_say_something_else_are_two(one: str, other: str) -> None:
    assert alike(one) != alike(other)


def test_each_vote_without_an_answer_has_one_cause() -> None:
    rows = [
        vote("p1", "j", "ab", None, "error", error="status 429: slow down, 3 s"),
        vote("p1", "j", "ba", None, "error", error="status 429: slow down, 7 s"),
        vote("p2", "j", "ab", None, "error", error="no connection"),
        vote("p2", "j", "ba", None, "parse_failure", raw="I like both"),
        vote("p3", "j", "ab", None, "parse_failure", raw="  "),
        vote("p3", "j", "ba", None, "abstain", mass=0.012),
        vote("p4", "j", "ab", None, "abstain", rationale="I will not."),
        vote("p4", "j", "ba", 0.9),
        vote("p1", "k", "ab", None, "error", error="no connection"),
    ]
    found = causes(votes_table(*rows))
    assert sum(one.votes for one in found) == 8
    assert [(one.judge, one.status, one.votes, one.example) for one in found] == [
        ("j", "error", 2, "status 429: slow down, 3 s"),
        ("j", "error", 1, "no connection"),
        ("j", "parse_failure", 1, "I like both"),
        ("j", "parse_failure", 1, ""),
        ("j", "abstain", 1, "mass 0.012"),
        ("j", "abstain", 1, "I will not."),
        ("k", "error", 1, "no connection"),
    ]
    assert found[0].cause == "status 429: slow down, # s"


def test_rare_causes_are_counted_together() -> None:
    names = ("alpha", "beta", "gamma", "delta")
    rows = [vote(f"p{number}", "j", "ab", None, "error", error=name) for number, name in enumerate(names)]
    rows.append(vote("p9", "j", "ab", None, "error", error="delta"))
    assert [(one.cause, one.votes) for one in causes(votes_table(*rows), most=2)] == [
        ("delta", 2),
        ("alpha", 1),
        ("others, of 2 kinds", 2),
    ]


def test_votes_with_answers_have_no_cause() -> None:
    assert causes(votes_table(vote("p1", "j", "ab", 0.9), vote("p1", "j", "ba", 0.5))) == []

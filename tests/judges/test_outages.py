"""Whole runs against a real HTTP server that faults, is away or comes late: what is lost, and what is asked again."""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from judges.judge import load_judge
from judges.metrics import account, causes
from judges.panel import Limits, judge_pairs
from store.errors import RlaifError, TransientError

from .conftest import PROMPT, Folder, Serve, make_pair
from .fault_server import FAULTS, GOOD, GOOD_WORDS, SAID, Answer, FaultServer, completion
from .serving import PAIRS, VERDICT_PROMPT, assert_no_key, served


@pytest.mark.parametrize("mode", ["pairwise_logprobs", "pairwise_verdict"])
@pytest.mark.parametrize("fault", [*FAULTS, "all"])
def test_faults_in_three_of_ten_calls_lose_nothing(serve: Serve, judge_folder: Folder, fault: str, mode: str) -> None:
    chance, faults = random.Random(1), list(FAULTS.values()) if fault == "all" else [FAULTS[fault]]
    good = GOOD if mode == "pairwise_logprobs" else GOOD_WORDS
    given = []

    def script(n: int, body: dict[str, Any]) -> Answer:
        answer = chance.choice(faults) if chance.random() < 0.3 else good
        given.append(answer)
        return answer

    server = serve(script)
    settings = {"max_attempts": 1, "timeout_s": 0.3, "min_mass": 0.5, "concurrency": 16, "parse_attempts": 1}
    prompt = PROMPT if mode == "pairwise_logprobs" else VERDICT_PROMPT
    judge = load_judge(judge_folder("served", prompt, **served(server, mode=mode, **settings)))
    votes = judge_pairs([judge], PAIRS, seed=0)
    counts = account(votes)
    assert counts["attempted"] == 80 == sum(counts.values()) - counts["attempted"]
    for row in votes.to_pylist():
        assert (row["p_a"] is not None) == (row["status"] in ("scored", "tie"))
        assert (row["error"] is not None) == (row["status"] == "error")
    errors = [str(error) for error in votes["error"].to_pylist() if error is not None]
    expected = {said for name, said in SAID.items() if fault in (name, "all")}
    if mode == "pairwise_verdict":
        expected -= {SAID["log-prob shape"]}  # nobody reads them there
    if fault == "all":
        # Which faults happened to come is chance; of those that came, each is named.
        came = {name for name, answer in FAULTS.items() if answer in given}
        expected = {said for said in expected if any(SAID.get(name) == said for name in came)}
        assert len(expected) >= 6
    for said in expected:
        assert any(said in error for error in errors), said
    found = causes(votes)
    assert Counter({status: counts[status] for status in ("error", "parse_failure", "abstain")}) == sum(
        (Counter({one.status: one.votes}) for one in found), Counter()
    )
    for said in expected:
        assert any(said in (one.example or "") for one in found), "the report tells each fault from the others"
    assert all(any(said in error for said in SAID.values()) for error in errors)


def test_with_repetition_faults_that_pass_cost_no_vote(serve: Serve, judge_folder: Folder) -> None:
    chance = random.Random(2)
    passing = [fault for name, fault in FAULTS.items() if name in SAID and name not in ("hang", "log-prob shape")]
    server = serve(lambda n, body: chance.choice(passing) if chance.random() < 0.3 else GOOD)
    judge = load_judge(judge_folder("served", **served(server, max_attempts=12)))
    votes = judge_pairs([judge], PAIRS, seed=0)
    assert account(votes)["scored"] == 80
    assert sum(votes["attempts"].to_pylist()) == len(server.bodies) > 100, "every call is on record"


@pytest.mark.parametrize(
    ("answer", "limits", "said", "each"),
    [
        (Answer(400, "bad request"), Limits(max_error_rate=0.2, after=10), r"errors .*bad request", 1),
        (completion("Hm."), Limits(max_parse_failure_rate=0.2, after=10), "parse failures", 2),
    ],
)
def test_a_judge_that_fails_too_often_ends_the_run_early(
    serve: Serve, judge_folder: Folder, answer: Answer, limits: Limits, said: str, each: int
) -> None:
    server = serve(lambda n, body: answer)
    settings = {"concurrency": 4, "mode": "pairwise_verdict", "parse_attempts": 2}
    judge = load_judge(judge_folder("served", VERDICT_PROMPT, **served(server, **settings)))
    pairs = [make_pair(number) for number in range(200)]
    with pytest.raises(RlaifError, match=f"served gave .* {said}") as caught:
        judge_pairs([judge], pairs, seed=0, limits=limits)
    time.sleep(0.1)
    # What the limit needs to see, and what the backend pulls ahead: not 400.
    assert len(server.bodies) <= each * (10 + 2 * 5)
    assert not isinstance(caught.value, TransientError), "the same request fails the next time too"


def test_errors_that_may_pass_are_worth_another_run(serve: Serve, judge_folder: Folder, tmp_path: Path) -> None:
    busy = [True]
    server = serve(lambda n, body: Answer(429, "too busy") if busy[0] and n > 2 else GOOD)
    judge = load_judge(judge_folder("served", **served(server, concurrency=1, max_attempts=1)))
    about: dict[str, Any] = {"seed": 0, "limits": Limits(max_error_rate=0.2, after=5), "shards": tmp_path / "journal"}
    with pytest.raises(TransientError, match=r"too busy.*run again later"):
        judge_pairs([judge], PAIRS[:10], **about)
    busy[0], asked = False, len(server.bodies)
    votes = judge_pairs([judge], PAIRS[:10], **about)
    assert set(votes["status"].to_pylist()) == {"scored"}
    assert len(server.bodies) - asked == 20 - 3, "only what has no answer yet is paid for"


@pytest.mark.parametrize("fault", ["500", "reset"])
@pytest.mark.parametrize("concurrency", [1, 8])
def test_an_outage_costs_no_vote(serve: Serve, judge_folder: Folder, fault: str, concurrency: int) -> None:
    """The server is away for 25 calls in a row, though each may be made only five times."""
    server = serve(lambda n, body: FAULTS[fault] if 20 <= n < 45 else GOOD)
    settings = {"concurrency": concurrency, "max_attempts": 5, "outage_after": 5}
    judge = load_judge(judge_folder("served", **served(server, **settings)))
    votes = judge_pairs([judge], PAIRS, seed=0)
    assert account(votes)["scored"] == 80
    assert len(server.bodies) == 80 + 25


def test_a_server_that_stays_away_ends_the_run_and_burns_nothing(
    serve: Serve, judge_folder: Folder, tmp_path: Path
) -> None:
    server = serve(lambda n, body: GOOD if n < 10 else FAULTS["500"])
    settings = {"concurrency": 4, "outage_patience_s": 0.5}
    judge = load_judge(judge_folder("served", **served(server, **settings)))
    with pytest.raises(TransientError, match=r"has been away for \d+ s \(status 500: oops\).*run again") as caught:
        judge_pairs([judge], PAIRS, seed=0, shards=tmp_path)
    assert_no_key(caught.value)
    failed = len(server.bodies) - 10
    assert failed < 30, "a few tries with growing pauses"
    server.close()
    again = FaultServer(lambda n, body: GOOD, port=server.port)
    votes = judge_pairs([judge], PAIRS, seed=0, shards=tmp_path)
    again.close()
    assert account(votes)["scored"] == 80
    assert len(again.bodies) == 70, "what was answered before the outage was kept"


def test_a_server_that_was_never_there(serve: Serve, judge_folder: Folder) -> None:
    server = serve(lambda n, body: GOOD)
    server.close()
    judge = load_judge(judge_folder("served", **served(server, outage_patience_s=0.2)))
    with pytest.raises(TransientError, match=r"has been away .*no connection.*refused"):
        judge_pairs([judge], PAIRS, seed=0)


def test_a_server_that_starts_later_is_waited_for(serve: Serve, judge_folder: Folder) -> None:
    server = serve(lambda n, body: GOOD)
    server.close()
    judge = load_judge(judge_folder("served", **served(server, outage_patience_s=30)))
    late: list[FaultServer] = []
    start = threading.Timer(0.4, lambda: late.append(FaultServer(lambda n, body: GOOD, port=server.port)))
    start.start()
    votes = judge_pairs([judge], PAIRS, seed=0)
    start.join()
    late[0].close()
    assert account(votes)["scored"] == 80


def test_too_many_requests_are_no_outage(serve: Serve, judge_folder: Folder) -> None:
    server = serve(lambda n, body: FAULTS["429"] if n % 10 else GOOD)
    settings = {"concurrency": 4, "max_attempts": 3, "outage_after": 2, "outage_patience_s": 0.01}
    judge = load_judge(judge_folder("served", **served(server, **settings)))
    votes = judge_pairs([judge], PAIRS, seed=0)
    assert account(votes)["error"] > 0, "each call's own attempts are at an end, and the run goes on"
    assert account(votes)["attempted"] == 80


def test_one_request_that_breaks_the_server_is_one_error(serve: Serve, judge_folder: Folder) -> None:
    pairs = [make_pair(number, a="poison" if number == 3 else None) for number in range(10)]

    def script(n: int, body: dict[str, Any]) -> Answer:
        return FAULTS["reset"] if "poison" in body["messages"][0]["content"] else GOOD

    for concurrency in (1, 8):
        server = serve(script)
        settings = {"concurrency": concurrency, "max_attempts": 5, "outage_after": 3, "outage_patience_s": 0.5}
        judge = load_judge(judge_folder(f"served{concurrency}", **served(server, **settings)))
        votes = judge_pairs([judge], pairs, seed=0)
        assert account(votes)["error"] == 2
        assert account(votes)["scored"] == 18

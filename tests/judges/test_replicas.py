"""Several servers as one: real HTTP servers that die in the middle of a run and come back."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from judges.judge import load_judge
from judges.metrics import account
from judges.panel import judge_pairs
from store.errors import TransientError, UsageError

from .conftest import Folder, make_pair
from .fault_server import FAULTS, GOOD, Answer, FaultServer, Script

PAIRS = [make_pair(number) for number in range(200)]
Serve = Callable[..., FaultServer]


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Iterator[Serve]:
    # Pauses are tested in virtual time; here they only cost time.
    monkeypatch.setattr("judges.backends.limits.FIRST_DELAY_S", 0.01)
    monkeypatch.setattr("judges.backends.limits.MAX_DELAY_S", 0.05)
    monkeypatch.setattr("judges.backends.breaker.RETURN_S", 0.01)
    servers: list[FaultServer] = []

    def start(script: Script, port: int = 0) -> FaultServer:
        servers.append(FaultServer(script, port))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


def settings(*servers: FaultServer, **other: Any) -> dict[str, Any]:
    addresses = [server.url for server in servers]
    return {"backend": "openai", "model": "big", "base_url": addresses, "concurrency": 8, "timeout_s": 5, **other}


def asked(server: FaultServer) -> int:
    """Completions, health checks left out."""
    return len([body for body in server.bodies if body])


def slowly(n: int, body: dict[str, Any]) -> Answer:
    time.sleep(0.002)
    return GOOD


def test_calls_are_shared_evenly(serve: Serve, judge_folder: Folder) -> None:
    one, two = serve(lambda n, body: GOOD), serve(lambda n, body: GOOD)
    votes = judge_pairs([load_judge(judge_folder("served", **settings(one, two)))], PAIRS, seed=0)
    assert account(votes)["scored"] == 400
    assert asked(one) + asked(two) == 400, "each call once"
    assert min(asked(one), asked(two)) > 120


def test_a_busy_replica_gets_fewer_calls(serve: Serve, judge_folder: Folder) -> None:
    """A loop of its own serves each, so that a server that sleeps is slow for all its callers."""

    def slow(n: int, body: dict[str, Any]) -> Answer:
        time.sleep(0.03)
        return GOOD

    one, two = serve(slow), serve(lambda n, body: GOOD)
    votes = judge_pairs([load_judge(judge_folder("served", **settings(one, two)))], PAIRS, seed=0)
    assert account(votes)["scored"] == 400
    assert asked(one) < asked(two) / 2


def test_a_replica_that_dies_and_returns_costs_no_vote(serve: Serve, judge_folder: Folder, tmp_path: Path) -> None:
    """One of two is killed with calls in flight and comes back later; every pair has both votes, and no error."""
    stays = serve(slowly)
    dies = serve(slowly)
    back: list[FaultServer] = []

    def progress(what: str, done: int, total: int, note: str = "") -> None:
        if done == 80:
            dies.close()
        if done == 200 and not back:
            back.append(serve(lambda n, body: GOOD, dies.port))

    judge = load_judge(judge_folder("served", **settings(stays, dies)))
    votes = judge_pairs([judge], PAIRS, seed=0, shards=tmp_path, progress=progress)
    assert account(votes)["scored"] == account(votes)["attempted"] == 400
    assert len(set(votes["vote_id"].to_pylist())) == 400
    assert asked(dies) >= 20
    assert asked(back[0]) > 0, "tried again, found, and used"
    assert asked(stays) + asked(dies) + asked(back[0]) <= 400 + 8, "what was in flight is repeated, no more"


@pytest.mark.parametrize("fault", ["500", "reset"])
def test_a_broken_replica_is_left_out(serve: Serve, judge_folder: Folder, fault: str) -> None:
    """One failure in a row takes it out again after each check: it takes few calls, however long the run is."""
    good, bad = serve(slowly), serve(lambda n, body: FAULTS[fault] if body else FAULTS["500"])
    votes = judge_pairs([load_judge(judge_folder("served", **settings(good, bad)))], PAIRS, seed=0)
    assert account(votes)["scored"] == 400
    assert asked(bad) <= 5 + 8, "outage_after, and what was in flight"


def test_when_all_are_away_the_run_waits_then_ends(serve: Serve, judge_folder: Folder, tmp_path: Path) -> None:
    servers = [serve(lambda n, body: GOOD if n < 20 else FAULTS["500"]) for _ in range(2)]
    judge = load_judge(judge_folder("served", **settings(*servers, outage_patience_s=0.5)))
    with pytest.raises(TransientError, match=r"2 servers have all been away for .*run again"):
        judge_pairs([judge], PAIRS, seed=0, shards=tmp_path)
    for server in servers:
        server.script = lambda n, body: GOOD
    before = sum(asked(server) for server in servers)
    votes = judge_pairs([judge], PAIRS, seed=0, shards=tmp_path)
    assert account(votes)["scored"] == 400
    assert sum(asked(server) for server in servers) - before == 400 - 40, "what was answered is kept"


def test_a_replica_that_was_never_there_is_no_outage(serve: Serve, judge_folder: Folder) -> None:
    gone, there = serve(lambda n, body: GOOD), serve(lambda n, body: GOOD)
    gone.close()
    votes = judge_pairs([load_judge(judge_folder("served", **settings(gone, there)))], PAIRS, seed=0)
    assert account(votes)["scored"] == 400


def test_a_replica_that_asks_for_rest_gets_it(serve: Serve, judge_folder: Folder) -> None:
    """Retry-After of one does not hold the calls to the other."""
    asks = Answer(429, "slow down", {"Retry-After": "60"})
    tired, fresh = serve(lambda n, body: asks if n > 10 else GOOD), serve(lambda n, body: GOOD)
    start = time.monotonic()
    votes = judge_pairs([load_judge(judge_folder("served", **settings(tired, fresh)))], PAIRS, seed=0)
    assert account(votes)["scored"] == 400
    assert time.monotonic() - start < 30
    assert asked(tired) <= 11 + 8


def test_addresses_are_no_part_of_a_judge(judge_folder: Folder) -> None:
    def judge(address: Any) -> str:
        return load_judge(judge_folder("served", backend="openai", model="big", base_url=address)).fingerprint

    assert judge("http://one/v1") == judge(["http://two/v1"]) == judge(["http://two/v1", "http://three/v1"])


@pytest.mark.parametrize(
    ("addresses", "said"),
    [
        ([], "at least one server"),
        (["http://h/v1", "http://h/v1/"], "each once"),
        (["http://h/v1", "h/v1"], "'h/v1' must start with http"),
        (["http://h/v1", "http://me:word@h/v1"], "no user or password"),
    ],
)
def test_wrong_addresses(judge_folder: Folder, addresses: list[str], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        load_judge(judge_folder("served", backend="openai", model="big", base_url=addresses))

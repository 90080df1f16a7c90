"""The server backend against a real HTTP server that misbehaves in every way we know of."""

from __future__ import annotations

import json
import math
import random
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from judges.backends.base import ORDERS, Request, open_backend
from judges.backends.limits import backoff, retry_after
from judges.backends.reply import MalformedError, answer_logprobs, read_reply
from judges.judge import load_judge
from judges.panel import Limits, judge_pairs
from store.errors import RlaifError, TransientError, UsageError
from store.tables import Status

from .conftest import PROMPT, Folder, make_pair

KEY = "sk-very-secret-0123456789"
VERDICT_PROMPT = PROMPT + "\nEnd with VERDICT: <1, 2 or tie>"
Reply = tuple[int, dict[str, str], str] | None


def completion(content: str = "1", top: list[tuple[str, float]] | None = None, **other: Any) -> Reply:
    """A well-formed chat completion; `top`: tokens and probabilities."""
    choice: dict[str, Any] = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": content}}
    if top is not None:
        listed = [{"token": token, "logprob": math.log(p), "bytes": None} for token, p in top]
        choice["logprobs"] = {"content": [{**listed[0], "top_logprobs": listed}]}
    choice |= other
    body = {
        "id": "x",
        "object": "chat.completion",
        "choices": [choice],
        "usage": {"prompt_tokens": 30, "completion_tokens": 2},
    }
    return 200, {}, json.dumps(body)


GOOD = completion("1", [("1", 0.6), (" 2", 0.2), ("Ġ1", 0.1), ("The", 0.1)])


class Server:
    """Records every request and answers the n-th (from 0) with `script(n, body)`; None hangs until the end."""

    def __init__(self, script: Callable[[int, dict[str, Any]], Reply]) -> None:
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.end = threading.Event()
        lock = threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                with lock:
                    number = len(outer.bodies)
                    outer.bodies.append(body)
                    outer.headers.append({name.lower(): value for name, value in self.headers.items()})
                reply = script(number, body)
                if reply is None:
                    outer.end.wait(30)
                    self.close_connection = True
                    return
                status, headers, text = reply
                data = text.encode()
                self.send_response(status)
                for name, value in {
                    "content-type": "application/json",
                    "content-length": str(len(data)),
                    **headers,
                }.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *arguments: Any) -> None:
                pass

        class Quiet(ThreadingHTTPServer):
            def handle_error(self, request: Any, client_address: Any) -> None:
                """A client that hangs up is part of these tests."""

        self.server = Quiet(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def close(self) -> None:
        self.end.set()
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Callable[[int, dict[str, Any]], Reply]], Server]]:
    monkeypatch.setenv("TEST_JUDGE_KEY", KEY)
    # Pauses between calls are tested by themselves; here they only cost time.
    monkeypatch.setattr("judges.backends.limits.FIRST_DELAY_S", 0.001)
    servers: list[Server] = []

    def start(script: Callable[[int, dict[str, Any]], Reply]) -> Server:
        servers.append(Server(script))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


@pytest.fixture
def ask(judge_folder: Folder) -> Callable[..., list[Any]]:
    """Answers of a judge at a server to the first `n` requests."""

    def run(server: Server, n: int = 1, prompt: str = PROMPT, **settings: Any) -> list[Any]:
        values = {
            "backend": "openai",
            "model": "big",
            "base_url": server.url,
            "api_key_env": "TEST_JUDGE_KEY",
            **settings,
        }
        backend = open_backend(load_judge(judge_folder("served", prompt, **values)))
        try:
            requests = [Request(make_pair(number), order) for number in range((n + 1) // 2) for order in ORDERS]
            return list(backend.answer(iter(requests[:n])))
        finally:
            backend.close()

    return run


def test_logprobs_become_a_soft_preference(serve: Any, ask: Any) -> None:
    server = serve(lambda n, body: GOOD)
    (answer,) = ask(server)
    assert answer.status == Status.SCORED
    assert answer.p_first == pytest.approx(0.7 / 0.9)
    assert answer.mass == pytest.approx(0.9)
    assert (answer.tokens_in, answer.tokens_out, answer.attempts) == (30, 2, 1)


def test_the_configured_decoding_reaches_the_server(serve: Any, ask: Any) -> None:
    server = serve(lambda n, body: GOOD)
    ask(
        server,
        temperature=0.3,
        top_p=0.9,
        top_logprobs=7,
        extra_body={"chat_template_kwargs": {"enable_thinking": False}},
    )
    (body,) = server.bodies
    assert (body["model"], body["temperature"], body["top_p"]) == ("big", 0.3, 0.9)
    assert (body["logprobs"], body["top_logprobs"], body["max_tokens"]) == (True, 7, 1)
    assert body["chat_template_kwargs"] == {"enable_thinking": False}
    assert "<answer_1>" in body["messages"][0]["content"]
    assert server.headers[0]["authorization"] == f"Bearer {KEY}"
    said = completion('{"reasoning": "because", "verdict": "2"}')
    server = serve(lambda n, body: said)
    (answer,) = ask(
        server, prompt=VERDICT_PROMPT, mode="pairwise_verdict", max_new_tokens=99, temperature=0.5, structured=True
    )
    (body,) = server.bodies
    assert body["max_tokens"] == 99
    assert isinstance(body["seed"], int)
    assert body["response_format"]["json_schema"]["schema"]["properties"]["verdict"]["enum"] == ["1", "2", "tie"]
    assert (answer.p_first, answer.rationale) == (0.0, "because")


def test_many_calls_give_one_answer_each(serve: Any, ask: Any) -> None:
    server = serve(lambda n, body: GOOD)
    answers = ask(server, n=40, concurrency=8, requests_per_minute=600_000, tokens_per_minute=6e8)
    assert len({(one.request.pair.pair_id, one.request.order) for one in answers}) == len(answers) == 40


@pytest.mark.parametrize(
    "fault",
    [
        (429, {"retry-after": "0.01"}, "slow down"),
        (429, {}, "slow down"),
        (500, {}, "oops"),
        (503, {"retry-after-ms": "5"}, "<html>"),
        (200, {}, '{"choices": [{"message": {"con'),
        (200, {"content-type": "text/html"}, "<html>maintenance</html>"),
        (200, {}, '{"choices": []}'),
        (200, {}, "[1]"),
        None,
    ],
)
def test_a_fault_that_passes_is_repeated(serve: Any, ask: Any, fault: Reply) -> None:
    server = serve(lambda n, body: fault if n < 2 else GOOD)
    (answer,) = ask(server, timeout_s=0.3 if fault is None else 20, max_attempts=3)
    assert (answer.status, answer.attempts) == (Status.SCORED, 3)
    assert len(server.bodies) == 3
    assert server.bodies[0] == server.bodies[2], "the same request, decoding included"


@pytest.mark.parametrize(
    ("fault", "calls", "said"),
    [
        ((429, {}, "slow down"), 3, "status 429: slow down"),
        ((500, {}, f"no {KEY} here"), 3, "status 500: no [key] here"),
        ((400, {}, "the context holds 4096 tokens"), 1, "4096"),
        ((200, {}, '{"choices": [{"mess'), 3, "no JSON"),
        (None, 3, "no answer within 0.2 s"),
        (completion("1"), 1, "no log-probs"),
        (completion("1", logprobs={"content": [{"top_logprobs": [{"token": "1"}]}]}), 1, "shape"),
        (completion("1", logprobs={"content": [{"top_logprobs": [{"token": "1", "logprob": 3}]}]}), 1, "no log-prob"),
        (completion("1", message=None), 3, "no message"),
    ],
)
def test_a_fault_that_stays_is_an_error(serve: Any, ask: Any, fault: Reply, calls: int, said: str) -> None:
    server = serve(lambda n, body: fault)
    (answer,) = ask(server, timeout_s=0.2 if fault is None else 20, max_attempts=3)
    assert (answer.status, answer.attempts, answer.p_first) == (Status.ERROR, calls, None)
    assert said in answer.error
    assert len(server.bodies) == calls


def test_a_server_that_is_not_there(ask: Any, serve: Any) -> None:
    server = serve(lambda n, body: GOOD)
    server.close()
    (answer,) = ask(server, max_attempts=2)
    assert answer.status == Status.ERROR
    assert "no connection" in answer.error


@pytest.mark.parametrize(
    ("status", "said"), [(401, "TEST_JUDGE_KEY"), (403, "TEST_JUDGE_KEY"), (404, "'big'"), (429, "exhausted")]
)
def test_what_cannot_pass_stops_at_the_first_call(serve: Any, ask: Any, status: int, said: str) -> None:
    server = serve(lambda n, body: (status, {}, json.dumps({"error": f"{KEY} insufficient_quota"})))
    with pytest.raises(RlaifError, match=said) as caught:
        ask(server, n=40, concurrency=16)
    assert len(server.bodies) == 1
    chain: BaseException | None = caught.value
    while chain is not None:
        assert KEY not in str(chain)
        chain = chain.__cause__


def test_a_missing_key_is_named(ask: Any, serve: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TEST_JUDGE_KEY")
    with pytest.raises(UsageError, match="TEST_JUDGE_KEY"):
        ask(serve(lambda n, body: GOOD))


def test_verdicts(serve: Any, ask: Any) -> None:
    settings = {"prompt": VERDICT_PROMPT, "mode": "pairwise_verdict", "max_attempts": 2, "parse_attempts": 3}
    (answer,) = ask(serve(lambda n, body: completion("Hm. VERDICT: 3" if n < 2 else "Hm.\nVERDICT: tie")), **settings)
    assert (answer.status, answer.p_first, answer.attempts) == (Status.TIE, 0.5, 3)
    assert (answer.tokens_in, answer.tokens_out) == (90, 6), "every call is paid for"
    server = serve(lambda n, body: completion("评判：1"))
    (answer,) = ask(server, **settings)
    assert (answer.status, answer.p_first, answer.raw) == (Status.PARSE_FAILURE, None, "评判：1")
    assert len(server.bodies) == 3
    assert server.bodies[0] == server.bodies[2]
    refusal = completion("", message={"role": "assistant", "content": None, "refusal": "I will not."})
    (answer,) = ask(serve(lambda n, body: refusal), **settings)
    assert (answer.status, answer.rationale) == (Status.ABSTAIN, "I will not.")


def test_a_judge_that_fails_too_often_ends_the_run_early(serve: Any, judge_folder: Folder) -> None:
    server = serve(lambda n, body: (400, {}, "bad request"))
    settings = {"backend": "openai", "model": "big", "base_url": server.url, "concurrency": 4}
    judge = load_judge(judge_folder("served", **settings))
    pairs = [make_pair(number) for number in range(200)]
    with pytest.raises(RlaifError, match=r"served gave .* errors .*bad request") as caught:
        judge_pairs([judge], pairs, seed=0, limits=Limits(max_error_rate=0.2, after=10))
    assert len(server.bodies) < 200
    assert not isinstance(caught.value, TransientError), "the same request fails the next time too"


def test_a_server_that_is_away_is_worth_another_run(serve: Any, judge_folder: Folder, tmp_path: Path) -> None:
    away = [True]
    server = serve(lambda n, body: (503, {}, "restarting") if away[0] and n > 2 else GOOD)
    settings = {"backend": "openai", "model": "big", "base_url": server.url, "concurrency": 1, "max_attempts": 1}
    judge = load_judge(judge_folder("served", **settings))
    pairs = [make_pair(number) for number in range(10)]
    about: dict[str, Any] = {"seed": 0, "limits": Limits(max_error_rate=0.2, after=5), "shards": tmp_path / "journal"}
    with pytest.raises(TransientError, match=r"restarting.*run again later"):
        judge_pairs([judge], pairs, **about)
    away[0], asked = False, len(server.bodies)
    votes = judge_pairs([judge], pairs, **about)
    assert set(votes["status"].to_pylist()) == {"scored"}
    assert len(server.bodies) - asked == 20 - 3, "only what has no answer yet is paid for"


def test_thirty_percent_of_faults_lose_nothing(serve: Any, judge_folder: Folder) -> None:
    chance = random.Random(1)
    faults: list[Reply] = [
        (500, {}, "x"),
        (429, {"retry-after": "0"}, "x"),
        (200, {}, "{"),
        completion("", [("Hm", 0.9)]),
    ]
    server = serve(lambda n, body: chance.choice(faults) if chance.random() < 0.3 else GOOD)
    settings = {"backend": "openai", "model": "big", "base_url": server.url, "max_attempts": 2, "min_mass": 0.5}
    judge = load_judge(judge_folder("served", **settings))
    votes = judge_pairs([judge], [make_pair(number) for number in range(40)], seed=0)
    assert votes.num_rows == 80
    assert set(votes["status"].to_pylist()) == {"scored", "abstain", "error"}
    for row in votes.to_pylist():
        assert (row["p_a"] is not None) == (row["status"] == "scored")
        assert (row["error"] is not None) == (row["status"] == "error")


def test_retry_after() -> None:
    now = datetime(2026, 1, 1, tzinfo=UTC)
    assert retry_after({"retry-after": "7"}) == 7
    assert retry_after({"retry-after-ms": "250"}) == 0.25
    assert retry_after({"retry-after": "Thu, 01 Jan 2026 00:00:09 GMT"}, now) == 9
    assert retry_after({"retry-after": "Wed, 31 Dec 2025 00:00:09 GMT"}, now) == 0
    assert retry_after({"retry-after": "99999999"}) == 600
    assert retry_after({"retry-after": "nan"}) == 0
    assert retry_after({"retry-after": "soon"}) is None
    assert retry_after({}) is None


def test_backoff() -> None:
    chance = random.Random(0)
    assert all(7 <= backoff(1, 7.0, chance) <= 8.75 for _ in range(50))
    assert all(0.25 <= backoff(1, None, chance) <= 0.5 for _ in range(50))
    assert all(15 <= backoff(50, None, chance) <= 30 for _ in range(50))


def test_logprobs_of_answers() -> None:
    assert answer_logprobs([("The", -0.1)], ("1", "2")) == (-math.inf, -math.inf)
    first, second = answer_logprobs([("\u2581A", math.log(0.25)), ("A", math.log(0.25)), ("AB", -1.0)], ("A", "B"))
    assert (math.exp(first), second) == (pytest.approx(0.5), -math.inf)
    reply = completion("1", [("1", 0.5), ("1", 0.5)])
    assert reply is not None
    assert read_reply(reply[2]).top == [("1", math.log(0.5))], "a token listed twice counts once"
    with pytest.raises(MalformedError):
        read_reply("[" * 100_000)

"""The server backend against a real HTTP server that misbehaves in every way we know of."""

from __future__ import annotations

import asyncio
import json
import logging
import math
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from judges.backends.base import Call, Reply, open_backend
from judges.backends.reply import CallError, option_logprobs, read_completion
from judges.judge import load_judge
from judges.modes import Finding, find
from judges.panel import Limits, Panel, judge_pairs
from judges.votes import asks_about
from store.errors import RlaifError, UsageError
from store.schemas import Status

from .conftest import KEY, PROMPT, Folder, Serve
from .fault_server import FAULTS, GOOD, GOOD_WORDS, REFUSAL, SAID, Answer, FaultServer, completion
from .serving import PAIRS, VERDICT_PROMPT, assert_no_key, served


@dataclass(frozen=True)
class Found:
    reply: Reply
    finding: Finding


Ask = Callable[..., list[Found]]


@pytest.fixture
def ask(judge_folder: Folder) -> Ask:
    """Replies of a judge at a server to its first `n` calls, both orders of each pair, and what was found in them."""

    def run(server: FaultServer, n: int = 1, prompt: str = PROMPT, **settings: Any) -> list[Found]:
        judge = load_judge(judge_folder("served", prompt, **served(server, **settings)))
        backend = open_backend(judge)
        calls = []
        for one in list(asks_about(judge, PAIRS))[:n]:
            text = judge.render(one.subject, one.about, backend.specials)
            calls.append(Call(one.id, one.subject, text, judge.mode.want(judge.settings, 2), seed=len(calls)))
        try:
            replies = list(backend.answer(iter(calls)))
        finally:
            backend.close()
        return [Found(reply, find(judge.mode, reply, judge.settings)) for reply in replies]

    return run


def test_logprobs_become_a_soft_preference(serve: Serve, ask: Ask) -> None:
    (found,) = ask(serve(lambda n, body: GOOD))
    assert found.finding.status == Status.SCORED
    assert found.finding.p_first == pytest.approx(0.7 / 0.9)
    assert found.finding.mass == pytest.approx(0.9)
    reply = found.reply
    assert (reply.tokens_in, reply.tokens_out, reply.attempts, reply.text) == (30, 2, 1, "1")
    assert reply.latency_s > 0


def test_the_configured_decoding_reaches_the_server(serve: Serve, ask: Ask) -> None:
    server = serve(lambda n, body: GOOD)
    extra = {"chat_template_kwargs": {"enable_thinking": False}, "max_completion_tokens": 1, "max_tokens": None}
    ask(server, temperature=0.3, top_p=0.9, top_logprobs=7, extra_body=extra)
    (body,) = server.bodies
    shown = body.pop("messages")
    assert [message["role"] for message in shown] == ["user"]
    assert "<answer_1>" in shown[0]["content"]
    assert body == {
        "model": "big",
        "temperature": 0.3,
        "top_p": 0.9,
        "logprobs": True,
        "top_logprobs": 7,
        "chat_template_kwargs": {"enable_thinking": False},
        "max_completion_tokens": 1,
    }
    assert server.headers[0]["authorization"] == f"Bearer {KEY}"


def test_the_decoding_of_words_reaches_the_server(serve: Serve, ask: Ask) -> None:
    said = completion('{"reasoning": "because", "verdict": "2"}')
    server = serve(lambda n, body: said)
    words: dict[str, Any] = {"prompt": VERDICT_PROMPT, "mode": "pairwise_verdict", "max_new_tokens": 99}
    found = ask(server, n=2, temperature=0.5, structured=True, **words)
    assert {body["seed"] for body in server.bodies} == {0, 1}, "of the call, not of the run"
    body = server.bodies[0]
    assert (body["temperature"], body["top_p"], body["max_tokens"]) == (0.5, 1.0, 99)
    assert "logprobs" not in body
    assert body["response_format"]["type"] == "json_schema"
    assert body["response_format"]["json_schema"]["schema"]["properties"]["verdict"]["enum"] == ["1", "2", "tie"]
    assert (found[0].finding.p_first, found[0].finding.rationale) == (0.0, "because")
    server = serve(lambda n, body: said)
    ask(server, **words)
    assert not {"seed", "response_format"} & server.bodies[0].keys(), "nobody asked for these"


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"extra_body": {"temperature": 1}}, "extra_body must not hold temperature"),
        ({"base_url": "https://me:word@host/v1"}, "no user or password"),
        ({"api_key_env": "sk-me:word"}, "name of an environment variable, not a key"),
        ({"base_url": "host/v1"}, "must start with http"),
    ],
)
def test_settings_that_contradict_themselves(judge_folder: Folder, settings: dict[str, Any], said: str) -> None:
    values = {"backend": "openai", "model": "big", "base_url": "http://host/v1", **settings}
    with pytest.raises(UsageError, match=said) as caught:
        load_judge(judge_folder("served", **values))
    assert "me:word" not in "".join(traceback.format_exception(caught.value))


def test_many_calls_give_one_reply_each(serve: Serve, ask: Ask) -> None:
    server = serve(lambda n, body: GOOD)
    found = ask(server, n=80, concurrency=8, requests_per_minute=600_000, tokens_per_minute=6e8)
    assert len({one.reply.call.id for one in found}) == len(found) == 80
    assert server.most <= 8


def test_calls_that_are_answered_already_are_not_made(serve: Serve, judge_folder: Folder) -> None:
    server = serve(lambda n, body: GOOD)
    judge = load_judge(judge_folder("served", **served(server)))
    backend = open_backend(judge)
    want = judge.mode.want(judge.settings, 2)
    asks = list(asks_about(judge, PAIRS[:5]))
    calls = [Call(one.id, one.subject, "x", want, answered=at % 3 == 0) for at, one in enumerate(asks)]
    replies = list(backend.answer(calls))
    assert list(backend.answer(calls[:1])) == [], "a backend may be asked again, and for nothing"
    backend.close()
    assert {reply.call.id for reply in replies} == {call.id for call in calls if not call.answered}
    assert len(server.bodies) == len(replies)


def test_a_slow_caller_is_not_run_ahead_of(serve: Serve, judge_folder: Folder) -> None:
    server = serve(lambda n, body: GOOD)
    judge = load_judge(judge_folder("served", **served(server, concurrency=4)))
    pulled = []

    def calls() -> Iterator[Call]:
        for one in asks_about(judge, PAIRS):
            pulled.append(one.id)
            yield Call(one.id, one.subject, "x", judge.mode.want(judge.settings, 2))

    backend = open_backend(judge)
    replies = backend.answer(calls())
    next(replies)
    time.sleep(0.3)
    assert len(pulled) <= 10, "twice the calls in flight, or the failures that make an outage"
    assert len(server.bodies) <= 10
    replies.close()
    time.sleep(0.1)
    before = len(server.bodies)
    time.sleep(0.2)
    assert len(server.bodies) == before, "nobody listens: no further call may be paid for"
    assert len(list(backend.answer(calls()))) == 80, "a backend may be asked again"
    backend.close()


@pytest.mark.parametrize(
    "fault",
    [*[name for name in FAULTS if name not in ("log-prob shape", "other language", "refused")], "503", "drip", "list"],
)
def test_a_fault_that_passes_is_repeated(serve: Serve, ask: Ask, fault: str) -> None:
    others = {
        "503": Answer(503, "<html>", {"Retry-After-Ms": "5"}),
        "drip": Answer(how="drip"),
        "list": Answer(text="[1]"),
    }
    answer = {**FAULTS, **others}[fault]
    server = serve(lambda n, body: answer if n < 2 else GOOD)
    (found,) = ask(server, timeout_s=0.3 if answer.how in ("hang", "drip") else 20, max_attempts=3)
    assert (found.finding.status, found.reply.attempts) == (Status.SCORED, 3)
    assert len(server.bodies) == 3
    assert server.bodies[0] == server.bodies[2], "the same request, decoding included"


@pytest.mark.parametrize(
    ("fault", "calls", "said"),
    [
        *[(FAULTS[name], 1 if name == "log-prob shape" else 3, said) for name, said in SAID.items()],
        (Answer(400, '{"error": {"message": "the context holds 4096 tokens"}}'), 1, "status 400: the context holds"),
        (completion("1"), 1, "no log-probs"),
        (completion("1", logprobs={"content": [{"top_logprobs": [{"token": "1", "logprob": 3}]}]}), 1, "no log-prob"),
        (completion("1", message=None), 3, "no message"),
        (Answer(text="1" * (17 * 2**20)), 1, "longer than 16 MiB"),
        (Answer(text="[" * 100_000), 3, "no JSON"),
    ],
)
def test_a_fault_that_stays_is_an_error(serve: Serve, ask: Ask, fault: Answer, calls: int, said: str) -> None:
    server = serve(lambda n, body: fault)
    (found,) = ask(server, timeout_s=0.2 if fault.how == "hang" else 20, max_attempts=3)
    assert (found.finding.status, found.reply.attempts) == (Status.ERROR, calls)
    assert found.finding.p_first is None
    assert found.reply.error is not None
    assert said in found.reply.error
    assert found.reply.transient == (calls == 3)
    assert len(server.bodies) == calls


@pytest.mark.parametrize(
    ("status", "said"),
    [
        (401, "TEST_JUDGE_KEY"),
        (403, "TEST_JUDGE_KEY"),
        (404, "'big'"),
        (429, "exhausted"),
        (402, "top it up"),
        (301, "has moved: set base_url"),
    ],
)
def test_what_cannot_pass_stops_at_the_first_call(serve: Serve, ask: Ask, status: int, said: str) -> None:
    body = json.dumps({"error": {"message": f"{KEY} is wrong", "code": "insufficient_quota"}})
    server = serve(lambda n, _: Answer(status, body, {"Location": "http://elsewhere/"}))
    with pytest.raises(RlaifError, match=said) as caught:
        ask(server, n=40, concurrency=16)
    assert len(server.bodies) == 1
    assert str(caught.value).endswith(".")
    assert_no_key(caught.value)


@pytest.mark.parametrize("escape", [False, True])
def test_an_echoed_key_is_stored_nowhere(
    serve: Serve, judge_folder: Folder, tmp_path: Path, caplog: pytest.LogCaptureFixture, escape: bool
) -> None:
    """Servers and their proxies quote what they were sent: in errors, in headers, in answers."""
    caplog.set_level(logging.DEBUG)

    def spelt(text: str) -> str:
        return json.dumps(text).replace("/", "\\/") if escape else json.dumps(text)

    def echo(n: int, body: dict[str, Any]) -> Answer:
        said = f"Authorization: Bearer {KEY} and {KEY}"
        headers = {"Retry-After": "0", "X-Echo": KEY}
        return [
            Answer(500, f'{{"error": {{"message": {spelt(said)}}}}}', headers),
            Answer(429, f'{{"error": {spelt("x" * 190 + KEY)}}}', {"Retry-After": KEY}),
            Answer(400, said, headers),
            Answer(200, "x" * 70 + KEY, headers),
            Answer(200, json.dumps({"key": said}), headers),
            Answer(text=GOOD_WORDS.text.replace('"They differ.', spelt(said)[:-1]), headers=headers),
            Answer(text=REFUSAL.text.replace('"I will not."', spelt(said)), headers=headers),
            completion(f"{KEY} and no verdict"),
        ][n % 8]

    server = serve(echo)
    settings = {"mode": "pairwise_verdict", "max_attempts": 1, "parse_attempts": 1, "concurrency": 3}
    judge = load_judge(judge_folder("served", VERDICT_PROMPT, **served(server, **settings)))
    votes = judge_pairs([judge], PAIRS, seed=0, shards=tmp_path / "shards")
    assert set(votes["status"].to_pylist()) == {"scored", "abstain", "parse_failure", "error"}
    assert "sk-very" not in json.dumps(votes.to_pylist())
    assert "[key]" in json.dumps(votes.to_pylist())
    for path in tmp_path.rglob("*"):
        assert path.is_dir() or b"sk-very" not in path.read_bytes(), path
    assert "sk-very" not in caplog.text
    with pytest.raises(RlaifError) as caught:
        judge_pairs([judge], PAIRS[:2], seed=0, limits=Limits(max_error_rate=0.0))
    assert_no_key(caught.value)


def test_a_backend_does_not_show_its_key(serve: Serve, judge_folder: Folder) -> None:
    judge = load_judge(judge_folder("served", **served(serve(lambda n, body: GOOD))))
    backend = open_backend(judge)
    assert "sk-very" not in repr(backend) + repr(judge) + repr(vars(backend))
    backend.close()


def test_a_missing_key_is_named(serve: Serve, ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    server = serve(lambda n, body: GOOD)
    for value, said in (("", "needs a key: set the environment variable TEST_JUDGE_KEY"), ("sk-very\nx", "is no key")):
        monkeypatch.setenv("TEST_JUDGE_KEY", value)
        with pytest.raises(UsageError, match=said) as caught:
            ask(server)
        assert "sk-very" not in str(caught.value)
    assert server.bodies == []


def test_verdicts(serve: Serve, ask: Ask) -> None:
    settings = {"prompt": VERDICT_PROMPT, "mode": "pairwise_verdict", "max_attempts": 2, "parse_attempts": 3}
    unclear, tie = completion("Hm. VERDICT: 3"), completion("Hm.\nVERDICT: tie")
    (found,) = ask(serve(lambda n, body: unclear if n < 2 else tie), **settings)
    assert (found.finding.status, found.finding.p_first, found.reply.attempts) == (Status.TIE, 0.5, 3)
    assert (found.reply.tokens_in, found.reply.tokens_out) == (90, 6), "every call is paid for"
    server = serve(lambda n, body: completion("评判：1"))
    (found,) = ask(server, **settings)
    assert (found.finding.status, found.finding.p_first, found.reply.text) == (Status.PARSE_FAILURE, None, "评判：1")
    assert len(server.bodies) == 3
    assert server.bodies[0] == server.bodies[2]
    (found,) = ask(serve(lambda n, body: REFUSAL), **settings)
    assert (found.finding.status, found.finding.rationale) == (Status.ABSTAIN, "I will not.")


def test_another_try_for_a_readable_text_draws_anew(serve: Serve, ask: Ask) -> None:
    unclear = completion("Hm.")
    server = serve(lambda n, body: [Answer(500), unclear, unclear, GOOD_WORDS][n])
    settings = {"prompt": VERDICT_PROMPT, "mode": "pairwise_verdict", "parse_attempts": 3, "temperature": 1.0}
    (found,) = ask(server, **settings)
    assert [body["seed"] for body in server.bodies] == [0, 0, 1, 2], "the same again after a fault"
    assert found.finding.status == Status.SCORED


def test_a_judge_works_where_a_loop_runs_already(serve: Serve, judge_folder: Folder) -> None:
    """As in a notebook."""
    judge = load_judge(judge_folder("served", **served(serve(lambda n, body: GOOD))))

    async def cell() -> int:
        with Panel([judge]) as panel:
            return int(panel.judge(PAIRS[:3]).num_rows)

    assert asyncio.run(cell()) == 6


def test_logprobs_of_options() -> None:
    assert option_logprobs([("The", -0.1)], ("1", "2")) == (-math.inf, -math.inf)
    top = [("\u2581A", math.log(0.25)), ("A", math.log(0.25)), ("AB", -1.0), (" C\n", math.log(0.1))]
    first, second, third = option_logprobs(top, ("A", "B", "C"))
    assert (math.exp(first), second, math.exp(third)) == (pytest.approx(0.5), -math.inf, pytest.approx(0.1))
    listed = completion("1", [("1", 0.5), ("1", 0.5)])
    assert read_completion(listed.text).top == [("1", math.log(0.5))], "a token listed twice counts once"
    for text in ("", "null", "[", '{"choices": [1]}', '{"choices": {"0": 1}}', '{"choices": [{"message": "1"}]}'):
        with pytest.raises(CallError):
            read_completion(text)

"""The backend of judges behind a server that speaks OpenAI's chat completions: hosted, vLLM, llama.cpp, ...

Calls run in an event loop on a thread of their own, so many in flight as the judge allows. A failing call is repeated
with growing, jittered pauses, at least as long as the server asks (Retry-After), and then recorded as an error. What
no repetition can mend (a refused key, an unknown model, an exhausted account) ends the run at the first call: until
one call came back, no second one is made.
"""

from __future__ import annotations

import asyncio
import os
import queue
import random
import threading
from collections.abc import Coroutine, Generator, Iterable, Iterator
from dataclasses import replace
from typing import Any, TypeVar

import openai

from judges.backends.base import Answer, Request, preference_from_logprobs
from judges.backends.limits import Bucket, backoff, retry_after
from judges.backends.reply import MalformedError, Reply, answer_logprobs, read_reply
from judges.judge import Judge
from judges.parsing import parse_verdict
from judges.prompts import WELL_KNOWN_SPECIALS
from judges.settings import OpenAISettings
from store.errors import RlaifError, UsageError
from store.tables import Status

_AGAIN = frozenset({408, 409, 425, 429})
_P_FIRST = {"first": 1.0, "second": 0.0, "tie": 0.5}
T = TypeVar("T")


class _CallError(Exception):
    """One call failed. `again`: it may succeed later. `after`: seconds that the server asked to wait."""

    def __init__(self, message: str, again: bool, after: float | None = None) -> None:
        super().__init__(message)
        self.again, self.after = again, after


class OpenAIBackend:
    """Raises UsageError where the key's environment variable is not set."""

    def __init__(self, judge: Judge) -> None:
        self._judge, self._settings = judge, judge.settings_as(OpenAISettings)
        self._key = _key(judge.name, self._settings.api_key_env)
        self._chance = random.Random()  # noqa: S311  jitter
        self._requests = Bucket(self._settings.requests_per_minute)
        self._tokens = Bucket(self._settings.tokens_per_minute)
        self._resume_at = 0.0
        self._answered: asyncio.Event
        self._client: openai.AsyncOpenAI
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name=f"judge {judge.name}", daemon=True)
        self._thread.start()
        self._in_loop(self._start())

    def answer(self, requests: Iterable[Request]) -> Generator[Answer, None, None]:
        out: queue.SimpleQueue[Answer | None] = queue.SimpleQueue()
        work = asyncio.run_coroutine_threadsafe(self._answer_all(iter(requests), out), self._loop)
        work.add_done_callback(lambda _: out.put(None))
        try:
            while (answer := out.get()) is not None:
                yield answer
            work.result()
        finally:
            # Also when the caller stops asking: no further call may be paid for.
            work.cancel()

    def close(self) -> None:
        self._in_loop(self._client.close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _in_loop(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    async def _start(self) -> None:
        self._answered = asyncio.Event()
        # Connections are kept for all calls in flight: the library's default keeps 100 and opens the rest anew.
        limits = type(openai.DEFAULT_CONNECTION_LIMITS)(
            max_connections=self._settings.concurrency, max_keepalive_connections=self._settings.concurrency
        )
        self._client = openai.AsyncOpenAI(
            base_url=self._settings.base_url,
            api_key=self._key or "none",
            max_retries=0,
            timeout=self._settings.timeout_s,
            http_client=openai.DefaultAsyncHttpxClient(limits=limits),
        )

    async def _answer_all(self, requests: Iterator[Request], out: queue.SimpleQueue[Answer | None]) -> None:
        async def worker(leads: bool) -> None:
            if not leads:
                await self._answered.wait()
            for request in requests:
                out.put(await self._answer_one(request))
            self._answered.set()

        try:
            async with asyncio.TaskGroup() as group:
                for number in range(self._settings.concurrency):
                    group.create_task(worker(number == 0))
        except BaseExceptionGroup as failures:
            # Several calls in flight may have met the same refusal; one of them says it.
            raise failures.exceptions[0] from None

    async def _answer_one(self, request: Request) -> Answer:
        failures = unreadable = tokens_in = tokens_out = 0
        while True:
            calls = failures + unreadable + 1
            try:
                reply, seconds = await self._call(request, unreadable)
                answer = self._read(request, reply)
            except (_CallError, MalformedError) as failure:
                failures += 1
                again = failure.again and failures < self._settings.max_attempts
                if not again:
                    return Answer(
                        request,
                        Status.ERROR,
                        tokens_in=tokens_in,
                        tokens_out=tokens_out,
                        attempts=calls,
                        error=self._clean(str(failure)),
                        transient=failure.again,
                    )
                await asyncio.sleep(backoff(failures, getattr(failure, "after", None), self._chance))
                continue
            tokens_in, tokens_out = tokens_in + reply.tokens_in, tokens_out + reply.tokens_out
            if answer.status == Status.PARSE_FAILURE and unreadable + 1 < self._settings.parse_attempts:
                unreadable += 1
                continue
            return replace(answer, tokens_in=tokens_in, tokens_out=tokens_out, latency_s=seconds, attempts=calls)

    async def _call(self, request: Request, repetition: int) -> tuple[Reply, float]:
        """One call and its seconds. Raises _CallError or MalformedError for this call, RlaifError for all calls."""
        payload = self._payload(request, repetition)
        estimate = len(payload["messages"][0]["content"]) / 4 + payload["max_tokens"]
        await self._requests.take()
        await self._tokens.take(estimate)
        while (pause := self._resume_at - self._loop.time()) > 0:
            await asyncio.sleep(pause)
        start = self._loop.time()
        try:
            # The client's own timeout is for each read: a server that sends a byte now and then would hold it for ever.
            async with asyncio.timeout(self._settings.timeout_s):
                raw = await self._client.chat.completions.with_raw_response.create(**payload)
                text = raw.http_response.text
        except (TimeoutError, openai.APITimeoutError) as error:
            raise _CallError(f"no answer within {self._settings.timeout_s:g} s", again=True) from error
        except openai.APIStatusError as error:
            raise self._refusal(error) from None
        except openai.APIConnectionError as error:
            cause = error.__cause__ or error
            raise _CallError(
                f"no connection to {self._settings.base_url} ({type(cause).__name__})", again=True
            ) from error
        finally:
            self._answered.set()
        reply = read_reply(text)
        self._tokens.correct(reply.tokens_in + reply.tokens_out - estimate if reply.tokens_in else 0)
        return reply, self._loop.time() - start

    def _payload(self, request: Request, repetition: int) -> dict[str, Any]:
        settings = self._settings
        pair = request.pair
        text = self._judge.render(pair.prompt, request.first, request.second, pair.pair_id, WELL_KNOWN_SPECIALS)
        payload: dict[str, Any] = {
            "model": self._judge.model,
            "messages": [{"role": "user", "content": text}],
            "temperature": settings.temperature,
            "top_p": settings.top_p,
        }
        if settings.mode == "pairwise_logprobs":
            payload |= {"max_tokens": 1, "logprobs": True, "top_logprobs": settings.top_logprobs}
        else:
            payload["max_tokens"] = settings.max_new_tokens
            if settings.temperature > 0:
                payload["seed"] = request.sampling_seed + repetition
            if settings.structured:
                payload["response_format"] = _verdict_format(settings.answers)
        if settings.extra_body:
            payload["extra_body"] = settings.extra_body
        return payload

    def _read(self, request: Request, reply: Reply) -> Answer:
        raw = self._clean(reply.content)
        if reply.refusal is not None:
            return Answer(request, Status.ABSTAIN, raw=raw, rationale=self._clean(reply.refusal))
        if self._settings.mode == "pairwise_logprobs":
            if reply.top is None:
                raise MalformedError("the server sends no log-probs: set mode to pairwise_verdict", again=False)
            logprobs = answer_logprobs(reply.top, self._settings.answers)
            found = preference_from_logprobs(*logprobs, self._settings.min_mass)
            return Answer(request, found.status, found.p_first, found.mass, raw=raw)
        verdict = parse_verdict(reply.content, self._settings.answers)
        if verdict is None:
            return Answer(request, Status.PARSE_FAILURE, raw=raw)
        status = Status.TIE if verdict.choice == "tie" else Status.SCORED
        return Answer(request, status, _P_FIRST[verdict.choice], raw=raw, rationale=self._clean(verdict.rationale))

    def _refusal(self, error: openai.APIStatusError) -> Exception:
        """What a status other than 200 means: RlaifError where every further call would meet the same."""
        who, status = f"Judge {self._judge.name}: the server {self._settings.base_url}", error.status_code
        said = self._clean(error.response.text)[:200]
        if status in (401, 403):
            variable = self._settings.api_key_env
            remedy = f"check the key in ${variable}" if variable else "set api_key_env to the variable with the key"
            return UsageError(f"{who} refused the call ({status}): {remedy}.")
        if status == 404:
            return UsageError(f"{who} answers 404 for the model {self._judge.model!r}: check model and base_url.")
        if status == 429 and "insufficient_quota" in said:
            return RlaifError(f"{who} says that the account is exhausted ({said}): top it up and run again.")
        after = retry_after(error.response.headers)
        if after is not None and status in (429, 503):
            self._resume_at = max(self._resume_at, self._loop.time() + after)
        return _CallError(f"status {status}: {said}", again=status in _AGAIN or status >= 500, after=after)

    def _clean(self, text: str) -> str:
        """Text that may be stored: without the key, which a server may echo, and without lone surrogates or NUL."""
        if self._key:
            text = text.replace(self._key, "[key]")
        return text.encode("utf-8", "replace").decode().replace("\0", "\ufffd")


def _key(judge: str, variable: str | None) -> str:
    if variable is None:
        return ""
    key = os.environ.get(variable, "").strip()
    if not key:
        raise UsageError(f"Judge {judge} needs a key: set the environment variable {variable}.")
    return key


def _verdict_format(answers: tuple[str, str]) -> dict[str, Any]:
    schema = {
        "type": "object",
        "properties": {"reasoning": {"type": "string"}, "verdict": {"type": "string", "enum": [*answers, "tie"]}},
        "required": ["reasoning", "verdict"],
        "additionalProperties": False,
    }
    return {"type": "json_schema", "json_schema": {"name": "verdict", "strict": True, "schema": schema}}

"""The backend of judges behind a server that speaks OpenAI's chat completions: hosted, vLLM, llama.cpp, ...

Calls run in an event loop on a thread of their own, so many in flight as the judge allows. A failing call is repeated
with growing, jittered pauses, at least as long as the server asks (Retry-After), and then recorded as an error. While
the server is away nothing is sent but a try now and then, and no call's attempts are used up. What no repetition can
mend (a refused key, an unknown model, an exhausted account) ends the run at the first call: until one call came back,
no second one is made.

Of several servers, replicas of one model, each call goes to the one with the fewest in flight; one that is away is left
out until it is back, and its calls go to the others. Only when all are away is the server away.
"""

from __future__ import annotations

import asyncio
import queue
import random
import threading
from collections.abc import Coroutine, Generator, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any, ClassVar, TypeVar

from judges.backends.base import Call, Choice, Reply, Text, Want
from judges.backends.breaker import AwayError, Breaker
from judges.backends.limits import Pace, backoff
from judges.backends.replicas import Replica, Replicas
from judges.backends.reply import CallError, Completion, option_logprobs
from judges.judge import Judge
from judges.prompts import WELL_KNOWN_SPECIALS
from judges.settings import OpenAISettings
from store.errors import RlaifError, TransientError

_RAMP_S = 0.25
"""Time over which the first calls are spread. Sent at once they come back at once, round after round, and wait for each
other here and in the server."""

_FEED = 32  # calls handed to the loop at a time: the first is under way while the next are being rendered
T = TypeVar("T")


@dataclass
class _Job:
    """A call and what it took so far. `failures` are those that count; `attempts` are all calls made."""

    call: Call
    attempts: int = 0
    failures: int = 0
    unreadable: int = 0
    tokens_in: int = 0
    tokens_out: int = 0
    failed_at: Replica | None = None


Out = queue.SimpleQueue[Reply | None]


class OpenAIBackend:
    """Raises UsageError where the key's environment variable is not set."""

    wants: ClassVar[tuple[type[Want], ...]] = (Choice, Text)
    specials = WELL_KNOWN_SPECIALS

    def __init__(self, judge: Judge) -> None:
        self._judge, self._settings = judge, judge.settings_as(OpenAISettings)
        self._server = Replicas(judge.name, judge.model, self._settings)
        self._pace = Pace(self._settings.requests_per_minute, self._settings.tokens_per_minute)
        self._chance = random.Random()  # noqa: S311  jitter
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name=f"judge {judge.name}", daemon=True)
        self._thread.start()
        self._in_loop(self._server.open())

    def answer(self, calls: Iterable[Call]) -> Generator[Reply, None, None]:
        """Replies as they come. TransientError where the server is away for longer than `outage_patience_s`.

        Calls are pulled and rendered in the caller's thread. Of those pulled, so many at most are without a reply, or
        have one that the caller did not take yet, as two times `concurrency` (or `outage_after`, if that is more): a
        slow caller is not run ahead of.
        """
        # With no fewer calls at hand than this, an outage is told from a request that the server cannot bear.
        window = 2 * max(self._settings.concurrency, self._settings.outage_after)
        fresh = (_Job(call) for call in calls if not call.answered)
        jobs: asyncio.Queue[_Job] = asyncio.Queue()
        out: Out = queue.SimpleQueue()
        work = asyncio.run_coroutine_threadsafe(self._work(jobs, out), self._loop)
        work.add_done_callback(lambda _: out.put(None))
        waiting = 0
        try:
            while True:
                batch = list(islice(fresh, min(_FEED, window - waiting)))
                if batch:
                    self._loop.call_soon_threadsafe(_put, jobs, batch)
                    waiting += len(batch)
                if not waiting:
                    return
                if len(batch) == _FEED and out.empty():
                    continue
                for reply in _taken(out):
                    if reply is None:
                        work.result()
                        raise RlaifError(f"Judge {self._judge.name}: its calls ended before all were answered.")
                    waiting -= 1
                    yield reply
        finally:
            # Also when the caller stops asking: no further call may be paid for.
            work.cancel()

    def close(self) -> None:
        self._in_loop(self._server.close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _in_loop(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    async def _work(self, jobs: asyncio.Queue[_Job], out: Out) -> None:
        breaker = Breaker(self._settings.outage_after, self._settings.outage_patience_s)

        async def worker(number: int) -> None:
            if number:
                await self._server.reached.wait()
                await asyncio.sleep(_RAMP_S * number / self._settings.concurrency)
            while True:
                job = await jobs.get()
                reply = await self._advance(job, breaker)
                if reply is None:
                    jobs.put_nowait(job)
                else:
                    out.put(reply)

        try:
            async with asyncio.TaskGroup() as group:
                for number in range(self._settings.concurrency):
                    group.create_task(worker(number))
        except BaseExceptionGroup as failures:
            # Several calls in flight may have met the same refusal; one of them says it.
            first = failures.exceptions[0]
            if isinstance(first, AwayError):
                several = self._settings.addresses
                which = f"server {several[0]} has" if len(several) == 1 else f"{len(several)} servers have all"
                raise TransientError(
                    f"Judge {self._judge.name}: the judge's {which} been away for "
                    f"{first.seconds:.0f} s ({first.last}): all answers so far are kept; run again when it is back."
                ) from None
            raise first from None

    async def _advance(self, job: _Job, breaker: Breaker) -> Reply | None:
        """Make the job's next call, pause where it failed; its reply, or None where it needs another call."""
        payload = self._payload(job)
        estimate = len(job.call.text) / 4 + self._most_tokens(job.call)
        try:
            await self._admit(breaker, estimate)
        except AwayError as away:
            if away.alone:
                return self._error(job, away.last, transient=True)
            raise
        job.attempts += 1
        start = self._loop.time()
        replica = self._server.choose(avoid=job.failed_at)
        try:
            completion = await self._server.complete(replica, payload)
            reply = self._reply(job, completion, self._loop.time() - start)
        except CallError as failure:
            return await self._failed(job, failure, replica, breaker)
        self._server.succeeded(replica)
        breaker.succeeded()
        if completion.tokens_in:
            self._pace.correct(completion.tokens_in + completion.tokens_out - estimate)
        return reply

    async def _admit(self, breaker: Breaker, tokens: float) -> None:
        while True:
            while breaker.holds:
                await breaker.ready()
            await self._pace.take(tokens)
            if not breaker.holds:
                return
            self._pace.give_back(tokens)

    async def _failed(self, job: _Job, failure: CallError, replica: Replica, breaker: Breaker) -> Reply | None:
        why = self._server.clean(str(failure))
        held = breaker.is_open
        job.failed_at = replica
        if failure.away:
            self._server.failed(replica)
            if not self._server.has_other(replica):
                breaker.failed(job.call.id, why, failure.after)
            if held:
                return None  # the server's fault, not the call's
        else:
            self._server.succeeded(replica)
            breaker.succeeded()
        after = failure.after
        if after is not None and self._server.has_other(replica):
            self._server.rest(replica, after)
            after = None  # the call itself need not wait: it goes elsewhere
        elif after is not None:
            self._pace.pause(after)
        job.failures += 1
        if not failure.again or job.failures >= self._settings.max_attempts:
            return self._error(job, why, transient=failure.again)
        await asyncio.sleep(backoff(job.failures, after, self._chance))
        return None

    def _error(self, job: _Job, why: str, transient: bool) -> Reply:
        return Reply(
            job.call,
            tokens_in=job.tokens_in,
            tokens_out=job.tokens_out,
            attempts=job.attempts,
            error=why,
            transient=transient,
        )

    def _payload(self, job: _Job) -> dict[str, Any]:
        settings, want = self._settings, job.call.want
        payload: dict[str, Any] = {
            "model": self._judge.model,
            "messages": [{"role": "user", "content": job.call.text}],
            "temperature": settings.temperature,
            "top_p": settings.top_p,
            "max_tokens": self._most_tokens(job.call),
        }
        if isinstance(want, Choice):
            payload |= {"logprobs": True, "top_logprobs": settings.top_logprobs}
        elif isinstance(want, Text):
            if settings.temperature > 0:
                payload["seed"] = job.call.seed + job.unreadable
            if settings.structured and want.schema is not None:
                schema = {"name": "answer", "strict": True, "schema": want.schema}
                payload["response_format"] = {"type": "json_schema", "json_schema": schema}
        payload |= settings.extra_body
        return {key: value for key, value in payload.items() if value is not None}

    def _most_tokens(self, call: Call) -> int:
        return call.want.max_tokens if isinstance(call.want, Text) else 1

    def _reply(self, job: _Job, completion: Completion, seconds: float) -> Reply | None:
        """The reply in a completion; None for an unreadable text that may be asked for again. Raises CallError."""
        job.tokens_in += completion.tokens_in
        job.tokens_out += completion.tokens_out
        want, logprobs = job.call.want, None
        refusal = None if completion.refusal is None else self._server.clean(completion.refusal)
        if refusal is None and isinstance(want, Choice):
            if completion.top is None:
                raise CallError("the server sends no log-probs: choose a mode that answers in words", again=False)
            logprobs = option_logprobs(completion.top, want.options)
        if refusal is None and isinstance(want, Text) and not want.readable(completion.content):
            job.unreadable += 1
            if job.unreadable < self._settings.parse_attempts:
                return None
        return Reply(
            job.call,
            text=self._server.clean(completion.content),
            logprobs=logprobs,
            refusal=refusal,
            tokens_in=job.tokens_in,
            tokens_out=job.tokens_out,
            latency_s=seconds,
            attempts=job.attempts,
        )


def _put(jobs: asyncio.Queue[_Job], batch: list[_Job]) -> None:
    for job in batch:
        jobs.put_nowait(job)


def _taken(out: Out) -> Iterator[Reply | None]:
    """What is there; waits for the first."""
    yield out.get()
    while not out.empty():
        yield out.get()

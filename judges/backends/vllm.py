"""The backend of local models run by vLLM's offline engine, in a process of its own.

This side imports neither torch nor vLLM: it starts the process, hands it a cell of calls at a time (`Call.cell`), and
turns messages into replies. The memory of the engine is free once the judge is closed, and a crash of it is an error of
one sentence here. See `judges.backends.vllm_process` for the messages, `judges.backends.vllm_engine` for the engine.
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import tempfile
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from importlib.util import find_spec
from itertools import groupby
from pathlib import Path
from typing import BinaryIO, ClassVar, NoReturn

from judges.backends.base import INSTALL, Call, Choice, Reply, Text, Want
from judges.backends.vllm_process import MEMORY, MORE_MEMORY
from judges.judge import Judge
from judges.modes import Kind
from judges.prompts import WELL_KNOWN_SPECIALS
from judges.settings import VLLMSettings
from store.child import GRACE_S, Message, last_words, read, write
from store.errors import RlaifError, TransientError, UsageError


class VLLMBackend:
    """Raises UsageError where vLLM is not installed or cannot load the model, RlaifError where its process fails."""

    wants: ClassVar[tuple[type[Want], ...]] = (Choice, Text)

    def __init__(self, judge: Judge) -> None:
        self._judge, self._settings = judge, judge.settings_as(VLLMSettings)
        if find_spec("vllm") is None:
            raise UsageError(f"Judge {judge.name} needs the package vllm: {INSTALL['vllm']}.")
        self._batch, self._failed = 0, False
        descriptor, name = tempfile.mkstemp(prefix="rlaif-vllm-", suffix=".log")
        self._log = Path(name)
        with os.fdopen(descriptor, "wb") as log:
            self._process, self._to, self._from = _start(_environment(judge, self._settings), log)
        try:
            self._send(_setup(judge, self._settings))
            if not select.select([self._from], [], [], self._settings.start_timeout_s)[0]:
                raise self._failure(
                    f"was not ready after {self._settings.start_timeout_s:g} s", "raise start_timeout_s"
                )
            self._specials = [*WELL_KNOWN_SPECIALS, *self._receive()["specials"]]
        except BaseException:
            self._end(patience_s=0)
            raise

    @property
    def specials(self) -> Sequence[str]:
        return self._specials

    def answer(self, calls: Iterable[Call]) -> Generator[Reply, None, None]:
        for _, cell in groupby(calls, key=lambda call: call.cell):
            yield from self._answer_cell(list(cell))

    def close(self) -> None:
        # Asked to end by the closed pipe, it puts away its workers and shared memory.
        self._end(patience_s=GRACE_S + 5)

    def _answer_cell(self, cell: list[Call]) -> Iterator[Reply]:
        if all(call.answered for call in cell):
            return
        # Greedy decoding repeats itself: another call can only help where tokens are drawn.
        most = self._settings.parse_attempts if self._settings.temperature > 0 else 1
        before: dict[str, Reply] = {}
        for attempt in range(1, most + 1):
            unreadable = {}
            for reply in self._exchange(cell, attempt):
                call = reply.call
                if attempt > 1:
                    reply = _with_costs_of(before[call.id], reply)
                if attempt < most and _is_unreadable(reply):
                    unreadable[call.id] = reply
                elif not call.answered:
                    yield reply
            # In the cell's order, not in that of arrival: the next batch must be the same in every run.
            cell, before = [call for call in cell if call.id in unreadable], unreadable
            if not cell:
                return

    def _exchange(self, calls: list[Call], attempt: int) -> Iterator[Reply]:
        self._batch += 1
        self._send({"batch": self._batch, "calls": [_call_message(call, attempt) for call in calls]})
        while True:
            message = self._receive()
            if message["batch"] != self._batch:  # nobody waited for the end of an earlier one
                continue
            if message.get("end"):
                return
            yield _reply(calls[message["number"]], message, attempt)

    def _send(self, message: Message) -> None:
        try:
            write(self._to, message)
        except OSError:  # the process has ended; what it said last, or its log, tells why
            while True:
                self._receive()

    def _receive(self) -> Message:
        message = read(self._from)
        if message is None:
            self._explain_end()
        if "error" in message and "batch" not in message:
            raise (UsageError if message["kind"] == "usage" else RlaifError)(message["error"])
        return message

    def _explain_end(self) -> NoReturn:
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(GRACE_S)
        code = self._process.poll()
        if code == -signal.SIGKILL:
            raise self._failure("was killed, most often for want of memory", MORE_MEMORY, TransientError)
        if code is not None and code < 0:
            raise self._failure(f"was ended by {signal.Signals(-code).name}", "look into its log")
        if MEMORY.search(last_words(self._log)):
            raise self._failure("ran out of memory", MORE_MEMORY)
        raise self._failure("stopped", "correct what it names")

    def _failure(self, what: str, remedy: str, kind: type[RlaifError] = RlaifError) -> RlaifError:
        self._failed = True
        words = last_words(self._log)
        return kind(
            f"Judge {self._judge.name}: the process of vLLM {what}{f' ({words})' if words else ''}: {remedy}; "
            f"its log is {self._log}."
        )

    def _end(self, patience_s: float) -> None:
        for stream in (self._to, self._from):
            with suppress(OSError):
                stream.close()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(patience_s)
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        if not self._failed:
            self._log.unlink(missing_ok=True)


def _start(environment: dict[str, str], log: BinaryIO) -> tuple[subprocess.Popen[bytes], BinaryIO, BinaryIO]:
    """The process, the end that it hears and the end where it speaks."""
    its_in, to = os.pipe()
    back, its_out = os.pipe()
    try:
        process = subprocess.Popen(
            [sys.executable, "-m", "judges.backends.vllm_process", str(its_in), str(its_out)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=environment,
            pass_fds=(its_in, its_out),
            start_new_session=True,
        )
    finally:
        os.close(its_in)
        os.close(its_out)
    return process, os.fdopen(to, "wb"), os.fdopen(back, "rb")


def _environment(judge: Judge, settings: VLLMSettings) -> dict[str, str]:
    environment = {
        **os.environ,
        # No statistics of use are sent.
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        # The engine's core in its process, not in a further one: all calls of a batch are there before its first step.
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        # A forked worker would hold the pipes open after the death of one side.
        "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
        "VLLM_LOGGING_LEVEL": os.environ.get("VLLM_LOGGING_LEVEL", "WARNING"),
    }
    if Path(judge.model).is_dir():
        environment["HF_HUB_OFFLINE"] = "1"
    if settings.cpu_kv_cache_gib is not None:
        environment["VLLM_CPU_KVCACHE_SPACE"] = str(settings.cpu_kv_cache_gib)
    return environment


def _setup(judge: Judge, settings: VLLMSettings) -> Message:
    own = {
        "dtype": settings.dtype,
        "quantization": settings.quantization,
        "max_model_len": settings.max_model_len,
        "gpu_memory_utilization": settings.gpu_memory_utilization,
        "tensor_parallel_size": settings.tensor_parallel_size,
        "enforce_eager": settings.enforce_eager,
    }
    want = judge.mode.want(settings, 1 if judge.mode.kind == Kind.SINGLE else 2)
    return {
        "judge": judge.name,
        "model": judge.model,
        "revision": settings.revision,
        "engine_args": settings.engine_args | own,
        "sampling_args": settings.sampling_args,
        "temperature": settings.temperature,
        "structured": settings.structured,
        "chat_template_args": settings.chat_template_args,
        "options": want.options if isinstance(want, Choice) else (),
    }


def _call_message(call: Call, attempt: int) -> Message:
    want = call.want
    if isinstance(want, Choice):
        return {"text": call.text, "options": want.options}
    if isinstance(want, Text):
        seed = call.seed + attempt - 1
        return {"text": call.text, "max_tokens": want.max_tokens, "schema": want.schema, "seed": seed}
    raise TypeError(f"A language model cannot serve {type(want).__name__}.")


def _reply(call: Call, message: Message, attempt: int) -> Reply:
    logprobs = message.get("logprobs")
    return Reply(
        call,
        text=message.get("text"),
        logprobs=tuple(logprobs) if logprobs is not None else None,
        tokens_in=message.get("tokens_in", 0),
        tokens_out=message.get("tokens_out", 0),
        latency_s=message.get("seconds", 0.0),
        attempts=attempt,
        error=message.get("error"),
    )


def _with_costs_of(earlier: Reply, reply: Reply) -> Reply:
    return replace(
        reply,
        tokens_in=earlier.tokens_in + reply.tokens_in,
        tokens_out=earlier.tokens_out + reply.tokens_out,
        latency_s=earlier.latency_s + reply.latency_s,
    )


def _is_unreadable(reply: Reply) -> bool:
    want = reply.call.want
    return isinstance(want, Text) and reply.error is None and not want.readable(reply.text or "")

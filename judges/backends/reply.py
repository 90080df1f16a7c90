"""Reading a chat completion as it came over the wire. Servers differ and break: no shape is assumed."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import Any

_MARKS = " \t\n\u2581\u0120"  # a space, as text or as tokenizers write it: some servers report tokens undecoded


class MalformedError(Exception):
    """The reply is not what was asked for. `again`: whether another call may bring a good one."""

    def __init__(self, message: str, again: bool) -> None:
        super().__init__(message)
        self.again = again


@dataclass(frozen=True)
class Reply:
    """`top`: the likeliest first tokens with their log-probs in nats, or None where the server sent none."""

    content: str
    refusal: str | None
    top: list[tuple[str, float]] | None
    tokens_in: int
    tokens_out: int


def read_reply(text: str) -> Reply:
    """Raises MalformedError for what is no JSON, has no choice, or has log-probs of another shape."""
    try:
        body = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise MalformedError(f"the server's answer is no JSON: {text[:80]!r}", again=True) from error
    choices = body.get("choices") if isinstance(body, dict) else None
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        raise MalformedError(f"the server's answer has no choices: {text[:80]!r}", again=True)
    message = choices[0].get("message")
    if not isinstance(message, dict):
        raise MalformedError("the server's answer has no message", again=True)
    content, refusal = message.get("content"), message.get("refusal")
    if choices[0].get("finish_reason") == "content_filter":
        refusal = refusal or "stopped by the server's content filter"
    usage = body.get("usage")
    usage = usage if isinstance(usage, dict) else {}
    return Reply(
        content if isinstance(content, str) else "",
        refusal if isinstance(refusal, str) and refusal else None,
        _top(choices[0].get("logprobs")),
        _count(usage.get("prompt_tokens")),
        _count(usage.get("completion_tokens")),
    )


def answer_logprobs(top: list[tuple[str, float]], answers: tuple[str, str]) -> tuple[float, float]:
    """Log of the summed probabilities of the listed tokens that spell each answer; -inf for an unlisted answer.

    An unlisted answer is less likely than every listed token, so that what is lost is below the smallest listed.
    """
    first, second = (
        math.fsum(math.exp(logprob) for token, logprob in top if token.strip(_MARKS) == answer.strip())
        for answer in answers
    )
    return (math.log(first) if first else -math.inf), (math.log(second) if second else -math.inf)


def _top(logprobs: Any) -> list[tuple[str, float]] | None:
    if logprobs is None:
        return None
    try:
        listed = [(entry["token"], float(entry["logprob"])) for entry in logprobs["content"][0]["top_logprobs"]]
    except (TypeError, KeyError, IndexError, ValueError) as error:
        raise MalformedError("the server's log-probs have another shape than chat completions'", again=False) from error
    if not all(isinstance(token, str) and logprob <= 1e-3 for token, logprob in listed):
        raise MalformedError("the server's log-probs are no log-probabilities", again=False)
    # A token listed twice (once as the chosen one) must not count twice.
    return list(dict(listed).items())


def _count(value: Any) -> int:
    return value if isinstance(value, int) and value > 0 else 0

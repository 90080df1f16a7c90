"""Reading a chat completion as it came over the wire. Servers differ and break: no shape is assumed."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

_MARKS = " \t\n\u2581\u0120"  # a space, as text or as tokenizers write it: some servers report tokens undecoded


class CallError(Exception):
    """One call failed; the message says why, for people.

    `again`: whether the same call may succeed later. `after`: seconds that the server asked to wait. `away`: whether it
    looks as if no call could succeed now, because the server is not there or broken.
    """

    def __init__(self, message: str, *, again: bool, after: float | None = None, away: bool = False) -> None:
        super().__init__(message)
        self.again, self.after, self.away = again, after, away


@dataclass(frozen=True)
class Completion:
    """`top`: the likeliest first tokens with their log-probs in nats, or None where the server sent none."""

    content: str
    refusal: str | None
    top: list[tuple[str, float]] | None
    tokens_in: int
    tokens_out: int


def read_completion(text: str) -> Completion:
    """Raises CallError for what is no JSON, has no choice, or has log-probs of another shape."""
    try:
        body = json.loads(text)
    except (ValueError, RecursionError) as error:
        what = "is a web page" if text.lstrip().startswith("<") else "is no JSON"
        raise CallError(f"the server's answer {what}: {text[:80]!r}", again=True) from error
    choices = body.get("choices") if isinstance(body, dict) else None
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        raise CallError(f"the server's answer has no choices: {text[:80]!r}", again=True)
    message = choices[0].get("message")
    if not isinstance(message, dict):
        raise CallError("the server's answer has no message", again=True)
    content, refusal = message.get("content"), message.get("refusal")
    if choices[0].get("finish_reason") == "content_filter":
        refusal = refusal or "stopped by the server's content filter"
    usage = body.get("usage")
    usage = usage if isinstance(usage, dict) else {}
    return Completion(
        content if isinstance(content, str) else "",
        refusal if isinstance(refusal, str) and refusal else None,
        _top(choices[0].get("logprobs")),
        _count(usage.get("prompt_tokens")),
        _count(usage.get("completion_tokens")),
    )


def option_logprobs(top: Sequence[tuple[str, float]], options: Sequence[str]) -> tuple[float, ...]:
    """Log of the summed probabilities of the listed tokens that spell each option; -inf for an unlisted one.

    An unlisted option is less likely than every listed token, so that what is lost is below the smallest listed.
    """
    sums = dict.fromkeys((option.strip() for option in options), 0.0)
    for token, logprob in top:
        spelt = token.strip(_MARKS)
        if spelt in sums:
            sums[spelt] += math.exp(logprob)
    return tuple(math.log(sums[option.strip()]) if sums[option.strip()] else -math.inf for option in options)


def _top(logprobs: Any) -> list[tuple[str, float]] | None:
    if logprobs is None:
        return None
    try:
        # A token listed twice (once as the chosen one) must not count twice.
        listed = {entry["token"]: float(entry["logprob"]) for entry in logprobs["content"][0]["top_logprobs"]}
    except (TypeError, KeyError, IndexError, ValueError) as error:
        raise CallError("the server's log-probs have another shape than chat completions'", again=False) from error
    # Rounding may lift a certain token a little above zero. A NaN compares false and is refused.
    if not all(isinstance(token, str) and logprob <= 1e-3 for token, logprob in listed.items()):
        raise CallError("the server's log-probs are no log-probabilities", again=False)
    return list(listed.items())


def _count(value: Any) -> int:
    return value if isinstance(value, int) and value > 0 else 0

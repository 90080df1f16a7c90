"""vLLM's engine as a judge needs it: log-probs of given tokens, and texts, a batch at a time and the same every time.

Runs in a process of its own; see `judges.backends.vllm_process`. The engine's core runs in that process too: calls are
all added before the first step, so that the same batch is always cut into the same steps. The cache of prompt prefixes
is emptied between batches: within one, both orders of a pair and the judge's instructions share what is computed; from
one to the next, a reply must not depend, not even in its last bit, on what happened to be asked before.
"""

from __future__ import annotations

import math
import time
import traceback
from collections.abc import Callable, Iterator
from typing import Any

from transformers import AutoTokenizer
from vllm import EngineArgs, LLMEngine, RequestOutput, SamplingParams
from vllm.inputs import tokens_input
from vllm.platforms import current_platform
from vllm.sampling_params import MAX_LOGPROB_TOKEN_IDS, RequestOutputKind, StructuredOutputsParams

from judges.backends.local.encoding import encode, in_chat, too_long
from judges.backends.local.model import answer_tokens, special_tokens
from judges.backends.vllm_process import MEMORY, MORE_MEMORY
from store.errors import RlaifError, UsageError


class Engine:
    """Raises UsageError where vLLM cannot load the model or does not know an argument, RlaifError for want of memory.

    `setup`: `judge` (its name), `model`, `revision`, `engine_args`, `sampling_args`, `temperature`, `structured` and
    `chat_template_args`, as in VLLMSettings, and `options`, the answers that the judge's mode reads.
    """

    def __init__(self, setup: dict[str, Any]) -> None:
        self._setup, self._judge = setup, setup["judge"]
        self._tokens: dict[tuple[str, ...], list[list[int]]] = {}
        try:
            self._tokenizer = AutoTokenizer.from_pretrained(setup["model"], revision=setup["revision"])
            # What can be wrong is looked at before the weights are loaded.
            self._text_params({"max_tokens": 1, "seed": 0, "schema": None})
            self._option_tokens(setup["options"])
            self._engine = LLMEngine.from_engine_args(_engine_args(setup))
        except (OSError, ValueError, TypeError, KeyError, AssertionError, NotImplementedError) as error:
            traceback.print_exc()
            said = _first_line(error)
            if MEMORY.search(said):
                raise RlaifError(f"Judge {self._judge}: vLLM lacks memory ({said}): {MORE_MEMORY}.") from error
            raise UsageError(
                f"Judge {self._judge}: vLLM cannot load the model {setup['model']} ({said}): check model, revision, "
                f"dtype, quantization, engine_args and sampling_args."
            ) from error
        self._limit = self._engine.model_config.max_model_len
        self.specials = special_tokens(self._tokenizer)

    def answer(self, calls: list[dict[str, Any]], replaced: Callable[[], bool]) -> Iterator[dict[str, Any]]:
        """A reply for each call, when it is there. Stops, and drops what is unfinished, once `replaced` says so.

        A call is `text`, and either `options` or `max_tokens`, `schema` and `seed`. A reply has `number`, the place of
        its call, and `error`, or `text`, `tokens_in`, `tokens_out`, `seconds` and, for options, `logprobs`.
        """
        self._engine.reset_prefix_cache()
        since = time.monotonic()
        waiting: dict[str, dict[str, Any]] = {}
        unfit = []
        chat = self._setup["chat_template_args"]
        encoded = encode(self._tokenizer, [in_chat(self._tokenizer, call["text"], chat) for call in calls])
        for number, (call, ids) in enumerate(zip(calls, encoded, strict=True)):
            room = call.get("max_tokens", 1)
            if len(ids) + room > self._limit:
                unfit.append({"number": number, "error": too_long(len(ids), room, self._limit)})
                continue
            params = self._choice_params(call) if "options" in call else self._text_params(call)
            waiting[str(number)] = call
            self._engine.add_request(str(number), tokens_input(ids), params)
        while waiting:
            if replaced():
                self._engine.abort_request(list(waiting))
                return
            finished = [output for output in self._engine.step() if output.finished]
            now = time.monotonic()
            for output in finished:
                yield self._reply(waiting.pop(output.request_id), output) | {"seconds": (now - since) / len(finished)}
            since = now if finished else since
        # Last, although they were known first: the panel stops a judge by its rate of errors so far.
        yield from unfit

    def _reply(self, call: dict[str, Any], output: RequestOutput) -> dict[str, Any]:
        (found,) = output.outputs
        reply = {
            "number": int(output.request_id),
            "text": found.text,
            "tokens_in": len(output.prompt_token_ids),
            "tokens_out": len(found.token_ids),
        }
        if "options" not in call:
            return reply
        (first,) = found.logprobs
        logprobs = [
            _log_sum([first[token].logprob for token in tokens]) for tokens in self._option_tokens(call["options"])
        ]
        if any(map(math.isnan, logprobs)):
            error = "the model's output is not a number: its weights or its dtype are at fault"
            return {"number": reply["number"], "tokens_in": reply["tokens_in"], "error": error}
        return reply | {"logprobs": logprobs}

    def _choice_params(self, call: dict[str, Any]) -> SamplingParams:
        tokens = sorted({token for tokens in self._option_tokens(call["options"]) for token in tokens})
        if len(tokens) > MAX_LOGPROB_TOKEN_IDS:
            raise UsageError(
                f"Judge {self._judge}: its answers are {len(tokens)} tokens, vLLM reports {MAX_LOGPROB_TOKEN_IDS} at "
                f"most: choose fewer."
            )
        return SamplingParams(
            max_tokens=1, temperature=0, logprob_token_ids=tokens, output_kind=RequestOutputKind.FINAL_ONLY
        )

    def _text_params(self, call: dict[str, Any]) -> SamplingParams:
        temperature, schema = self._setup["temperature"], call["schema"] if self._setup["structured"] else None
        return SamplingParams.from_optional(
            **self._setup["sampling_args"],
            max_tokens=call["max_tokens"],
            temperature=temperature,
            seed=call["seed"] if temperature > 0 else None,
            structured_outputs=StructuredOutputsParams(json=schema) if schema else None,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )

    def _option_tokens(self, options: list[str]) -> list[list[int]]:
        key = tuple(options)
        if key not in self._tokens:
            self._tokens[key] = answer_tokens(self._tokenizer, key, self._judge)
        return self._tokens[key]


def _engine_args(setup: dict[str, Any]) -> EngineArgs:
    values: dict[str, Any] = {
        # Weights from safetensors only, and no code from the model's repository.
        "load_format": "safetensors",
        "enable_prefix_caching": True,
        "disable_log_stats": True,
        "seed": 0,
        # Without it, a model that likes white space fills its answer with what a schema allows between two keys.
        "structured_outputs_config": {"backend": "xgrammar", "disable_any_whitespace": True},
    }
    if current_platform.is_cpu():
        # Where a prompt is cut in two, vLLM sets the seeded generator of its row back, which a CPU's cannot be.
        values["enable_chunked_prefill"] = False
    return EngineArgs(**{**values, **setup["engine_args"], "model": setup["model"], "revision": setup["revision"]})


def _log_sum(logprobs: list[float]) -> float:
    highest = max(logprobs)
    if highest == -math.inf or any(map(math.isnan, logprobs)):
        return math.nan if any(map(math.isnan, logprobs)) else -math.inf
    return highest + math.log(math.fsum(math.exp(logprob - highest) for logprob in logprobs))


def _first_line(error: Exception) -> str:
    """What the error says; of a validation error, what was found, not that something was."""
    details = getattr(error, "errors", None)
    said = "; ".join(str(one["msg"]) for one in details()) if callable(details) else str(error)
    return next(iter(said.splitlines()), "").rstrip(".:") or type(error).__name__

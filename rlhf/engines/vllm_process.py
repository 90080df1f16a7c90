"""The process of the rollout engine vLLM: `python -m rlhf.engines.vllm_process IN OUT`; see store.child.

The first message says what to load; its answer, how many tokens fit. Then each is one of

    {"do": "generate", "prompts", "seeds", "decoding", "stop_ids"}   {"do": "sync", "path"}
    {"do": "sleep", "level"}   {"do": "wake", "tags"}

and is answered by {"done": n} now and then, which says that it lives, and at last by {"end": true, ...}.
"""

from __future__ import annotations

import queue
import re
import shutil
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

from store.child import Message, serve, write
from store.errors import RlaifError, TransientError, UsageError

BEAT_S = 1.0
"""Between two signs of life."""

_MEMORY = re.compile(
    r"out of memory|OutOfMemory|cannot allocate memory|MemoryError|KV cache|cache blocks|free memory", re.IGNORECASE
)
_MORE_MEMORY = (
    "give it more (gpu_memory_utilization, tensor_parallel_size, cpu_kv_cache_gib), or lower max_model_len or "
    "max_num_seqs"
)


class Engine:
    """vLLM's engine, driven a batch at a time. Only this class imports it."""

    def __init__(self, setup: Message) -> None:
        from vllm import EngineArgs, LLMEngine
        from vllm.platforms import current_platform

        values: dict[str, Any] = {name: value for name, value in setup.items() if value is not None}
        # Weights from safetensors only, and no code from the model's repository; ids in, ids out.
        values |= {"load_format": "safetensors", "skip_tokenizer_init": True, "generation_config": "vllm"}
        values |= {"enable_prefix_caching": True, "disable_log_stats": True, "seed": 0}
        values["worker_extension_cls"] = "rlhf.engines.vllm_worker.WorkerExtension"
        if current_platform.is_cpu():
            # Where a prompt is cut in two, vLLM sets the seeded generator of its row back, which a CPU's cannot be.
            values["enable_chunked_prefill"] = False
        try:
            self._engine = LLMEngine.from_engine_args(EngineArgs(**values))
        except (OSError, ValueError, TypeError, KeyError, AssertionError, NotImplementedError, RuntimeError) as error:
            traceback.print_exc()
            said = _first_line(error)
            if _MEMORY.search(said):
                raise RlaifError(f"it lacks memory ({said}): {_MORE_MEMORY}.") from error
            raise UsageError(
                f"it cannot load {setup['model']} ({said}): check the model and the settings under vllm."
            ) from error
        self.context: int = self._engine.model_config.max_model_len
        self.folder: Path | None = None

    def generate(self, message: Message, beat: Callable[[int], None]) -> Message:
        from vllm import SamplingParams
        from vllm.inputs import tokens_input
        from vllm.sampling_params import RequestOutputKind

        decoding = message["decoding"]
        for number, (prompt, seed) in enumerate(zip(message["prompts"], message["seeds"], strict=True)):
            params = SamplingParams(
                temperature=decoding["temperature"],
                top_p=decoding["top_p"],
                top_k=decoding["top_k"],
                max_tokens=decoding["max_new_tokens"],
                seed=seed,
                # Exactly the stop tokens that were asked for, whatever the model's files name.
                stop_token_ids=message["stop_ids"],
                ignore_eos=True,
                logprobs=0,  # of the sampled token alone
                detokenize=False,
                output_kind=RequestOutputKind.FINAL_ONLY,
            )
            self._engine.add_request(str(number), tokens_input(prompt), params)
        responses: list[Message] = [{}] * len(message["prompts"])
        done = 0
        while self._engine.has_unfinished_requests():
            for output in self._engine.step():
                if output.finished:
                    responses[int(output.request_id)] = _response(output.outputs[0])
                    done += 1
            beat(done)
        return {"responses": responses}

    def sync(self, message: Message, beat: Callable[[int], None]) -> Message:
        path = Path(message["path"])
        self.folder = path.parent
        self._engine.collective_rpc("reload_weights", kwargs={"weights_path": str(path)})
        self._engine.collective_rpc("refresh_heads")
        # Keys and values of the old weights.
        if not self._engine.reset_prefix_cache():
            raise RlaifError("its cache of prompts could not be emptied after a push of weights: run again.")
        return {}

    def sleep(self, message: Message, beat: Callable[[int], None]) -> Message:
        self._engine.sleep(level=message["level"])
        return {}

    def wake(self, message: Message, beat: Callable[[int], None]) -> Message:
        self._engine.wake_up(tags=message["tags"])
        return {}


def _response(found: Any) -> Message:
    if found.finish_reason not in ("stop", "length"):
        raise TransientError(f"it ended a response for the reason {found.finish_reason!r}: run again.")
    ids = list(found.token_ids)
    logprobs = [step[token].logprob for token, step in zip(ids, found.logprobs, strict=True)]
    return {"ids": ids, "logprobs": logprobs, "finish_reason": found.finish_reason}


def _first_line(error: Exception) -> str:
    """What the error says; of a validation error, what was found, not that something was."""
    details = getattr(error, "errors", None)
    said = "; ".join(str(one["msg"]) for one in details()) if callable(details) else str(error)
    return next(iter(said.splitlines()), "").rstrip(".:") or type(error).__name__


class _Process:
    def __init__(self) -> None:
        self.engine: Engine | None = None

    def work(self, inbox: queue.Queue[Message | None], replies: BinaryIO) -> None:
        setup = inbox.get()
        if setup is None:
            return
        self.engine = Engine(setup)
        write(replies, {"end": True, "context": self.engine.context})
        while (message := inbox.get()) is not None:
            last = time.monotonic()

            def beat(done: int) -> None:
                nonlocal last
                if time.monotonic() - last >= BEAT_S:
                    last = time.monotonic()
                    write(replies, {"done": done})

            do = {name: getattr(self.engine, name) for name in ("generate", "sync", "sleep", "wake")}
            write(replies, {"end": True, **do[message["do"]](message, beat)})

    def tidy(self) -> None:
        """The parent is gone and can no longer remove the weights that it pushed through the machine's memory."""
        if self.engine is not None and self.engine.folder is not None:
            shutil.rmtree(self.engine.folder, ignore_errors=True)


if __name__ == "__main__":
    process = _Process()
    sys.exit(serve(process.work, process.tidy))

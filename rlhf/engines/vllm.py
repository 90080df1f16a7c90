"""The engine `vllm`: vLLM generates in a process of its own, with weights that are pushed to it after each update.

vLLM (Kwon et al. 2023, arXiv 2309.06180) keeps keys and values in pages and batches continuously (Yu et al. 2022, OSDI)
with kernels of its own. So its arithmetic is not the trainer's to the last bit; see `RolloutEngine.exact`.

This side imports no vLLM: it starts the process and talks with it (store.child). The other side is
rlhf.engines.vllm_process.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import torch

from rlhf.config import VLLM, Decoding
from rlhf.devices import Compute
from rlhf.engines.base import Done
from rlhf.engines.weights import Pushed
from rlhf.generation import Generated
from rlhf.models import Model
from store.child import Child
from store.errors import UsageError

INSTALL = "pip install 'rlaif[vllm]'"
NAME = "The rollout engine vllm"
SLEEP_LEVEL = 2
"""Weights are dropped and not kept in the machine's memory: new ones are pushed before the engine is needed again."""


class VLLMEngine:
    """model: the folder or hub name that the engine starts from. compute: of the trainer; with several processes the
    main one alone has an engine, and hands the responses to the others.

    logprobs: `sampling`, each token's at the sampling temperature, as PPO needs them; or `plain`, log p(y|x) at
    temperature 1. Raises UsageError where vLLM is not installed, cannot load the model, or is asked for what the device
    cannot do.
    """

    exact = False

    def __init__(
        self,
        model: str,
        settings: VLLM,
        compute: Compute,
        dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto",
        logprobs: Literal["sampling", "plain"] = "sampling",
    ) -> None:
        if find_spec("vllm") is None:
            raise UsageError(f"engine vllm needs the package vllm: {INSTALL}.")
        if compute.sharded:
            raise UsageError("engine vllm takes whole weights, with sharding fsdp there are none: set sharding none.")
        if settings.sleep and compute.device.type != "cuda":
            raise UsageError(
                f"vllm.sleep gives up the memory of a GPU, this run computes on {compute.device.type}: set it to false."
            )
        self._settings, self._world = settings, compute.world
        self._dtype = compute.dtype if dtype == "auto" else getattr(torch, dtype)
        self._logprobs = logprobs
        self._pushed = Pushed()
        self._asleep = False
        self._child: Child | None = None
        if not self._world.is_main:
            return
        self._child = Child("rlhf.engines.vllm_process", _environment(model, settings), NAME)
        try:
            ready = self._ask(_setup(model, settings, self._dtype, logprobs), settings.start_timeout_s)
            self._context: int = ready["context"]
        except BaseException:
            self.close()
            raise

    def sync(self, policy: Model) -> None:
        if not self._world.is_main:
            return
        self.wake()
        target = self._pushed.write(policy, self._dtype)
        try:
            self._ask({"do": "sync", "path": str(target)})
        finally:
            self._pushed.forget(target)
        if self._asleep:
            self._ask({"do": "wake", "tags": ["kv_cache"]})
            self._asleep = False

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        seeds: Sequence[int],
        decoding: Decoding,
        stop_ids: frozenset[int],
        on_done: Done | None = None,
    ) -> list[Generated]:
        return self._world.once(lambda: self._generate(prompts, seeds, decoding, stop_ids, on_done))

    def sleep(self) -> None:
        if self._settings.sleep and self._world.is_main and not self._asleep:
            self._ask({"do": "sleep", "level": SLEEP_LEVEL})
            self._asleep = True

    def wake(self) -> None:
        if self._asleep:
            # What torch has freed but keeps for itself is not there for the other process.
            torch.cuda.empty_cache()
            self._ask({"do": "wake", "tags": ["weights"]})

    def close(self) -> None:
        if self._child is not None:
            self._child.end()
        self._child = None
        self._pushed.close()

    @property
    def pid(self) -> int | None:
        """Of the engine's process, and of its group; None where it has none."""
        return None if self._child is None else self._child.pid

    def _generate(
        self,
        prompts: Sequence[Sequence[int]],
        seeds: Sequence[int],
        decoding: Decoding,
        stop_ids: frozenset[int],
        on_done: Done | None,
    ) -> list[Generated]:
        longest = max((len(prompt) for prompt in prompts), default=0)
        if longest + decoding.max_new_tokens > self._context:
            raise UsageError(
                f"A prompt has {longest} tokens and max_new_tokens is {decoding.max_new_tokens}, but the engine vllm "
                f"holds {self._context}: raise vllm.max_model_len, shorten the prompt or lower max_new_tokens."
            )
        message = {
            "do": "generate",
            "prompts": [list(prompt) for prompt in prompts],
            "seeds": list(seeds),
            "decoding": decoding.model_dump(),
            "stop_ids": sorted(stop_ids),
        }
        reply = self._ask(message, on_done=None if on_done is None else lambda done: on_done(done, len(prompts)))
        return [self._generated(row, decoding) for row in reply["responses"]]

    def _generated(self, row: Mapping[str, Any], decoding: Decoding) -> Generated:
        logprobs: list[float] = row["logprobs"]
        # vLLM reports one kind: of the model, or of the distribution that it samples from, which the cuts change too.
        plain, cut = self._logprobs == "plain", decoding.top_p < 1 or decoding.top_k > 0
        is_plain = plain or (decoding.temperature == 1 and not cut)
        is_sampling = decoding.temperature == 1 if plain else not cut
        return Generated(
            row["ids"], sum(logprobs) if is_plain else math.nan, logprobs if is_sampling else [], row["finish_reason"]
        )

    def _ask(
        self, message: dict[str, Any], timeout_s: float | None = None, on_done: Callable[[int], None] | None = None
    ) -> dict[str, Any]:
        if self._child is None:
            raise ValueError("the engine is closed")

        def tell(reply: dict[str, Any]) -> None:
            if on_done is not None:
                on_done(reply["done"])

        return self._child.ask(message, timeout_s or self._settings.timeout_s, tell)


def _setup(model: str, settings: VLLM, dtype: torch.dtype, logprobs: str) -> dict[str, Any]:
    return {
        "model": model,
        "dtype": str(dtype).removeprefix("torch."),
        # Of the distribution that was sampled from, or of the model's own.
        "logprobs_mode": "processed_logprobs" if logprobs == "sampling" else "raw_logprobs",
        "tensor_parallel_size": settings.tensor_parallel_size,
        "gpu_memory_utilization": settings.gpu_memory_utilization,
        "max_model_len": settings.max_model_len,
        "max_num_seqs": settings.max_num_seqs,
        "enforce_eager": settings.enforce_eager,
        "enable_sleep_mode": settings.sleep,
    }


def _environment(model: str, settings: VLLM) -> dict[str, str]:
    environment = {
        **os.environ,
        # No statistics of use are sent.
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        # The engine's core in its process, not in a further one: one process to end, one that answers.
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        # A forked worker would hold the pipes open after the death of one side.
        "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
        "VLLM_LOGGING_LEVEL": os.environ.get("VLLM_LOGGING_LEVEL", "WARNING"),
    }
    # What torchrun set is for the trainer's processes; the engine would take itself for one of them.
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "GROUP_RANK"):
        environment.pop(name, None)
    if settings.devices is not None:
        environment["CUDA_VISIBLE_DEVICES"] = settings.devices
    if Path(model).is_dir():
        environment["HF_HUB_OFFLINE"] = "1"
    if settings.cpu_kv_cache_gib is not None:
        environment["VLLM_CPU_KVCACHE_SPACE"] = str(settings.cpu_kv_cache_gib)
    return environment

"""Rollout engines: what responds to prompts. `base` says what one is; `transformers` and `vllm` are the two."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Literal

from rlhf.config import Generating
from rlhf.devices import Compute
from rlhf.engines.base import RolloutEngine


@contextlib.contextmanager
def open_engine(
    model: str, config: Generating, compute: Compute, logprobs: Literal["sampling", "plain"] = "sampling"
) -> Iterator[RolloutEngine | None]:
    """The engine that `config` names, started from the folder or hub name `model`; None where it is the policy itself.

    logprobs: which of the two a response is to come with; see VLLMEngine.
    """
    if config.engine == "transformers":
        yield None
        return
    from rlhf.engines.vllm import VLLMEngine

    engine = VLLMEngine(model, config.vllm, compute, config.engine_dtype, logprobs)
    try:
        yield engine
    finally:
        engine.close()

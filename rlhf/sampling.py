"""Rollouts: k responses to each prompt, as the rollouts table that the other rooms read."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import pyarrow as pa

from rlhf.config import Decoding, SampleConfig
from rlhf.devices import Compute
from rlhf.engines import open_engine
from rlhf.engines.base import RolloutEngine
from rlhf.engines.transformers import TransformersEngine
from rlhf.generation import Generated, row_seed
from rlhf.memory import Budget
from rlhf.models import Model, load_policy
from rlhf.tokens import Codec, codec_of
from store.hashing import short_id
from store.schemas import ROLLOUTS
from store.stage import Progress, silent


class Prompt(NamedTuple):
    """A prompt to respond to."""

    prompt_id: str
    prompt: str


@contextmanager
def open_policy(name: str, config: SampleConfig, compute: Compute) -> Iterator[tuple[RolloutEngine, Codec]]:
    """The policy of a folder or hub name as an engine, with its codec. vLLM loads it by itself: not twice."""
    if config.engine == "transformers":
        model, codec = load_policy(name, compute)
        yield TransformersEngine(model, compute, Budget(config.batch_size, "responses")), codec
        return
    codec = codec_of(name)
    with open_engine(name, config, compute, logprobs="plain") as engine:
        if engine is None:
            raise ValueError(f"{config.engine} is an engine of its own")
        yield engine, codec


def respond_by(
    engine: RolloutEngine,
    codec: Codec,
    prompts: Sequence[str],
    seeds: Sequence[int],
    decoding: Decoding,
    progress: Progress = silent,
    what: str = "sample",
) -> list[Generated]:
    """One response of `engine` a prompt. Raises UsageError where a prompt leaves no room for it in the context."""
    encoded: dict[str, list[int]] = {}
    for prompt in prompts:
        if prompt not in encoded:
            encoded[prompt] = codec.prompt_ids(prompt)
    codec.require_room(encoded.values(), decoding.max_new_tokens)

    def on_done(done: int, total: int) -> None:
        progress(what, done, total)

    return engine.generate([encoded[prompt] for prompt in prompts], seeds, decoding, codec.stop_ids, on_done)


def respond(
    model: Model,
    codec: Codec,
    prompts: Sequence[str],
    seeds: Sequence[int],
    decoding: Decoding,
    compute: Compute,
    budget: Budget,
    progress: Progress = silent,
    what: str = "sample",
) -> list[Generated]:
    """`respond_by` the model itself."""
    engine = TransformersEngine(model, compute, budget)
    return respond_by(engine, codec, prompts, seeds, decoding, progress, what)


def sample_rollouts(
    engine: RolloutEngine,
    codec: Codec,
    prompts: Sequence[Prompt],
    *,
    responses: int,
    decoding: Decoding,
    seed: int,
    policy: str,
    progress: Progress = silent,
    what: str = "sample",
) -> pa.Table:
    """`responses` responses a prompt, as a rollouts table. `policy`: the content hash of the model.

    A response depends on the policy, the prompt, `seed` and its number alone: other prompts or another batch size do
    not change it, but for what another engine than the policy itself rounds.
    """
    jobs = [(prompt, sample) for prompt in prompts for sample in range(responses)]
    generated = respond_by(
        engine,
        codec,
        [prompt.prompt for prompt, _ in jobs],
        [row_seed(seed, prompt.prompt_id, sample) for prompt, sample in jobs],
        decoding,
        progress,
        what,
    )
    rows = []
    for (prompt, sample), result in zip(jobs, generated, strict=True):
        response = codec.text(result.ids)
        rows.append(
            {
                "rollout_id": short_id(prompt.prompt_id, policy, seed, sample, response),
                "prompt_id": prompt.prompt_id,
                "prompt": prompt.prompt,
                "response": response,
                "sample": sample,
                "policy": policy,
                "finish_reason": result.finish_reason,
                "n_tokens": len(result.ids),
                "logprob": result.logprob,
                "seed": seed,
            }
        )
    return pa.Table.from_pylist(rows, schema=ROLLOUTS.schema)

"""Sampling in shards: every shard is a stage of its own, so that a killed run repeats only the unfinished ones.

A shard is a slice of the prompts in their order, sampled by itself. What is computed side by side rounds otherwise in
other company: the last bits of log-probs, and with them now and then a token, more often in bfloat16. Without shards
all prompts pass through one running batch, which no cut leaves as it is. So rollouts in shards are a function of
policy, prompts, config, seed and the size of a shard; the size, alone of all keys under `shards`, is in the stage's
key. The runner, the number of workers, their order and kills change nothing, to the bit, as far as all workers compute
alike: the same kind of device and `device.threads`, and memory enough for the batch; with the engine vllm but for what
its cache of prompts rounds. One shard of all prompts is the stage without shards.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from flows.shards.exchange import Answer, answered, found_here, from_stream, to_parquet, to_stream
from flows.shards.parts import bring_all, cut
from flows.shards.runners import open_runner, workers_of
from flows.specs import check_model
from rlhf.config import SampleConfig
from rlhf.devices import choose
from rlhf.engines.base import RolloutEngine
from rlhf.sampling import Prompt, open_policy, sample_rollouts
from rlhf.tokens import Codec
from store.hashing import hash_json, hash_path
from store.resources import DATASETS, PREFIX
from store.schemas import ROLLOUTS
from store.sharding import ShardsConfig
from store.stage import Job, Metrics, Progress, Source, run_stage, silent
from store.tables import read_table

ROLLOUTS_PART = "rollouts.parquet"
_PROMPTS = pa.schema([pa.field(name, pa.string(), nullable=False) for name in Prompt._fields])


@dataclass(frozen=True)
class Shard:
    """`prompts`: columns prompt_id and prompt, as Arrow stream. `policy`: folder or hub name; `identity`: its hash."""

    prompts: bytes
    policy: str
    identity: str
    config: SampleConfig
    seed: int


def sample_in_shards(
    policy: Source,
    prompts: Sequence[Prompt],
    *,
    config: SampleConfig,
    shards: ShardsConfig,
    seed: int,
    folder: Path,
    progress: Progress = silent,
) -> pa.Table:
    """`sample_rollouts` of all prompts, a shard at a time; the shards lie below `folder`, each with a manifest.

    Raises as `sample_rollouts`, UsageError where a worker finds another policy or none, TransientError where a shard's
    worker died too often.
    """
    config = config.model_copy(update={"shards": None})
    table = pa.Table.from_pylist([prompt._asdict() for prompt in prompts], schema=_PROMPTS)
    workers = workers_of(shards, loads_models=True)
    with open_runner(shards, workers, sample_shard, close_policy) as run:

        def bring(part: pa.Table, out: Path) -> None:
            data = to_stream(part)

            def work(job: Job[SampleConfig]) -> Metrics:
                answer = run(Shard(data, _name(policy.value), policy.identity, config, seed))
                answer.raise_error()
                answer.write(job.out)
                return {"prompts": part.num_rows, "worker": answer.worker}

            own = Source(out.name, hashlib.sha256(data).hexdigest())
            inputs = {"prompts": [own], "policy": [policy]}
            run_stage("sample-shard", work, inputs=inputs, config=config, seed=seed, out=out)

        parts = cut([table], shards.size)
        folders = bring_all(
            bring, parts, folder, workers=workers, total=len(prompts), unit="prompts", progress=progress
        )
    return pa.concat_tables([read_table(one / ROLLOUTS_PART, ROLLOUTS) for one in folders]).combine_chunks()


def sample_shard(shard: Shard) -> Answer:
    """The rollouts of a shard's prompts, in their order. Errors come back as a sentence."""
    return answered(lambda: _sample(shard))


def close_policy() -> None:
    """Give up the policy that this process holds for further shards."""
    with _held.lock:
        _held.close()


class _Held:
    """The one policy that a process has loaded, whose threads take turns at it: a second copy would take the memory of
    the first, and where one thread loads, another must not compute (transformers changes torch's default type)."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self._key = ""
        self._engine: tuple[RolloutEngine, Codec] | None = None
        self._stack = ExitStack()

    def engine(self, shard: Shard) -> tuple[RolloutEngine, Codec]:
        """That of the shard's policy; another one is closed first."""
        key = hash_json([shard.policy, shard.identity, shard.config.model_dump(mode="json")])
        if self._engine is None or key != self._key:
            self.close()
            name = _find(shard.policy, shard.identity)
            opened = open_policy(name, shard.config, choose(shard.config.device))
            self._engine, self._key = self._stack.enter_context(opened), key
        return self._engine

    def close(self) -> None:
        self._engine = None
        self._stack.close()


_held = _Held()


def _sample(shard: Shard) -> dict[str, bytes]:
    config = shard.config
    with _held.lock:
        try:
            engine, codec = _held.engine(shard)
            rollouts = sample_rollouts(
                engine,
                codec,
                [Prompt(**row) for row in from_stream(shard.prompts).to_pylist()],
                responses=config.responses,
                decoding=config.decoding,
                seed=shard.seed,
                policy=shard.identity,
            )
        except BaseException:
            _held.close()  # an engine that failed may be gone
            raise
    return {ROLLOUTS_PART: to_parquet(rollouts)}


def _name(policy: str) -> str:
    """A shipped policy by its name, since rlaif may be installed elsewhere on another machine."""
    path = Path(policy)
    return f"{PREFIX}{path.relative_to(DATASETS)}" if path.is_relative_to(DATASETS) else policy


def _find(policy: str, identity: str) -> str:
    """What this machine loads as that policy. A hub's model is known by its name alone."""
    folder = found_here(
        f"policy {policy}",
        lambda: check_model(policy),
        lambda folder: hash_path(folder) if folder else identity,
        identity,
    )
    return str(folder or policy)

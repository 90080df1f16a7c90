"""Configuration of what generates responses: engines, sampling, evaluation."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, ValidationInfo, field_validator

from rlhf.config.common import Count, Decoding, Device, Positive
from store.config import OPERATIONAL, Config
from store.sharding import ShardsConfig


class VLLM(Config):
    """How the rollout engine vLLM runs, in a process of its own; pip install 'rlaif[vllm]'."""

    tensor_parallel_size: Count = Field(1, description="GPUs that divide the engine's weights")
    devices: str | None = Field(None, description="its GPUs, such as '1' or '2,3'; null: those of the stage")
    gpu_memory_utilization: Annotated[float, Field(gt=0, le=1)] = Field(
        0.4, description="share of a GPU's memory it takes; 0.9 where it has the GPU for itself"
    )
    sleep: bool = Field(False, description="give that memory up outside of rollouts; for a GPU shared with training")
    max_model_len: Count | None = Field(None, description="longest prompt and response, in tokens; null: the model's")
    max_num_seqs: Count | None = Field(None, description="responses generated side by side; null: vLLM's choice")
    enforce_eager: bool = Field(False, description="no CUDA graphs: slower, starts faster, takes less memory")
    cpu_kv_cache_gib: Count | None = Field(None, description="keys and values without a GPU; null: vLLM's choice")
    start_timeout_s: Positive = Field(900.0, description="how long it may take until the model is loaded")
    timeout_s: Positive = Field(300.0, description="how long it may show no sign of life before it is ended")


class Generating(Config):
    """What generates the responses of a stage."""

    engine: Literal["transformers", "vllm"] = Field(
        "transformers", description="transformers: the policy itself; vllm: vLLM with the policy's weights"
    )
    engine_dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="precision of the engine vllm; auto: that of the device"
    )
    vllm: VLLM = Field(VLLM(), description="how the engine vllm runs", json_schema_extra=OPERATIONAL)


class SampleShards(ShardsConfig):
    """Where slices of the prompts are sampled. Each is sampled by itself, so that rounding depends on their size: it
    alone of these keys is in the stage's."""

    size: Count = Field(512, description="prompts a shard; best so many that a shard takes minutes")


class SampleConfig(Generating):
    """Sampling of rollouts."""

    splits: list[str] = Field(["train"], min_length=1, description="splits of prompts to sample for")
    max_prompts: Annotated[int, Field(ge=0)] = Field(0, description="draw so many prompts; 0 takes all")
    responses: Annotated[int, Field(ge=1)] = Field(4, description="responses a prompt")
    batch_size: Count = Field(256, description="responses generated side by side")
    decoding: Decoding = Decoding()
    device: Device = Device()
    shards: SampleShards | None = Field(
        None, description="sample many prompts in parts, on threads or a cluster; null: in one"
    )

    @field_validator("shards")
    @classmethod
    def _one_process_a_shard(cls, value: SampleShards | None, info: ValidationInfo) -> SampleShards | None:
        device, vllm = info.data.get("device"), info.data.get("vllm")
        if value is None or device is None or vllm is None:
            return value
        if device.processes != 1 or device.nodes > 1:
            raise ValueError(
                "a shard is sampled by one process: set device.processes and device.nodes to 1, or remove shards"
            )
        if value.runner != "local" and (vllm.devices is not None or ":" in device.device):
            raise ValueError(
                f"every {value.runner} worker would take the same GPU: remove vllm.devices, and set device.device to "
                "cuda without a number, since a worker sees its own alone"
            )
        return value


class EvaluateConfig(Config):
    """Evaluation of a policy against its reference on prompts that nothing was trained on."""

    splits: list[str] = Field(["heldout"], min_length=1, description="splits to evaluate on; each is reported apart")
    max_prompts: Annotated[int, Field(ge=0)] = Field(0, description="draw so many prompts; 0 takes all")
    responses: Count = Field(4, description="responses a prompt and policy")
    confidence: Annotated[float, Field(gt=0.5, lt=1)] = Field(0.95, description="level of the intervals")
    batch_size: Count = Field(256, description="responses generated side by side")
    decoding: Decoding = Decoding()
    device: Device = Device()

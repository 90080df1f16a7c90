"""What the stages' configurations have in common."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from store.config import OPERATIONAL, Config

Probability = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]
Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")]


class Decoding(Config):
    """How responses are sampled."""

    temperature: Positive = Field(1.0, description="softmax temperature")
    top_p: Annotated[float, Field(gt=0, le=1)] = Field(1.0, description="nucleus mass; 1 is the full distribution")
    top_k: Annotated[int, Field(ge=0)] = Field(0, description="most likely tokens kept; 0 keeps all")
    max_new_tokens: Count = Field(64, description="longest response, in tokens")


class Optimisation(Config):
    """What every gradient descent here has."""

    learning_rate: Positive = Field(1e-4, description="peak learning rate of AdamW")
    warmup_fraction: Probability = Field(0.05, description="share of steps with a linearly rising learning rate")
    schedule: Literal["constant", "linear", "cosine"] = Field("linear", description="learning rate after the warmup")
    adam_beta1: Annotated[float, Field(ge=0, lt=1)] = Field(0.9, description="AdamW's average of gradients")
    adam_beta2: Annotated[float, Field(ge=0, lt=1)] = Field(0.999, description="AdamW's average of squared gradients")
    weight_decay: Annotated[float, Field(ge=0)] = Field(0.0, description="decoupled weight decay")
    max_grad_norm: Positive = Field(1.0, description="gradient norm is clipped to this")
    batch_tokens: Count = Field(8192, description="most tokens in one forward pass; halved when memory runs out")


class Lora(Config):
    """Low-rank adapters instead of full weights."""

    rank: Count = Field(16, description="rank of the update")
    alpha: Positive = Field(32.0, description="scale of the update is alpha / rank")
    dropout: Probability = Field(0.0, description="dropout on the adapter's input; PPO switches it off")
    target_modules: list[str] | Literal["all-linear"] = Field("all-linear", description="layers that get an adapter")


class Device(Config):
    """Where and in which precision a stage computes."""

    device: str = Field("auto", description="auto, cpu, cuda, cuda:1, mps")
    dtype: Literal["auto", "float32", "bfloat16"] = Field("auto", description="auto: bfloat16 on a GPU, else float32")
    attention: Literal["sdpa", "eager", "flash_attention_2"] = Field("sdpa", description="attention kernel")
    gradient_checkpointing: bool = Field(False, description="recompute activations to save memory")
    compile: bool = Field(False, description="torch.compile the transformer below the head; needs a C++ compiler")
    threads: Annotated[int, Field(ge=0)] = Field(0, description="CPU threads; 0 leaves torch's choice")
    processes: Annotated[int, Field(ge=0)] = Field(
        1, description="processes on a machine, one a GPU, that share the work; 0: as many as it has GPUs"
    )
    nodes: Count = Field(1, description="machines; start the stage on each, with the same config and workspace")
    rendezvous: str | None = Field(
        None, description="host:port of one of the machines, where all of them meet", json_schema_extra=OPERATIONAL
    )
    sharding: Literal["none", "fsdp"] = Field(
        "none", description="fsdp: weights, gradients and optimizer states are divided among the processes"
    )
    timeout_minutes: Positive = Field(
        60.0,
        description="how long a process waits for the others before it gives up",
        json_schema_extra=OPERATIONAL,
    )

    @model_validator(mode="after")
    def _meeting_point(self) -> Device:
        if self.nodes > 1 and self.rendezvous is None:
            raise ValueError(f"{self.nodes} nodes need a place to meet: set rendezvous to host:port of one of them")
        return self


class Tracked(Config):
    """A stage whose metrics can be watched while it trains; see rlhf.tracking. No result depends on it."""

    tracking: list[Literal["tensorboard", "mlflow", "wandb"]] | None = Field(
        None, description="experiment trackers; null: tensorboard where it is installed", json_schema_extra=OPERATIONAL
    )
    tracking_folder: str | None = Field(
        None, description="folder of their files; null: logs/ beside the stage's folder", json_schema_extra=OPERATIONAL
    )
    tracking_project: str = Field(
        "rlaif", description="MLflow's experiment, Weights & Biases' project", json_schema_extra=OPERATIONAL
    )

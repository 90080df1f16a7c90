"""Configuration of what trains on tables: SFT on demonstrations, reward model and DPO on preferences."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from rlhf.config.common import Count, Device, Lora, Optimisation, Positive, Tracked
from store.config import Config


class SFTConfig(Tracked):
    """Supervised fine-tuning on demonstrations."""

    enabled: bool = Field(True, description="run before the first round; later rounds start from a tuned policy")
    max_demonstrations: Annotated[int, Field(ge=0)] = Field(0, description="use at most so many; 0 uses all")
    epochs: Positive = Field(1.0, description="passes over the demonstrations")
    batch_size: Count = Field(32, description="demonstrations an optimizer step")
    validation_fraction: Annotated[float, Field(ge=0, lt=0.5)] = Field(
        0.0, description="demonstrations held out of training, whose loss is measured after each epoch"
    )
    checkpoint_every: Annotated[int, Field(ge=0)] = Field(200, description="steps between checkpoints; 0: none")
    optimisation: Optimisation = Optimisation()
    lora: Lora | None = None
    device: Device = Device()


class Ensemble(Config):
    """Several reward models in one, which disagree where the data says little."""

    members: Annotated[int, Field(ge=2)] = Field(4, description="heads or models")
    kind: Literal["heads", "seeds"] = Field(
        "heads", description="heads: k heads on one trunk; seeds: k whole models, each from a seed of its own"
    )
    pessimism: Annotated[float, Field(ge=0)] = Field(0.5, description="score = mean - pessimism * std of the members")


class RewardConfig(Tracked):
    """Reward model by soft Bradley-Terry."""

    epochs: Positive = Field(2.0, description="passes over the pairs")
    batch_size: Count = Field(64, description="pairs an optimizer step")
    checkpoint_every: Annotated[int, Field(ge=0)] = Field(200, description="steps between checkpoints; 0: none")
    optimisation: Optimisation = Optimisation()
    target: Literal["soft", "hard", "margin"] = Field(
        "soft",
        description="soft: the label p_chosen; hard: the chosen response wins for sure; margin: hard, and by the "
        "column margin at least, which is the log-odds of p_chosen",
    )
    margin: Annotated[float, Field(ge=0)] = Field(0.0, description="least reward difference asked of every pair")
    label_smoothing: Annotated[float, Field(ge=0, lt=0.5)] = Field(0.0, description="mass moved to the other side")
    centering: Annotated[float, Field(ge=0)] = Field(0.01, description="weight of the squared mean reward of a pair")
    test_fraction: Annotated[float, Field(ge=0, lt=0.5)] = Field(
        0.1, description="prompts that the report is measured on, where no preference is in split test"
    )
    validation_fraction: Annotated[float, Field(ge=0, lt=0.5)] = Field(
        0.1, description="share of the other prompts that early stopping looks at; never those of the report"
    )
    evaluations_per_epoch: Count = Field(4, description="looks at the validation pairs in an epoch")
    patience: Annotated[int, Field(ge=0)] = Field(
        3, description="evaluations without gain before stopping; 0: never stop"
    )
    scale: Literal["unit", "none"] = Field(
        "unit",
        description="unit: rewards of the validation responses have standard deviation 1, so that a KL coefficient "
        "means the same for every reward model; none: rewards are log-odds",
    )
    ensemble: Ensemble | None = None
    share_prefix: bool = Field(True, description="compute what both responses of a pair begin with once")
    max_length: Count = Field(512, description="longest prompt and response, in tokens")
    lora: Lora | None = None
    device: Device = Device()


class DPOConfig(Tracked):
    """Direct preference optimisation of the policy on preferences: a baseline without reward model and rollouts."""

    epochs: Positive = Field(1.0, description="passes over the pairs")
    batch_size: Count = Field(32, description="pairs an optimizer step")
    optimisation: Optimisation = Optimisation()
    beta: Positive = Field(0.1, description="weight of the log-ratio to the reference in the implicit reward")
    label_smoothing: Annotated[float, Field(ge=0, lt=0.5)] = Field(0.0, description="mass moved to the other side")
    validation_fraction: Annotated[float, Field(ge=0, lt=0.5)] = Field(
        0.1, description="prompts held out where the table names no test split"
    )
    checkpoint_every: Annotated[int, Field(ge=0)] = Field(200, description="steps between checkpoints; 0: none")
    lora: Lora | None = None
    device: Device = Device()

"""Configuration of the training stages. Every field is documented where it is declared."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from store.config import Config

Probability = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]


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
    threads: Annotated[int, Field(ge=0)] = Field(0, description="CPU threads; 0 leaves torch's choice")


class SFTConfig(Config):
    """Supervised fine-tuning on demonstrations."""

    enabled: bool = Field(True, description="run before the first round; later rounds start from a tuned policy")
    max_demonstrations: Annotated[int, Field(ge=0)] = Field(0, description="use at most so many; 0 uses all")
    epochs: Positive = Field(1.0, description="passes over the demonstrations")
    batch_size: Count = Field(32, description="demonstrations an optimizer step")
    optimisation: Optimisation = Optimisation()
    lora: Lora | None = None
    device: Device = Device()


class SampleConfig(Config):
    """Sampling of rollouts."""

    splits: list[str] = Field(["train"], min_length=1, description="splits of prompts to sample for")
    max_prompts: Annotated[int, Field(ge=0)] = Field(0, description="draw so many prompts; 0 takes all")
    responses: Annotated[int, Field(ge=1)] = Field(4, description="responses a prompt")
    batch_size: Count = Field(256, description="responses generated side by side")
    decoding: Decoding = Decoding()
    device: Device = Device()


class RewardConfig(Config):
    """Reward model by soft Bradley-Terry."""

    epochs: Positive = Field(2.0, description="passes over the pairs")
    batch_size: Count = Field(64, description="pairs an optimizer step")
    optimisation: Optimisation = Optimisation()
    margin: Annotated[float, Field(ge=0)] = Field(0.0, description="least reward difference asked of a pair")
    label_smoothing: Annotated[float, Field(ge=0, lt=0.5)] = Field(0.0, description="mass moved to the other side")
    centering: Annotated[float, Field(ge=0)] = Field(0.01, description="weight of the squared mean reward of a pair")
    validation_fraction: Annotated[float, Field(ge=0, lt=0.5)] = Field(0.1, description="prompts held out of training")
    evaluations_per_epoch: Count = Field(4, description="looks at the held-out pairs in an epoch")
    patience: Annotated[int, Field(ge=0)] = Field(
        3, description="evaluations without gain before stopping; 0: never stop"
    )
    max_length: Count = Field(512, description="longest prompt and response, in tokens")
    lora: Lora | None = None
    device: Device = Device()


class KLControl(Config):
    """How the policy is kept near its reference."""

    coefficient: Annotated[float, Field(ge=0)] = Field(0.05, description="beta: reward lost per nat of KL")
    target: Positive | None = Field(None, description="adaptive control towards this KL per response; null: fixed")
    horizon: Positive = Field(10_000, description="responses over which the adaptive controller reacts")
    estimator: Literal["k1", "k2", "k3"] = Field("k1", description="estimator of the KL in the reward")
    budget: Positive = Field(20.0, description="nats per response at which the stage stops and keeps the best policy")


class Probe(Config):
    """Live comparison of policy and reference by the judges, to catch over-optimisation."""

    every: Annotated[int, Field(ge=0)] = Field(10, description="updates between probes; 0 switches the probe off")
    prompts: Count = Field(64, description="prompts of a probe")
    patience: Count = Field(2, description="probes in a row with falling judges and rising reward before stopping")
    tolerance: Annotated[float, Field(ge=0)] = Field(0.05, description="fall of the win rate that counts as falling")


class PPOConfig(Config):
    """Proximal policy optimisation of the policy against the reward model."""

    splits: list[str] = Field(["train"], min_length=1, description="splits of prompts to train on")
    updates: Count = Field(50, description="rollout-and-update cycles")
    batch_size: Count = Field(128, description="responses an update")
    minibatches: Count = Field(4, description="optimizer steps an epoch")
    epochs: Count = Field(2, description="passes over the responses of an update")
    optimisation: Optimisation = Optimisation()
    value_learning_rate: Positive = Field(1e-3, description="learning rate of the critic")
    critic: Literal["separate", "shared"] = Field(
        "separate", description="separate: a model of its own, from the reward model; shared: a head on the policy"
    )
    advantage: Literal["gae", "rloo", "grpo"] = Field("gae", description="advantage estimator")
    group_size: Count = Field(1, description="responses a prompt in an update; rloo and grpo need at least 2")
    gamma: Probability = Field(1.0, description="discount")
    gae_lambda: Probability = Field(0.95, description="GAE's bias-variance trade")
    clip: Positive = Field(0.2, description="clip range of the probability ratio")
    value_clip: Positive = Field(0.2, description="clip range of the value, around its value at rollout")
    value_coefficient: Annotated[float, Field(ge=0)] = Field(0.5, description="weight of the value loss, shared critic")
    entropy_coefficient: Annotated[float, Field(ge=0)] = Field(0.0, description="weight of the entropy bonus")
    whiten_advantages: bool = True
    whiten_rewards: bool = Field(False, description="scale the score to unit variance in a batch, keeping its mean")
    reward_clip: Positive | None = Field(10.0, description="scores are clipped to this absolute value")
    missing_stop_penalty: Annotated[float, Field(ge=0)] = Field(1.0, description="taken from responses without a stop")
    kl: KLControl = KLControl()
    max_update_kl: Positive | None = Field(0.1, description="approximate KL within an update at which its epochs end")
    probe: Probe = Probe()
    checkpoint_every: Annotated[int, Field(ge=0)] = Field(10, description="updates between checkpoints; 0: none")
    decoding: Decoding = Decoding()
    lora: Lora | None = None
    device: Device = Device()

    @model_validator(mode="after")
    def _full_distribution(self) -> PPOConfig:
        if self.decoding.top_p < 1 or self.decoding.top_k > 0:
            raise ValueError(
                f"PPO needs the full distribution, decoding has top_p={self.decoding.top_p} and "
                f"top_k={self.decoding.top_k}: set top_p to 1 and top_k to 0"
            )
        if self.batch_size % (self.minibatches * self.group_size):
            raise ValueError(
                f"batch_size {self.batch_size} is not a multiple of minibatches x group_size "
                f"({self.minibatches} x {self.group_size}): change one of them"
            )
        if self.advantage != "gae" and self.group_size < 2:
            raise ValueError(
                f"advantage {self.advantage} compares responses of one prompt: set group_size to 2 or more"
            )
        return self


class EvaluateConfig(Config):
    """Evaluation of a policy against its reference on prompts that nothing was trained on."""

    splits: list[str] = Field(["heldout"], min_length=1, description="splits to evaluate on; each is reported apart")
    max_prompts: Annotated[int, Field(ge=0)] = Field(0, description="draw so many prompts; 0 takes all")
    responses: Count = Field(4, description="responses a prompt and policy")
    confidence: Annotated[float, Field(gt=0.5, lt=1)] = Field(0.95, description="level of the intervals")
    batch_size: Count = Field(256, description="responses generated side by side")
    decoding: Decoding = Decoding()
    device: Device = Device()

"""Configuration of PPO: the loop, the terms of its reward, its guardrails."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from rlhf.config.common import Count, Decoding, Device, Lora, Name, Optimisation, Positive, Probability, Tracked
from rlhf.config.rollout import Generating
from store.config import Config


class LengthTerm(Config):
    """A soft limit on length: nothing is lost up to a budget of tokens, then the same for each further one."""

    kind: Literal["length"]
    name: Name = Field("length", description="logged as term/<name>")
    budget: Count = Field(description="tokens of a response that cost nothing")
    per_token: Positive = Field(0.01, description="reward lost for each token beyond the budget")


class ConstraintTerm(Config):
    """A rule of the constitution as a part of the reward of its own: coefficient * (the judge's score - 1), so that a
    response without fault loses nothing."""

    kind: Literal["judge", "rule"] = Field(description="judge: a model that rates responses; rule: a rubric program")
    name: Name = Field(description="logged as term/<name>")
    judge: str = Field(description="name of one of the judges given as constraints")
    coefficient: Positive = Field(1.0, description="reward lost by a response with score 0")


RewardTerm = Annotated[LengthTerm | ConstraintTerm, Field(discriminator="kind")]


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
    patience: Count = Field(1, description="over-optimised probes in a row before stopping")
    tolerance: Annotated[float, Field(ge=0)] = Field(0.0, description="a fall of the win rate up to this is no matter")
    confidence: Annotated[float, Field(gt=0.5, lt=1)] = Field(
        0.95, description="that the judges fell and the reward rose, over all pairs of probes of the run together"
    )


class Limit(Config):
    """A limit of a monitored figure."""

    at: Positive = Field(description="the largest value that is in order")
    action: Literal["warn", "stop"] = Field("warn", description="warn: say so once; stop: end and keep the best policy")


class Monitors(Config):
    """Figures of every update with a limit each; null: no limit. See docs/metrics.md for what they are."""

    repetition: Limit | None = Field(Limit(at=0.5), description="share of repeated token trigrams")
    length_drift: Limit | None = Field(Limit(at=3.0), description="response length over that of the first update")
    perplexity_drift: Limit | None = Field(
        Limit(at=10.0), description="perplexity under the reference over that of the first update"
    )
    kl_budget_used: Limit | None = Field(Limit(at=0.8), description="KL over its budget, which always stops")


class PPOConfig(Tracked, Generating):
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
    critic_warmup: Annotated[int, Field(ge=0)] = Field(
        0, description="first updates in which the critic alone learns, a separate one; for a critic with a new head"
    )
    advantage: Literal["gae", "rloo", "grpo"] = Field("gae", description="advantage estimator")
    group_size: Count = Field(1, description="responses a prompt in an update; rloo and grpo need at least 2")
    gamma: Probability = Field(1.0, description="discount")
    gae_lambda: Probability = Field(0.95, description="GAE's bias-variance trade")
    clip: Positive = Field(0.2, description="clip range of the probability ratio")
    value_clip: Positive = Field(0.2, description="clip range of the value, around its value at rollout")
    value_coefficient: Annotated[float, Field(ge=0)] = Field(0.5, description="weight of the value loss, shared critic")
    entropy_coefficient: Annotated[float, Field(ge=0)] = Field(0.0, description="weight of the entropy bonus")
    importance_cap: Positive = Field(
        2.0, description="largest weight of a token that another engine sampled: min(p_trainer / p_engine, cap)"
    )
    whiten_advantages: bool = True
    whiten_rewards: bool = Field(False, description="scale the score to unit variance in a batch, keeping its mean")
    reward_clip: Positive | None = Field(10.0, description="scores are clipped to this absolute value")
    missing_stop_penalty: Annotated[float, Field(ge=0)] = Field(1.0, description="taken from responses without a stop")
    terms: list[RewardTerm] = Field([], description="further parts of the reward: length, judge, rule")
    kl: KLControl = KLControl()
    max_update_kl: Positive | None = Field(0.1, description="approximate KL within an update at which its epochs end")
    probe: Probe = Probe()
    monitors: Monitors = Monitors()
    checkpoint_every: Annotated[int, Field(ge=0)] = Field(10, description="updates between checkpoints; 0: none")
    keep_checkpoints: Count = Field(2, description="newest checkpoints that stay, beside the best policy")
    decoding: Decoding = Decoding()
    lora: Lora | None = None
    device: Device = Device()

    @model_validator(mode="after")
    def _consistent(self) -> PPOConfig:
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
        if self.critic_warmup and (self.advantage != "gae" or self.critic != "separate"):
            raise ValueError(
                "critic_warmup needs a critic of its own: set it to 0, or advantage gae and critic separate"
            )
        if self.critic_warmup >= self.updates:
            raise ValueError(
                f"in none of {self.updates} updates would the policy learn with critic_warmup {self.critic_warmup}: "
                "lower it or raise updates"
            )
        names = ["missing_stop", *(term.name for term in self.terms)]
        if doubles := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"two reward terms have the name {doubles[0]!r}: give each its own")
        if self.advantage != "gae" and self.group_size < 2:
            raise ValueError(
                f"advantage {self.advantage} compares responses of one prompt: set group_size to 2 or more"
            )
        return self

"""Configuration of the training stages. Every field is documented where it is declared."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator

from store.config import OPERATIONAL, Config
from store.sharding import ShardsConfig

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
        names = ["missing_stop", *(term.name for term in self.terms)]
        if doubles := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"two reward terms have the name {doubles[0]!r}: give each its own")
        if self.advantage != "gae" and self.group_size < 2:
            raise ValueError(
                f"advantage {self.advantage} compares responses of one prompt: set group_size to 2 or more"
            )
        return self


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


class EvaluateConfig(Config):
    """Evaluation of a policy against its reference on prompts that nothing was trained on."""

    splits: list[str] = Field(["heldout"], min_length=1, description="splits to evaluate on; each is reported apart")
    max_prompts: Annotated[int, Field(ge=0)] = Field(0, description="draw so many prompts; 0 takes all")
    responses: Count = Field(4, description="responses a prompt and policy")
    confidence: Annotated[float, Field(gt=0.5, lt=1)] = Field(0.95, description="level of the intervals")
    batch_size: Count = Field(256, description="responses generated side by side")
    decoding: Decoding = Decoding()
    device: Device = Device()

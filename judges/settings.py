"""What a judge.yaml may hold. Backends differ in what they need, so each has its own model; `backend` says which.

`OPERATIONAL` names the keys that change how an answer is obtained (speed, price, address) and never which answer: all
other keys are part of a judge's fingerprint, so a new key is in it unless somebody decides otherwise.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import Field, model_validator

from store.config import Config
from store.errors import UsageError

Count = Annotated[int, Field(ge=1)]
Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Probability = Annotated[float, Field(ge=0, le=1)]

OPERATIONAL = frozenset(
    {
        "name",
        "description",
        "family",
        "price",
        "device",
        "batch_tokens",
        "gpu_memory_utilization",
        "tensor_parallel_size",
        "enforce_eager",
        "cpu_kv_cache_gib",
        "start_timeout_s",
        "base_url",
        "api_key_env",
        "concurrency",
        "requests_per_minute",
        "tokens_per_minute",
        "timeout_s",
        "max_attempts",
        "outage_after",
        "outage_patience_s",
    }
)
"""`base_url` is here because a server may move; where another address means another model, change `revision`."""

FILES = frozenset({"prompt", "constitution", "rubric", "first", "then"})
"""Keys that name files or members of the judge: their content is in the fingerprint, their names are not."""

DERIVED = frozenset({"scale"})
"""Keys of language models, beside the weights of questions, that say what becomes of an answer after it was given."""


class Price(Config):
    """What tokens cost, in any one currency."""

    input: NotNegative = Field(0.0, description="price of a million prompt tokens")
    output: NotNegative = Field(0.0, description="price of a million answer tokens")


class _Settings(Config):
    name: str = Field(min_length=1, description="name in votes and reports")
    description: str = Field("", description="for people: what the judge is for")
    price: Price = Price()

    @property
    def fingerprinted(self) -> dict[str, Any]:
        """The keys whose value decides which answer the judge gives."""
        return self.model_dump(mode="json", exclude=set(OPERATIONAL | FILES))

    @property
    def derivation(self) -> dict[str, Any]:
        """What votes depend on beside the answers that they are derived from; empty for most judges."""
        return {}


LOCAL = frozenset({"transformers", "vllm"})
"""Backends whose model may be a folder on this machine."""

ModeName = Literal["pairwise_logprobs", "pairwise_verdict", "rating", "thumbs", "flaws", "listwise"]

ANSWERS: dict[str, tuple[str, ...]] = {
    "pairwise_logprobs": ("1", "2"),
    "pairwise_verdict": ("1", "2"),
    "rating": ("1", "2", "3", "4", "5", "6", "7", "8", "9", "10"),
    "thumbs": ("up", "down"),
    "flaws": ("yes", "no", "unsure"),
    "listwise": (),
}
"""What each mode has a model answer, where the judge names nothing else."""

KEYWORDS = {"pairwise_verdict": ("verdict",), "listwise": ("ranking",)}
"""What an answer in words begins with, before a colon."""


class Question(Config):
    """A question about a flaw that a response may have; yes means that it has it."""

    name: str = Field(min_length=1, pattern=r"^[a-z][a-z0-9_]*$", description="key of the answer, such as wrong_fact")
    question: str = Field(min_length=1, description="what the judge is asked")
    weight: NotNegative = Field(1.0, description="what a yes takes off the quality, relative to the other questions")
    unsure: Probability = Field(0.5, description="what an unsure takes off, as a share of what a yes does")


class LanguageModelSettings(_Settings):
    """What every judge has that is a language model."""

    model: str = Field(min_length=1, description="model: shipped:..., a folder, or a name on a hub or server")
    revision: str | None = Field(None, description="commit, tag or date of the model, where its name alone may move")
    family: str | None = Field(
        None, description="models of one origin, such as qwen; a policy of the same family may be favoured"
    )
    mode: ModeName = Field("pairwise_logprobs", description="how the judge is asked and answers; see docs/judges.md")
    prompt: str = Field("prompt.jinja", description="template file; the mode says which variables it must show")
    constitution: str | None = Field(None, description="file with the principles that the prompt shows")
    principles: Literal["all", "sample"] = Field("all", description="all principles, or one a pair, drawn by its id")
    answers: tuple[str, ...] | None = Field(
        None, description="words that mean what the mode asks for, in its order: first and second response; up and down"
    )
    min_mass: Probability = Field(0.5, description="less probability than this on the answers is an abstention")
    max_new_tokens: Count = Field(
        512, description="longest reasoning and answer, in tokens; modes that answer in words"
    )
    temperature: NotNegative = Field(0.0, description="sampling temperature; 0 takes the likeliest token")
    parse_attempts: Count = Field(2, description="calls before an unreadable answer is a parse failure")

    questions: tuple[Question, ...] = Field((), description="the flaws that are asked about; mode flaws")
    scale: Positive = Field(
        0.1, description="difference of two responses' scores that makes the odds e to 1; modes that rate single ones"
    )

    @property
    def options(self) -> tuple[str, ...]:
        """The answers that the judge may give: its own words, or the mode's."""
        return self.answers if self.answers is not None else ANSWERS[self.mode]

    @property
    def fingerprinted(self) -> dict[str, Any]:
        # Words that are spelt out and the same words by default are the same judge. What is made of the answers
        # afterwards changes none of them: they need not be asked for again.
        asked = [{"name": question.name, "question": question.question} for question in self.questions]
        found = super().fingerprinted | {"answers": list(self.options), "questions": asked}
        return {key: value for key, value in found.items() if key not in DERIVED}

    @property
    def derivation(self) -> dict[str, Any]:
        if self.mode not in ("rating", "thumbs", "flaws"):
            return {}
        weights = {question.name: [question.weight, question.unsure] for question in self.questions}
        return {"scale": self.scale, "weights": weights}

    @property
    def keywords(self) -> tuple[str, ...]:
        """What begins an answer of the judge, before a colon; untrusted text must not spell it."""
        own = tuple(question.name for question in self.questions) if self.mode == "flaws" else ()
        return (*KEYWORDS.get(self.mode, ()), *own)


class TransformersSettings(LanguageModelSettings):
    """A local model run by Hugging Face transformers in this process."""

    backend: Literal["transformers"]
    batch_tokens: Count = Field(16384, description="most tokens, padding included, in one forward pass")
    device: str = Field("auto", description="auto, cpu, cuda, cuda:1, mps")
    dtype: Literal["auto", "float32", "bfloat16"] = Field("auto", description="auto: bfloat16 on a GPU, else float32")
    chat_template_args: dict[str, Any] = Field({}, description="arguments of the chat template: enable_thinking: false")


class VLLMSettings(LanguageModelSettings):
    """A local model run by vLLM's offline engine in a process of its own."""

    backend: Literal["vllm"]
    temperature: Annotated[float, Field(ge=0, le=2)] = Field(0.0, description="sampling temperature; 0: the likeliest")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field("auto", description="auto: as vLLM chooses")
    quantization: str | None = Field(None, description="such as fp8 or awq; null: as the model's config says")
    max_model_len: Count | None = Field(None, description="longest prompt and answer, in tokens; null: the model's own")
    structured: bool = Field(False, description="keep an answer in words to the mode's JSON schema")
    chat_template_args: dict[str, Any] = Field({}, description="arguments of the chat template: enable_thinking: false")
    sampling_args: dict[str, Any] = Field({}, description="further arguments of vLLM's SamplingParams: top_p: 0.9")
    engine_args: dict[str, Any] = Field({}, description="further arguments of vLLM's EngineArgs: max_num_seqs: 64")
    gpu_memory_utilization: Annotated[float, Field(gt=0, le=1)] = Field(0.9, description="share of the GPU's memory")
    tensor_parallel_size: Count = Field(1, description="GPUs that share the model")
    enforce_eager: bool = Field(False, description="no CUDA graphs and no compilation: starts faster, runs slower")
    cpu_kv_cache_gib: Count | None = Field(None, description="memory for keys and values on a CPU; null: vLLM's choice")
    start_timeout_s: Positive = Field(1800.0, description="seconds after which loading is given up")

    @model_validator(mode="after")
    def _own_settings(self) -> VLLMSettings:
        for key, own in (("engine_args", _OWN_ENGINE_ARGS), ("sampling_args", _OWN_SAMPLING_ARGS)):
            if taken := sorted(own & getattr(self, key).keys()):
                raise ValueError(f"{key} must not hold {', '.join(taken)}: the judge's settings or its mode decide it")
        return self


_OWN_ENGINE_ARGS = frozenset(
    {"model", "tokenizer", "revision", "tokenizer_revision", "dtype", "quantization", "max_model_len", "seed"}
    | {"gpu_memory_utilization", "tensor_parallel_size", "enforce_eager", "logprobs_mode"}
)
_OWN_SAMPLING_ARGS = frozenset(
    {"n", "max_tokens", "temperature", "seed", "structured_outputs", "output_kind", "detokenize"}
    | {"logprobs", "prompt_logprobs", "logprob_token_ids"}
)


class OpenAISettings(LanguageModelSettings):
    """A model behind any server that speaks OpenAI's chat completions: hosted, vLLM, llama.cpp, ..."""

    backend: Literal["openai"]
    base_url: str | tuple[str, ...] = Field(
        description="address of the API, up to and with /v1; a list of them where several servers run the same model"
    )
    api_key_env: str | None = Field(None, description="environment variable that holds the key; null: no key")
    top_p: Annotated[float, Field(gt=0, le=1)] = Field(1.0, description="nucleus mass of sampling")
    top_logprobs: Annotated[int, Field(ge=2, le=20)] = Field(20, description="likeliest tokens that the server reports")
    structured: bool = Field(False, description="ask for the verdict as JSON of a schema; the server must support it")
    extra_body: dict[str, Any] = Field({}, description="further keys of the request; null leaves out one of ours")
    concurrency: Count = Field(32, description="calls in flight at a time")
    requests_per_minute: Positive | None = Field(None, description="most calls a minute; null: no limit")
    tokens_per_minute: Positive | None = Field(None, description="most tokens a minute, both ways; null: no limit")
    timeout_s: Positive = Field(60.0, description="seconds after which a call is given up")
    max_attempts: Count = Field(5, description="calls before a failing request is recorded as an error")
    outage_after: Count = Field(5, description="failures of the server in a row before calls are held back")
    outage_patience_s: Positive = Field(300.0, description="seconds to wait for a server that is away")

    @property
    def addresses(self) -> tuple[str, ...]:
        """Of the servers, one or more."""
        return (self.base_url,) if isinstance(self.base_url, str) else self.base_url

    @model_validator(mode="after")
    def _address(self) -> OpenAISettings:
        # Not a ValueError: the message of one shows the value.
        if any("@" in urlsplit(address).netloc for address in self.addresses):
            raise UsageError(f"Judge {self.name}: base_url must hold no user or password: set api_key_env instead.")
        for address in self.addresses:
            if not address.startswith(("http://", "https://")):
                raise ValueError(f"base_url {address!r} must start with http:// or https://")
        if not self.addresses or len({address.rstrip("/") for address in self.addresses}) < len(self.addresses):
            raise ValueError("base_url must name at least one server, and each once")
        if self.api_key_env is not None and not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", self.api_key_env):
            raise UsageError(f"Judge {self.name}: api_key_env must be the name of an environment variable, not a key.")
        own = {"model", "messages", "temperature", "top_p", "max_tokens", "seed", "logprobs", "top_logprobs"}
        if taken := sorted(key for key in own & self.extra_body.keys() if self.extra_body[key] is not None):
            raise ValueError(f"extra_body must not hold {', '.join(taken)}: the judge's settings or its mode decide it")
        return self


class RubricSettings(_Settings):
    """A program that scores each response by rules."""

    backend: Literal["rubric"]
    mode: Literal["program"] = "program"
    rubric: str = Field(description="file of rules")
    scale: Positive = Field(0.1, description="difference of scores that makes the odds e to 1")


class CascadeSettings(_Settings):
    """Two judges as one: the second is asked only where the first is unsure; see `judges.cascade`."""

    backend: Literal["cascade"]
    mode: Literal["cascade"] = "cascade"
    first: str = Field(min_length=1, description="judge asked about every pair: a shipped name, or a folder from here")
    then: str = Field(min_length=1, description="judge asked where the first is unsure, whose votes then count")
    margin: Annotated[float, Field(ge=0, le=0.5)] = Field(
        0.2, description="unsure where the mean p_a of both orders is nearer to 0.5 than this; 0: never for that reason"
    )
    on_flip: bool = Field(True, description="unsure where the winner changes with the order")
    on_no_preference: bool = Field(
        True, description="unsure where an order has no winner: a tie, an abstention, a parse failure or an error"
    )

    @model_validator(mode="before")
    @classmethod
    def _no_price(cls, value: Any) -> Any:
        if isinstance(value, dict) and "price" in value:
            raise ValueError("a cascade has no price of its own: its members have theirs; remove the key price")
        return value

    @model_validator(mode="after")
    def _can_be_unsure(self) -> CascadeSettings:
        if self.margin == 0 and not self.on_flip and not self.on_no_preference:
            raise ValueError("the first judge would never be unsure: set margin, on_flip or on_no_preference")
        return self


JudgeSettings = TransformersSettings | VLLMSettings | OpenAISettings | RubricSettings | CascadeSettings

SETTINGS: dict[str, type[JudgeSettings]] = {
    "transformers": TransformersSettings,
    "vllm": VLLMSettings,
    "openai": OpenAISettings,
    "rubric": RubricSettings,
    "cascade": CascadeSettings,
}

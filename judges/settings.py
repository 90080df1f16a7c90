"""What a judge.yaml may hold. Backends differ in what they need, so each has its own model; `backend` says which.

`OPERATIONAL` names the keys that change how an answer is obtained (speed, price, address) and never which answer: all
other keys are part of a judge's fingerprint, so a new key is in it unless somebody decides otherwise.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from store.config import Config

Count = Annotated[int, Field(ge=1)]
Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Probability = Annotated[float, Field(ge=0, le=1)]

OPERATIONAL = frozenset(
    {
        "name",
        "description",
        "price",
        "device",
        "batch_tokens",
        "base_url",
        "api_key_env",
        "concurrency",
        "requests_per_minute",
        "tokens_per_minute",
        "timeout_s",
        "max_attempts",
    }
)
"""`base_url` is here because a server may move; where another address means another model, change `revision`."""

FILES = frozenset({"prompt", "constitution", "rubric"})
"""Keys that name files of the judge: their content is in the fingerprint, their names are not."""


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


class _LanguageModelSettings(_Settings):
    """What every judge has that is a language model."""

    model: str = Field(min_length=1, description="model: shipped:..., a folder, or a name on a hub or server")
    revision: str | None = Field(None, description="commit, tag or date of the model, where its name alone may move")
    mode: Literal["pairwise_logprobs", "pairwise_verdict"] = Field(
        "pairwise_logprobs",
        description="pairwise_logprobs: probabilities of the answer token; pairwise_verdict: a verdict after reasoning",
    )
    prompt: str = Field("prompt.jinja", description="template file; variables prompt, first, second, principles")
    constitution: str | None = Field(None, description="file with the principles that the prompt shows")
    principles: Literal["all", "sample"] = Field("all", description="all principles, or one a pair, drawn by its id")
    answers: tuple[str, str] = Field(("1", "2"), description="answers that mean the first and the second response")
    min_mass: Probability = Field(0.5, description="less probability than this on the answers is an abstention")
    max_new_tokens: Count = Field(512, description="longest reasoning and verdict, in tokens; mode pairwise_verdict")
    temperature: NotNegative = Field(0.0, description="sampling temperature; 0 takes the likeliest token")
    parse_attempts: Count = Field(2, description="calls before an unreadable verdict is a parse failure")

    @field_validator("answers")
    @classmethod
    def _two_different(cls, answers: tuple[str, str]) -> tuple[str, str]:
        one, two = (answer.strip().casefold() for answer in answers)
        if not one or not two or one == two or "tie" in (one, two):
            raise ValueError("give two different answers, neither empty nor 'tie', such as ['1', '2']")
        return answers


class TransformersSettings(_LanguageModelSettings):
    """A local model run by Hugging Face transformers in this process."""

    backend: Literal["transformers"]
    batch_tokens: Count = Field(16384, description="most tokens, padding included, in one forward pass")
    device: str = Field("auto", description="auto, cpu, cuda, cuda:1, mps")
    dtype: Literal["auto", "float32", "bfloat16"] = Field("auto", description="auto: bfloat16 on a GPU, else float32")
    chat_template_args: dict[str, Any] = Field({}, description="arguments of the chat template: enable_thinking: false")


class OpenAISettings(_LanguageModelSettings):
    """A model behind any server that speaks OpenAI's chat completions: hosted, vLLM, llama.cpp, ..."""

    backend: Literal["openai"]
    base_url: str = Field(description="address of the API, up to and with /v1")
    api_key_env: str | None = Field(None, description="environment variable that holds the key; null: no key")
    top_p: Annotated[float, Field(gt=0, le=1)] = Field(1.0, description="nucleus mass of sampling")
    top_logprobs: Annotated[int, Field(ge=2, le=20)] = Field(20, description="likeliest tokens that the server reports")
    structured: bool = Field(False, description="ask for the verdict as JSON of a schema; the server must support it")
    extra_body: dict[str, Any] = Field({}, description="further keys of the request, such as chat_template_kwargs")
    concurrency: Count = Field(32, description="calls in flight at a time")
    requests_per_minute: Positive | None = Field(None, description="most calls a minute; null: no limit")
    tokens_per_minute: Positive | None = Field(None, description="most tokens a minute, both ways; null: no limit")
    timeout_s: Positive = Field(60.0, description="seconds after which a call is given up")
    max_attempts: Count = Field(5, description="calls before a failing request is recorded as an error")

    @model_validator(mode="after")
    def _address(self) -> OpenAISettings:
        if not self.base_url.startswith(("http://", "https://")):
            raise ValueError(f"base_url {self.base_url!r} must start with http:// or https://")
        return self


class RubricSettings(_Settings):
    """A program that scores each response by rules."""

    backend: Literal["rubric"]
    mode: Literal["program"] = "program"
    rubric: str = Field(description="file of rules")
    scale: Positive = Field(0.1, description="difference of scores that makes the odds e to 1")


JudgeSettings = TransformersSettings | OpenAISettings | RubricSettings

SETTINGS: dict[str, type[JudgeSettings]] = {
    "transformers": TransformersSettings,
    "openai": OpenAISettings,
    "rubric": RubricSettings,
}

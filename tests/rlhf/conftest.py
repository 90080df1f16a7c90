"""Tiny random models and a word-level tokenizer, built from configs: no test here needs a file or a network."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from rlhf.config import PPOConfig
from rlhf.devices import Compute
from rlhf.ppo.actors import Actors, load_actors
from rlhf.tokens import Codec, make_codec

WORDS = ["the", "a", "cat", "dog", "bird", "fish", "sees", "likes", "eats", "sky", "sea", "tree", "red", "blue"]
WORDS += ["green", "big", "small", "yes", "no", "maybe", "why", "how"]
TEMPLATE = (
    "{% for m in messages %}{% if m.role == 'user' %}<user>{{ m.content }}{% else %}<assistant>{{ m.content }}<eos>"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    torch.set_num_threads(1)


def make_tokenizer(template: bool = True, pad: str | None = "<pad>", words: list[str] = WORDS) -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    special = ["<pad>", "<unk>", "<eos>", "<user>", "<assistant>"]
    vocabulary = {word: index for index, word in enumerate([*special, *words])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        unk_token="<unk>",
        eos_token="<eos>",
        pad_token=pad,
        extra_special_tokens=["<user>", "<assistant>"],
    )
    if template:
        tokenizer.chat_template = TEMPLATE
    return tokenizer


def make_llama(seed: int = 0, scale: float = 0.3, **options: Any) -> Any:
    """A Llama of two layers whose logits spread over a few nats; with the usual small init all would be uniform."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(
        **{
            "vocab_size": len(WORDS) + 5,
            "hidden_size": 16,
            "intermediate_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
            "max_position_embeddings": 64,
            "eos_token_id": 2,
            "pad_token_id": 0,
            "bos_token_id": None,
            "initializer_range": scale,
            "tie_word_embeddings": True,
            **options,
        }
    )
    return LlamaForCausalLM(config).eval()


def make_gpt2(seed: int = 0, **options: Any) -> Any:
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(seed)
    config = GPT2Config(
        **{
            "vocab_size": len(WORDS) + 5,
            "n_embd": 16,
            "n_layer": 2,
            "n_head": 2,
            "n_positions": 64,
            "eos_token_id": 2,
            "bos_token_id": 2,
            "initializer_range": 0.3,
            **options,
        }
    )
    return GPT2LMHeadModel(config).eval()


MODELS: dict[str, Callable[..., Any]] = {"llama": make_llama, "gpt2": make_gpt2}


@pytest.fixture(params=sorted(MODELS))
def model(request: pytest.FixtureRequest) -> Any:
    return MODELS[request.param]()


@pytest.fixture(scope="session")
def compute() -> Compute:
    return Compute(torch.device("cpu"), torch.float32)


@pytest.fixture(scope="session")
def codec() -> Codec:
    return make_codec(make_tokenizer(), make_llama().config)


@pytest.fixture(scope="session")
def policy_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved causal language model with its tokenizer."""
    folder = tmp_path_factory.mktemp("models") / "policy"
    make_llama().save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def reward_folder(tmp_path_factory: pytest.TempPathFactory, policy_folder: Path) -> Path:
    """A saved reward model on another random trunk, with a shift."""
    from rlhf.models import save_model
    from rlhf.reward_model import load_reward_model

    start = tmp_path_factory.mktemp("models") / "start"
    make_llama(seed=1).save_pretrained(start)
    make_tokenizer().save_pretrained(start)
    torch.manual_seed(3)
    reward_model = load_reward_model(str(start), Compute(torch.device("cpu"), torch.float32), trained=True)
    reward_model.shift = 0.25
    return save_model(start.with_name("reward"), reward_model.model, reward_model.codec)


@pytest.fixture
def make_actors(policy_folder: Path, reward_folder: Path, compute: Compute) -> Callable[..., Actors]:
    """Actors for a config, always of the same weights; `score` takes the place of the reward model."""

    def make(config: PPOConfig, score: Callable[[Sequence[tuple[str, str]]], Tensor] | None = None) -> Actors:
        torch.manual_seed(0)
        actors = load_actors(str(policy_folder), str(reward_folder), config, compute)
        if score is not None:
            actors.score = score
        return actors

    return make

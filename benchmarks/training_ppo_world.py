"""Checkpoints and prompts for the speed of PPO: a random Llama whose responses have the lengths that are asked for.

The folder holds `policy` (causal language model), `reward` (sequence classification), each with the tokenizer, and
`prompts.json`. Weights are random, but such that the end token has the wanted probability at every step: lengths
are geometric, cut at the longest.
"""

from __future__ import annotations

import json
import math
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

PAD, END = 0, 1
# Every row of the tied embedding has this first component, and layers add little to it: the first component of the last
# hidden state is nearly the same everywhere, and the end token's row reads nothing else.
SHARED_COMPONENT, LAYERS_SCALE = 1.0, 0.01

END_PROBABILITY = {"full": 1e-9, "natural": 0.038}
"""natural: of at most 64 tokens, mean min(Geometric, 64) = (1 - 0.962^64) / 0.038 = 24."""


@dataclass(frozen=True)
class World:
    """`family`: transformers' prefix of the classes. `sizes`: of its config. Lengths in tokens."""

    family: str
    vocabulary: int
    sizes: dict[str, int]
    prompt_tokens: int
    response_tokens: int


# 5.3M parameters: 2.1M in the tied embedding, 0.8M in each of the layers.
SMALL = World(
    "Llama",
    8192,
    {
        "hidden_size": 256,
        "intermediate_size": 704,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
    },
    prompt_tokens=16,
    response_tokens=64,
)
# The shape of Qwen2-0.5B: 494M parameters.
HALF_BILLION = World(
    "Qwen2",
    151_936,
    {
        "hidden_size": 896,
        "intermediate_size": 4864,
        "num_hidden_layers": 24,
        "num_attention_heads": 14,
        "num_key_value_heads": 2,
    },
    prompt_tokens=128,
    response_tokens=256,
)
TINY = World(
    "Qwen2",
    512,
    {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
    },
    prompt_tokens=8,
    response_tokens=8,
)


def make_tokenizer(vocabulary: int) -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {"<pad>": PAD, "<eos>": END, "<unk>": 2} | {f"w{index}": index for index in range(3, vocabulary)}
    backend = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="<unk>", eos_token="<eos>", pad_token="<pad>", padding_side="left"
    )


def make_texts(count: int, tokens: int, vocabulary: int, seed: int = 0) -> list[str]:
    """Random words, one token each."""
    generator = random.Random(seed)
    return [" ".join(f"w{generator.randrange(3, vocabulary)}" for _ in range(tokens)) for _ in range(count)]


def make(folder: Path, end_probability: float, prompts: int, world: World = SMALL, seed: int = 0) -> Path:
    """Write a world in which a response ends at each token with `end_probability`, at the latest at its longest."""
    import transformers

    torch.manual_seed(seed)
    options: dict[str, Any] = {
        "vocab_size": world.vocabulary,
        "max_position_embeddings": 2 * (world.prompt_tokens + world.response_tokens),
        "pad_token_id": PAD,
        "eos_token_id": END,
        "bos_token_id": None,
        **world.sizes,
    }
    tokenizer = make_tokenizer(world.vocabulary)
    texts = make_texts(prompts, world.prompt_tokens, world.vocabulary, seed)
    config = getattr(transformers, f"{world.family}Config")
    policy = getattr(transformers, f"{world.family}ForCausalLM")(config(**options, tie_word_embeddings=True)).eval()
    with torch.no_grad():
        policy.get_input_embeddings().weight[:, 0] = SHARED_COMPONENT
        for name, value in policy.named_parameters():
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                value.mul_(LAYERS_SCALE)
        set_end_probability(policy, [tokenizer(text)["input_ids"] for text in texts[:8]], world, end_probability)
    policy.generation_config.eos_token_id = END
    reward = getattr(transformers, f"{world.family}ForSequenceClassification")(config(**options, num_labels=1))
    for name, model in (("policy", policy), ("reward", reward)):
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    (folder / "prompts.json").write_text(json.dumps(texts))
    return folder


def set_end_probability(policy: Any, prompts: list[list[int]], world: World, probability: float) -> None:
    """Give the end token `probability`, on average, behind these prompts and random continuations."""
    random_ids = torch.randint(3, world.vocabulary, (len(prompts), min(world.response_tokens, 64)))
    ids = torch.cat([torch.tensor(prompts), random_ids], 1)
    states = policy.model(input_ids=ids, use_cache=False).last_hidden_state[:, world.prompt_tokens - 1 :].flatten(0, 1)
    weight = policy.get_output_embeddings().weight
    logits = states @ weight.T
    logits[:, END] = -math.inf
    wanted = logits.logsumexp(-1).mean() + math.log(probability / (1 - probability))
    weight[END] = 0
    weight[END, 0] = wanted / states[:, 0].mean()

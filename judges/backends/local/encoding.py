"""What a local model reads of a judge's prompt: the chat template around it, and its tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase


def in_chat(tokenizer: PreTrainedTokenizerBase, text: str, arguments: Mapping[str, Any]) -> str:
    """The prompt as a user's message in the model's chat template; as it is where the model has none."""
    if not tokenizer.chat_template:
        return text
    message = [{"role": "user", "content": text}]
    return str(tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True, **arguments))


def encode(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[list[int]]:
    """The tokens of each text of `in_chat`."""
    # A chat template writes the special tokens itself.
    add = not tokenizer.chat_template
    encoded: list[list[int]] = tokenizer(
        list(texts), add_special_tokens=add, return_attention_mask=False, return_token_type_ids=False, verbose=False
    )["input_ids"]
    stop = tokenizer.eos_token_id
    # Some tokenizers close every text; after a stop token a judge has nothing left to say.
    return [ids[:-1] if add and len(ids) > 1 and ids[-1] == stop else ids for ids in encoded]


def too_long(tokens: int, room: int, limit: int) -> str:
    """The error of a prompt that does not fit. `room`: tokens that the answer may take; 0: it takes none."""
    answer = f" and its answer up to {room}" if room else ""
    return f"the judge's prompt has {tokens} tokens{answer}, the model's context holds {limit}"

"""Loading a local model and its tokenizer, and what the tokenizer knows: answers that are one token, special tokens."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, PreTrainedTokenizerBase

from judges.judge import Judge
from judges.settings import TransformersSettings
from store.errors import UsageError
from store.locks import LOADING


def load(judge: Judge, settings: TransformersSettings, device: torch.device) -> tuple[PreTrainedTokenizerBase, Any]:
    """The tokenizer and the model, ready for inference. Raises UsageError where they cannot be loaded."""
    wanted = settings.dtype if settings.dtype != "auto" else "bfloat16" if device.type == "cuda" else "float32"
    try:
        tokenizer = AutoTokenizer.from_pretrained(judge.model, revision=settings.revision)
        # Weights from safetensors only, and no code from the model's repository.
        with LOADING:
            model = AutoModelForCausalLM.from_pretrained(
                judge.model, revision=settings.revision, dtype=getattr(torch, wanted), use_safetensors=True
            )
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, SafetensorError) as error:
        first = next(iter(str(error).splitlines()), type(error).__name__)
        raise UsageError(
            f"Judge {judge.name}: the model {judge.model} cannot be loaded ({first}): check model and revision."
        ) from error
    # A model may ship sampling defaults; only what the judge's settings say may reach generation.
    own = model.generation_config
    stop = own.eos_token_id if own.eos_token_id is not None else tokenizer.eos_token_id
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0
    model.generation_config = GenerationConfig(eos_token_id=stop, pad_token_id=pad, bos_token_id=own.bos_token_id)
    return tokenizer, model.to(device).eval()


def device_of(name: str) -> torch.device:
    """The device of that name; `auto` is a GPU where there is one. Raises UsageError for one that is not there."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UsageError(f"device = {name!r} is not known: use auto, cpu, cuda, cuda:1 or mps.") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UsageError(f"device = {name!r}, but there is no CUDA GPU here: use auto or cpu.")
    return device


def answer_tokens(tokenizer: PreTrainedTokenizerBase, options: Sequence[str], judge: str) -> list[list[int]]:
    """For each option, the ids of all single tokens that spell it, with and without a leading space.

    Raises UsageError where an option is no single token, or one token spells two of them.
    """
    vocabulary: dict[str, int] = tokenizer.get_vocab()
    found: list[list[int]] = []
    for option in options:
        ids = {vocabulary[form] for form in (option, f"\u2581{option}", f"\u0120{option}") if form in vocabulary}
        for form in (option, f" {option}"):
            pieces = tokenizer.encode(form, add_special_tokens=False)
            ids |= {pieces[0]} if len(pieces) == 1 else set()
        ids.discard(tokenizer.unk_token_id)
        if not ids:
            raise UsageError(
                f"Judge {judge}: the answer {option!r} is no single token of its model: choose other answers, such as "
                f"the letters A to J for a rating from 1 to 10, and name them in its prompt."
            )
        found.append(sorted(ids))
    for (one, first), (two, second) in combinations(zip(options, found, strict=True), 2):
        if set(first) & set(second):
            raise UsageError(f"Judge {judge}: its model has one token for {one!r} and {two!r}: choose other answers.")
    return found


def special_tokens(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """The special tokens that text could spell, as the tokenizer writes them."""
    added = getattr(tokenizer, "added_tokens_decoder", {})
    return sorted({str(token) for token in added.values() if token.special} | set(tokenizer.all_special_tokens))


def context_length(model: Any) -> int | None:
    """The longest input in tokens that the model was built for; None where its config does not say."""
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    return int(limit) if limit else None

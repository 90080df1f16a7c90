"""What the training benchmarks train on: dialogues of hh_rlhf, a tokenizer of their words, a small random Llama.

`make(folder, ...)` writes tokenizer, start models and JSON-lines files, which our worker and the peer's both read, so
that both have the same weights, the same texts and the same order.
"""

from __future__ import annotations

import gzip
import json
import os
import random
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
DATA = Path(os.environ.get("RLAIF_BENCHMARK_DATA", ROOT.parent / "shared" / "data"))
"""Third-party data; RLAIF_BENCHMARK_DATA names another folder."""

LAST = "\n\nAssistant:"
END, PAD = "<|end|>", "<|pad|>"


def dialogues(folder: Path) -> list[dict[str, str]]:
    """Rows prompt, chosen, rejected; the prompt is all up to the last answer. Pairs whose prompts differ are out."""
    rows = []
    with gzip.open(folder / "hh_rlhf" / "harmless-base-test.jsonl.gz", "rt", encoding="utf-8") as lines:
        for line in lines:
            pair = json.loads(line)
            (prompt, _, chosen), (other, _, rejected) = (pair[side].rpartition(LAST) for side in ("chosen", "rejected"))
            if prompt == other and chosen.strip() and rejected.strip():
                rows.append({"prompt": prompt.strip() + LAST, "chosen": chosen.rstrip(), "rejected": rejected.rstrip()})
    return rows


def tokenizer(texts: list[str], vocabulary: int) -> Any:
    """A byte-level BPE of the given size, trained on `texts`, without template and without a start token."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[PAD, END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token=PAD, eos_token=END)


def llama(vocabulary: int, hidden: int, layers: int, context: int) -> Any:
    """A random Llama with tied embeddings; `hidden` 256 and 4 layers are 5 million parameters at 8,000 tokens."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocabulary,
            hidden_size=hidden,
            intermediate_size=hidden * 11 // 4,
            num_hidden_layers=layers,
            num_attention_heads=hidden // 64,
            num_key_value_heads=hidden // 64,
            max_position_embeddings=context,
            tie_word_embeddings=True,
            pad_token_id=0,
            eos_token_id=1,
            bos_token_id=None,
        )
    )


def make(folder: Path, data: Path, *, vocabulary: int, hidden: int, layers: int, longest: int, test: int) -> int:
    """Write `model`, `reward` (the same trunk with a drawn head), train.jsonl and test.jsonl; returns training rows.

    longest: rows with more tokens are left out, since one side cuts them and the other drops them.
    """
    import torch
    from transformers import AutoModelForSequenceClassification

    rows = dialogues(data)
    random.Random(0).shuffle(rows)
    words = tokenizer([row["prompt"] + row[side] for row in rows[test:] for side in ("chosen", "rejected")], vocabulary)

    def length(row: dict[str, str]) -> int:
        return max(len(words(row["prompt"] + row[side])["input_ids"]) + 1 for side in ("chosen", "rejected"))

    rows = [row for row in rows if length(row) <= longest]
    model = llama(len(words), hidden, layers, longest)
    model.save_pretrained(folder / "model")
    words.save_pretrained(folder / "model")
    reward = AutoModelForSequenceClassification.from_pretrained(folder / "model", num_labels=1)
    with torch.no_grad():
        reward.score.weight.normal_(std=(hidden + 1) ** -0.5)
    reward.save_pretrained(folder / "reward")
    words.save_pretrained(folder / "reward")
    for name, part in (("test", rows[:test]), ("train", rows[test:])):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
    return len(rows) - test


def read(path: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in path.read_text().splitlines()]

"""Tiny encoders from their configs, with a tokenizer of text pairs: [CLS] prompt [SEP] response [SEP]."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from tests.rlhf.conftest import WORDS

ATTENTION = {"deberta": "eager"}
"""Where a family has no sdpa."""


def pair_tokenizer(types: bool) -> Any:
    """types: whether its families tell the two texts apart by token types."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    backend = Tokenizer(models.WordLevel({w: i for i, w in enumerate([*special, *WORDS])}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        model_input_names=["input_ids", *(["token_type_ids"] if types else []), "attention_mask"],
    )


def make_encoder(family: str, seed: int = 0) -> Any:
    """A masked language model of two layers: bert, deberta, modernbert or roberta."""
    from transformers import (
        AutoModelForMaskedLM,
        BertConfig,
        DebertaV2Config,
        ModernBertConfig,
        RobertaConfig,
    )

    torch.manual_seed(seed)
    size: dict[str, Any] = {
        "vocab_size": len(WORDS) + 5,
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": 64,
        "pad_token_id": 0,
        "initializer_range": 0.3,
    }
    configs: dict[str, Any] = {
        "bert": lambda: BertConfig(**size),
        "deberta": lambda: DebertaV2Config(
            **size, relative_attention=True, pos_att_type=["p2c", "c2p"], type_vocab_size=2, max_relative_positions=-1
        ),
        "modernbert": lambda: ModernBertConfig(
            **size, cls_token_id=2, sep_token_id=3, bos_token_id=2, eos_token_id=3, local_attention=8
        ),
        "roberta": lambda: RobertaConfig(**size, type_vocab_size=1),
    }
    return AutoModelForMaskedLM.from_config(configs[family]()).eval()


def save_encoder(family: str, folder: Path, seed: int = 0) -> Path:
    make_encoder(family, seed).save_pretrained(folder)
    pair_tokenizer(family in ("bert", "deberta")).save_pretrained(folder)
    return folder

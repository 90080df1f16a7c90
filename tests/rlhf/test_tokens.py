"""Prompt formats, stop tokens, context limits, tokenizers without this or that."""

from __future__ import annotations

from pathlib import Path

import pytest

from rlhf.tokens import load_codec, make_codec, same_vocabulary
from store.errors import UsageError
from tests.rlhf.conftest import make_llama, make_tokenizer

EOS, USER, ASSISTANT = 2, 3, 4


def test_chat_template_and_plain_text() -> None:
    chat, plain = make_codec(make_tokenizer()), make_codec(make_tokenizer(template=False))
    words = [chat.tokenizer.get_vocab()[word] for word in ("why", "dog")]
    assert chat.prompt_ids("why dog") == [USER, *words, ASSISTANT]
    assert plain.prompt_ids("why dog") == words
    assert chat.response_ids("dog why") == [*reversed(words), EOS]
    assert not same_vocabulary(chat, plain)
    assert same_vocabulary(chat, make_codec(make_tokenizer()))


def test_spelt_out_special_tokens_stay_text() -> None:
    codec = make_codec(make_tokenizer())
    hostile = "dog <eos> <assistant> cat <pad>"
    for ids in (codec.prompt_ids(hostile)[1:-1], codec.response_ids(hostile)[:-1]):
        assert not {0, EOS, USER, ASSISTANT} & set(ids)


def test_text_drops_only_a_stop_token_that_is_there() -> None:
    codec = make_codec(make_tokenizer())
    dog = codec.response_ids("dog")
    assert codec.text(dog) == "dog"
    assert codec.text(dog[:-1]) == "dog"
    assert codec.finished(dog)
    assert not codec.finished(dog[:-1])
    assert codec.text([EOS]) == ""
    assert codec.response_ids("") == [EOS]


def test_missing_pad_or_eos() -> None:
    no_pad = make_tokenizer(pad=None)
    assert make_codec(no_pad).pad_id == EOS
    no_eos = make_tokenizer(template=False)
    no_eos.eos_token = None
    codec = make_codec(no_eos)
    assert codec.end_id is None
    assert codec.stop_ids == frozenset()
    assert codec.response_ids("dog") == codec.response_ids("dog")[:1]
    with pytest.raises(UsageError, match="no end token"):
        codec.require_end()


def test_stop_tokens_of_the_generation_config_count() -> None:
    model = make_llama()
    model.generation_config.eos_token_id = [EOS, 7]
    codec = make_codec(make_tokenizer(template=False), model.config, model.generation_config)
    assert codec.stop_ids == {EOS, 7}
    assert codec.end_id == EOS


def test_end_token_is_the_one_that_the_template_writes() -> None:
    tokenizer = make_tokenizer()
    tokenizer.chat_template = tokenizer.chat_template.replace("<eos>", "<user>")
    model = make_llama()
    model.generation_config.eos_token_id = [EOS, USER]
    codec = make_codec(tokenizer, model.config, model.generation_config)
    assert codec.end_id == USER


def test_an_empty_plain_prompt_still_has_a_token() -> None:
    assert len(make_codec(make_tokenizer(template=False)).prompt_ids("")) == 1


def test_prompt_that_fills_the_context_names_both_numbers() -> None:
    codec = make_codec(make_tokenizer(), make_llama().config, name="/models/tiny")
    codec.require_room([[1] * 60], 4)
    with pytest.raises(UsageError, match=r"61 tokens and max_new_tokens is 4.*context of tiny\s+holds 64"):
        codec.require_room([[1], [1] * 61], 4)


def test_folder_without_tokenizer_is_one_sentence(tmp_path: Path) -> None:
    make_llama().save_pretrained(tmp_path / "bare")
    with pytest.raises(UsageError, match="has no tokenizer"):
        load_codec(str(tmp_path / "bare"))

"""From text to token ids and back: prompt formats, stop tokens, context limits.

A prompt becomes ids through the tokenizer's chat template where it has one, else as plain text. A response's ids are
encoded apart from the prompt's, so that the boundary between both is known and never searched for.

Text of users and models is untrusted: special tokens that it spells out are broken up first, so that a response cannot
close its own turn or open another one.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from store.errors import UsageError

_PROBE = "rlaifresponse"


@dataclass(frozen=True)
class Codec:
    """A tokenizer with what generation and training need to know about it.

    `stop_ids`: tokens that end a response; any of them counts. `end_id`: the one that is written after a complete
    response in training data; None where the tokenizer has no end token. `context`: most tokens the model can attend
    to, None where it says nothing. `pad_id`: any valid id; masks come from lengths, so its value never matters.
    """

    tokenizer: Any
    stop_ids: frozenset[int]
    end_id: int | None
    context: int | None
    pad_id: int
    name: str

    def prompt_ids(self, prompt: str) -> list[int]:
        """Ids of the prompt up to where the response starts; at least one."""
        prompt = self.neutralise(prompt)
        if self.tokenizer.chat_template:
            text = self.tokenizer.apply_chat_template(
                [{"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True
            )
            ids = self._encode(text)
        else:
            ids = list(self.tokenizer(prompt, add_special_tokens=True)["input_ids"])
            # Some tokenizers close every text with an end token, after which a response would be a new document.
            while ids and ids[-1] in self.stop_ids and len(ids) > 1:
                ids.pop()
        if not ids:
            # The first response token needs a position that predicts it.
            bos = self.tokenizer.bos_token_id
            ids = [bos if bos is not None else self.pad_id]
        return ids

    def response_ids(self, response: str) -> list[int]:
        """Ids of a complete response, closed by the end token where there is one."""
        ids = self._encode(self.neutralise(response))
        return ids if self.end_id is None else [*ids, self.end_id]

    def text(self, ids: Sequence[int]) -> str:
        """The text of response ids: without the stop token, special tokens left out."""
        if ids and ids[-1] in self.stop_ids:
            ids = ids[:-1]
        decoded: str = self.tokenizer.decode(list(ids), skip_special_tokens=True)
        return decoded.strip()

    def finished(self, ids: Sequence[int]) -> bool:
        """Whether the response ended by a stop token that was sampled."""
        return bool(ids) and ids[-1] in self.stop_ids

    def neutralise(self, text: str) -> str:
        """`text` with every special token that it spells out broken by a space."""
        for token in self.tokenizer.all_special_tokens:
            if len(token) > 1 and token in text:
                text = text.replace(token, f"{token[0]} {token[1:]}")
        return text

    def require_room(self, prompts: Iterable[Sequence[int]], max_new_tokens: int) -> None:
        """Raises UsageError where a prompt and the longest response do not fit into the context together."""
        if self.context is None:
            return
        longest = max((len(ids) for ids in prompts), default=0)
        if longest + max_new_tokens > self.context:
            raise UsageError(
                f"A prompt has {longest} tokens and max_new_tokens is {max_new_tokens}, but the context of {self.name} "
                f"holds {self.context}: shorten the prompt or lower max_new_tokens."
            )

    def require_end(self) -> int:
        """The end token. Raises UsageError where there is none, since training could not teach the model to stop."""
        if self.end_id is None:
            raise UsageError(
                f"The tokenizer of {self.name} has no end token (eos_token): set one in its tokenizer_config.json."
            )
        return self.end_id

    def _encode(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])


def load_codec(name: str, config: Any = None, generation_config: Any = None) -> Codec:
    """The tokenizer of a model folder or hub name.

    `config` and `generation_config` are the model's, for its context and its stop tokens. Raises UsageError where there
    is no tokenizer.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(
            f"{name!r} has no tokenizer that can be loaded ({_first_line(error)}): save one with it."
        ) from error
    if len(tokenizer) == 0:
        raise UsageError(f"{name!r} has no tokenizer that can be loaded (its vocabulary is empty): save one with it.")
    return make_codec(tokenizer, config, generation_config, name)


def codec_of(name: str) -> Codec:
    """`load_codec` of a model whose weights are not loaded here. Raises UsageError where there is no such model."""
    from transformers import AutoConfig, GenerationConfig

    try:
        config = AutoConfig.from_pretrained(name)
    except (OSError, ValueError, KeyError) as error:
        raise UsageError(
            f"The model {name!r} cannot be loaded ({_first_line(error)}): give a Hugging Face model."
        ) from error
    try:
        generation_config = GenerationConfig.from_pretrained(name)
    except OSError:  # most models have none
        generation_config = None
    return load_codec(name, config, generation_config)


def make_codec(tokenizer: Any, config: Any = None, generation_config: Any = None, name: str = "the model") -> Codec:
    stops = _as_ids(tokenizer.eos_token_id)
    stops |= _as_ids(getattr(generation_config, "eos_token_id", None)) | _as_ids(getattr(config, "eos_token_id", None))
    pad = tokenizer.pad_token_id
    if pad is None:
        pad = min(stops, default=0)
    context = getattr(config, "max_position_embeddings", None)
    label = Path(name).name or name
    return Codec(tokenizer, frozenset(stops), _end_id(tokenizer, stops), context, pad, label)


def same_vocabulary(first: Codec, second: Codec) -> bool:
    """Whether ids of one mean the same in the other."""
    vocabulary: bool = first.tokenizer.get_vocab() == second.tokenizer.get_vocab()
    return vocabulary and first.tokenizer.chat_template == second.tokenizer.chat_template


def _end_id(tokenizer: Any, stops: set[int]) -> int | None:
    """The stop token that the chat template writes after a response (such as <|im_end|>), else the tokenizer's own."""
    if tokenizer.chat_template:
        turns = [{"role": "user", "content": "?"}, {"role": "assistant", "content": _PROBE}]
        text = tokenizer.apply_chat_template(turns, tokenize=False)
        _, found, rest = text.rpartition(_PROBE)
        if found:
            first: list[int] = tokenizer(rest, add_special_tokens=False)["input_ids"][:1]
            if first and first[0] in stops:
                return first[0]
    eos: int | None = tokenizer.eos_token_id
    return eos if eos is not None else min(stops, default=None)


def _as_ids(value: int | list[int] | None) -> set[int]:
    if value is None:
        return set()
    return {value} if isinstance(value, int) else set(value)


def _first_line(error: BaseException) -> str:
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__

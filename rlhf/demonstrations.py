"""Demonstrations as token ids: a prompt with its response, or a conversation whose assistant turns are all learnt from.

A conversation goes through the tokenizer's chat template once, whole. Which tokens are the assistant's comes from the
template itself where it marks them ({% generation %}), else from the text: an assistant turn is what the template adds
between the turns before it, with the opening of an answer, and the turns up to it. The end token of each turn is
trained on, since a model that never saw it would not stop; what the template writes behind it is not.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from rlhf.sequences import Sample
from rlhf.tokens import Codec
from store.errors import UsageError

Message = Mapping[str, str]
"""`role`: system, user or assistant. `content`: text."""

_MARKED = re.compile(r"\{%-?\s*generation\s*-?%\}")


class Demonstrations(NamedTuple):
    """`trained`: for each sample which of its response tokens count in the loss; None where all do."""

    samples: list[Sample]
    trained: list[list[bool]] | None = None

    def part(self, indices: Sequence[int]) -> Demonstrations:
        masks = None if self.trained is None else [self.trained[index] for index in indices]
        return Demonstrations([self.samples[index] for index in indices], masks)

    @property
    def tokens(self) -> int:
        """Tokens in the loss."""
        if self.trained is None:
            return sum(len(sample.response) for sample in self.samples)
        return sum(map(sum, self.trained))


def encode_conversations(codec: Codec, conversations: Sequence[Sequence[Message]]) -> Demonstrations:
    """Ids of conversations. Raises UsageError where the tokenizer has no chat template, or a conversation no answer."""
    codec.require_end()
    if not codec.tokenizer.chat_template:
        raise UsageError(
            f"The tokenizer of {codec.name} has no chat template, which conversations need: set one, or give the "
            "columns prompt and response."
        )
    encoded = [_encode(codec, messages, number) for number, messages in enumerate(conversations)]
    return Demonstrations([sample for sample, _ in encoded], [mask for _, mask in encoded])


def _encode(codec: Codec, messages: Sequence[Message], number: int) -> tuple[Sample, list[bool]]:
    turns = [{"role": message["role"], "content": codec.neutralise(message["content"])} for message in messages]
    ids, mask = _marked(codec, turns) if _MARKED.search(codec.tokenizer.chat_template) else _found(codec, turns)
    mask = _with_ends(codec, ids, mask)
    if not any(mask[1:]):
        raise UsageError(f"Conversation {number} has no answer of the assistant to train on: remove it.")
    first = next(at for at in range(1, len(mask)) if mask[at])
    last = max(at for at in range(len(mask)) if mask[at])
    return Sample(ids[:first], ids[first : last + 1]), mask[first : last + 1]


def _marked(codec: Codec, turns: list[dict[str, str]]) -> tuple[list[int], list[bool]]:
    found = codec.tokenizer.apply_chat_template(
        turns, tokenize=True, return_dict=True, return_assistant_tokens_mask=True
    )
    return list(found["input_ids"]), [bool(value) for value in found["assistant_masks"]]


def _found(codec: Codec, turns: list[dict[str, str]]) -> tuple[list[int], list[bool]]:
    def text(upto: int, opened: bool = False) -> str:
        rendered: str = codec.tokenizer.apply_chat_template(turns[:upto], tokenize=False, add_generation_prompt=opened)
        return rendered

    whole, spans = text(len(turns)), []
    for index, turn in enumerate(turns):
        if turn["role"] != "assistant":
            continue
        before, after = text(index, opened=True) if index else "", text(index + 1)
        if not (whole.startswith(after) and after.startswith(before)):
            raise UsageError(
                f"The chat template of {codec.name} writes earlier turns differently once later ones follow, so the "
                "assistant's tokens cannot be told: mark them in it with {% generation %}."
            )
        spans.append((len(before), len(after)))
    found = codec.tokenizer(whole, add_special_tokens=False, return_offsets_mapping=True)
    mask = [any(low <= start < end <= high for low, high in spans) for start, end in found["offset_mapping"]]
    return list(found["input_ids"]), mask


def _with_ends(codec: Codec, ids: Sequence[int], mask: Sequence[bool]) -> list[bool]:
    """Each run of trained tokens up to its last stop token; one that lies right behind the run joins it."""
    mask, start = list(mask), None
    for at in range(len(ids) + 1):
        if at < len(ids) and mask[at]:
            start = at if start is None else start
            continue
        if start is None:
            continue
        stops = [place for place in range(start, at) if ids[place] in codec.stop_ids]
        if stops:
            mask[stops[-1] + 1 : at] = [False] * (at - stops[-1] - 1)
        elif at < len(ids) and ids[at] in codec.stop_ids:
            mask[at] = True
        start = None
    return mask

"""The backend of local models: Hugging Face transformers, batched, in this process.

A `Choice` is one forward pass that reads the next-token distribution at the last position alone; a `Text` is generated.
The calls of a cell are laid out together (`local.layout`), and what their prompts share, such as a constitution, is
computed once where the model can (`local.prefix`). The layout depends on the cell's calls alone: of those already
answered too, so that a run that goes on after a kill computes the same batches, and the same bits. Batches in which
all is answered are skipped.
"""

from __future__ import annotations

import math
import time
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import groupby
from typing import ClassVar

import torch

from judges.backends.base import Call, Choice, Reply, Scores, Text, Want
from judges.backends.local.encoding import encode, in_chat, too_long
from judges.backends.local.generation import GumbelSampler, generate
from judges.backends.local.layout import Group, apart, batches, groups, plain_batches, preamble
from judges.backends.local.model import answer_tokens, context_length, device_of, load, special_tokens
from judges.backends.local.prefix import Segment, SharedForward, left_padded
from judges.judge import Judge
from judges.modes import Kind
from judges.prompts import WELL_KNOWN_SPECIALS
from judges.settings import TransformersSettings
from store.errors import RlaifError

__all__ = ["GumbelSampler", "TransformersBackend", "answer_tokens", "special_tokens"]

_CPU_TOKENS = 1024
"""Most tokens in a pass on a CPU: activations that outgrow its caches cost more than larger batches save."""


@dataclass(frozen=True)
class _Prompt:
    call: Call
    ids: list[int]


class TransformersBackend:
    """A causal language model as a judge. Raises UsageError where the model cannot be loaded or lacks the answers."""

    wants: ClassVar[tuple[type[Want], ...]] = (Choice, Text)

    def __init__(self, judge: Judge) -> None:
        self._judge, self._settings = judge, judge.settings_as(TransformersSettings)
        self._device = device_of(self._settings.device)
        self._tokenizer, self._model = load(judge, self._settings, self._device)
        self._forward = SharedForward(self._model)
        self._specials = [*WELL_KNOWN_SPECIALS, *special_tokens(self._tokenizer)]
        self._limit = context_length(self._model)
        self._answers: dict[tuple[str, ...], list[torch.Tensor]] = {}
        want = judge.mode.want(self._settings, 1 if judge.mode.kind == Kind.SINGLE else 2)
        if isinstance(want, Choice):
            self._tokens_of(want.options)

    @property
    def specials(self) -> Sequence[str]:
        return self._specials

    def answer(self, calls: Iterable[Call]) -> Generator[Reply, None, None]:
        for _, cell in groupby(calls, key=lambda call: call.cell):
            yield from self._answer_cell(list(cell))

    def close(self) -> None:
        del self._model, self._forward
        if self._device.type == "cuda":
            torch.cuda.empty_cache()

    def prompt_of(self, call: Call) -> str:
        """The text that the model reads, chat template included."""
        return in_chat(self._tokenizer, call.text, self._settings.chat_template_args)

    def _answer_cell(self, cell: list[Call]) -> Iterator[Reply]:
        if all(call.answered for call in cell):
            return
        fitting: list[_Prompt] = []
        unfit: list[Reply] = []
        encoded = encode(self._tokenizer, [self.prompt_of(call) for call in cell])
        for call, ids in zip(cell, encoded, strict=True):
            room = call.want.max_tokens if isinstance(call.want, Text) else 0
            if self._limit is None or len(ids) + room <= self._limit:
                fitting.append(_Prompt(call, ids))
            elif not call.answered:
                unfit.append(Reply(call, error=too_long(len(ids), room, self._limit)))
        for want, alike in _by_want(fitting):
            yield from self._choices(want, alike) if isinstance(want, Choice) else self._texts(want, alike)
        # Last, although they were known first: the panel stops a judge by its rate of errors so far.
        yield from unfit

    def _choices(self, want: Choice, prompts: list[_Prompt]) -> Iterator[Reply]:
        rows = [prompt.ids for prompt in prompts]
        options = self._tokens_of(want.options)
        most = (
            min(self._settings.batch_tokens, _CPU_TOKENS) if self._device.type == "cpu" else self._settings.batch_tokens
        )
        head = self._preamble(rows)
        start = head.mask.shape[1] if head else 0
        made = groups(rows, start, most) if self._forward.shares else apart(rows)
        for batch in batches(rows, made, start, most):
            members = [prompts[number] for group in batch for number in group.members]
            if all(prompt.call.answered for prompt in members):
                continue
            begun = time.monotonic()
            with self._memory(most):
                found = self._option_logprobs(rows, batch, head, options)
            yield from _unanswered(
                [_choice(prompt, tuple(row)) for prompt, row in zip(members, found, strict=True)], begun
            )

    @torch.inference_mode()
    def _option_logprobs(
        self, rows: list[list[int]], batch: list[Group], head: Segment | None, options: list[torch.Tensor]
    ) -> list[list[float]]:
        """For each member of the batch's groups the log-probability of each option."""
        segments = [head] if head else []
        start = head.mask.shape[1] if head else 0
        if any(group.shared > start for group in batch):
            shared = self._padded([rows[group.members[0]][start : group.shared] for group in batch])
            of = [at for at, group in enumerate(batch) for _ in group.members]
            segments.append(replace(self._forward.segment(*shared, segments), of=torch.tensor(of, device=self._device)))
        own = self._padded([rows[member][group.shared :] for group in batch for member in group.members])
        logprobs = torch.log_softmax(self._forward(*own, segments).float(), dim=-1)
        found: list[list[float]] = torch.stack(
            [torch.logsumexp(logprobs[:, tokens], dim=-1) for tokens in options], dim=-1
        ).tolist()
        return found

    def _texts(self, want: Text, prompts: list[_Prompt]) -> Iterator[Reply]:
        rows = [prompt.ids for prompt in prompts]
        most = self._settings.batch_tokens
        head = self._preamble(rows)
        for batch in plain_batches([len(row) for row in rows], want.max_tokens, most):
            members = [prompts[number] for number in batch]
            if all(prompt.call.answered for prompt in members):
                continue
            begun = time.monotonic()
            with self._memory(most):
                replies = self._written(want, members, head)
            yield from _unanswered(replies, begun)

    @torch.inference_mode()
    def _written(self, want: Text, batch: list[_Prompt], head: Segment | None) -> list[Reply]:
        start = head.mask.shape[1] if head else 0
        ids, mask = self._padded([prompt.ids[start:] for prompt in batch])
        if head:
            first = torch.tensor(batch[0].ids[:start], device=self._device).expand(len(batch), -1)
            ids, mask = torch.cat([first, ids], -1), torch.cat([torch.ones_like(first), mask], -1)
        replies: dict[int, Reply] = {}
        waiting = list(range(len(batch)))
        temperature = self._settings.temperature
        # Greedy decoding repeats itself: another call can only help where tokens are drawn.
        for attempt in range(1, (self._settings.parse_attempts if temperature > 0 else 1) + 1):
            seeds = [batch[row].call.seed + attempt - 1 for row in waiting]
            texts = generate(
                self._model, self._tokenizer, ids[waiting], mask[waiting], head, want.max_tokens, temperature, seeds
            )
            for row, (text, tokens) in zip(waiting, texts, strict=True):
                before = replies[row].tokens_out if row in replies else 0
                replies[row] = Reply(
                    batch[row].call,
                    text=text,
                    tokens_in=len(batch[row].ids) * attempt,
                    tokens_out=before + tokens,
                    attempts=attempt,
                )
            waiting = [row for row in waiting if not want.readable(replies[row].text or "")]
            if not waiting:
                break
        return [replies[row] for row in range(len(batch))]

    @torch.inference_mode()
    def _preamble(self, rows: list[list[int]]) -> Segment | None:
        """What all rows begin with; None where the model cannot share it, or that would save little."""
        length = preamble(rows) if self._forward.shares else 0
        if not length:
            return None
        with self._memory(length):
            return self._forward.segment(*self._padded([rows[0][:length]]))

    def _padded(self, rows: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
        ids, mask = left_padded(rows, self._tokenizer.pad_token_id or 0)
        return ids.to(self._device), mask.to(self._device)

    @contextmanager
    def _memory(self, tokens: int) -> Iterator[None]:
        try:
            yield
        except torch.cuda.OutOfMemoryError as error:
            raise RlaifError(
                f"Judge {self._judge.name} ran out of GPU memory with up to {tokens} tokens in a batch: lower "
                f"batch_tokens, now {self._settings.batch_tokens}."
            ) from error

    def _tokens_of(self, options: tuple[str, ...]) -> list[torch.Tensor]:
        if options not in self._answers:
            found = answer_tokens(self._tokenizer, options, self._judge.name)
            self._answers[options] = [torch.tensor(ids, device=self._device) for ids in found]
        return self._answers[options]


def _by_want(prompts: list[_Prompt]) -> list[tuple[Choice | Text, list[_Prompt]]]:
    """Prompts that can be computed together: those that have the same options, or the same longest text."""
    kinds: dict[object, tuple[Choice | Text, list[_Prompt]]] = {}
    for prompt in prompts:
        want = prompt.call.want
        if isinstance(want, Scores):
            raise TypeError("a language model gives no scores")
        key = want.options if isinstance(want, Choice) else want.max_tokens
        kinds.setdefault(key, (want, []))[1].append(prompt)
    return list(kinds.values())


def _choice(prompt: _Prompt, logprobs: tuple[float, ...]) -> Reply:
    if any(math.isnan(logprob) for logprob in logprobs):
        error = "the model's output is not a number: its weights or its dtype are at fault"
        return Reply(prompt.call, tokens_in=len(prompt.ids), error=error)
    return Reply(prompt.call, logprobs=logprobs, tokens_in=len(prompt.ids))


def _unanswered(replies: list[Reply], begun: float) -> list[Reply]:
    seconds = (time.monotonic() - begun) / len(replies)
    return [replace(reply, latency_s=seconds) for reply in replies if not reply.call.answered]

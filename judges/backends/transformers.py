"""The backend of local models: Hugging Face transformers, batched, in this process.

Mode pairwise_logprobs needs one forward pass a vote and reads the next-token distribution at the last position alone.
Mode pairwise_verdict generates reasoning and parses the verdict. Prompts are sorted by length within a window and
batched by tokens; they are padded on the left, so that the last position is the last token of every row.
"""

from __future__ import annotations

import inspect
import math
import time
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedTokenizerBase,
)

from judges.backends.base import Answer, Request, preference_from_logprobs
from judges.judge import Judge
from judges.parsing import parse_verdict
from judges.prompts import WELL_KNOWN_SPECIALS
from judges.settings import TransformersSettings
from store.errors import RlaifError, UsageError
from store.tables import Status

_WINDOW = 2048  # requests sorted by length together: bounds memory, and how many votes wait before the first is written

P_FIRST = {"first": 1.0, "second": 0.0, "tie": 0.5}


@dataclass(frozen=True)
class _Encoded:
    request: Request
    ids: list[int]


class TransformersBackend:
    """A causal language model as a judge. Raises UsageError where the model cannot be loaded or lacks the answers."""

    def __init__(self, judge: Judge) -> None:
        self._judge, self._settings = judge, judge.settings_as(TransformersSettings)
        self._device = _device(self._settings.device)
        self._tokenizer, self._model = _load(judge, self._settings, self._device)
        self._specials = [*WELL_KNOWN_SPECIALS, *special_tokens(self._tokenizer)]
        self._limit = context_length(self._model)
        self._accepted = inspect.signature(self._model.forward).parameters
        if self._settings.mode == "pairwise_logprobs":
            first, second = answer_tokens(self._tokenizer, self._settings.answers, judge.name)
            self._first = torch.tensor(first, device=self._device)
            self._second = torch.tensor(second, device=self._device)

    def answer(self, requests: Iterable[Request]) -> Generator[Answer, None, None]:
        stream = iter(requests)
        while window := list(islice(stream, _WINDOW)):
            yield from self._answer_window(window)

    def close(self) -> None:
        del self._model
        if self._device.type == "cuda":
            torch.cuda.empty_cache()

    def prompt_of(self, request: Request) -> str:
        """The text that the model reads, chat template included."""
        pair = request.pair
        text = self._judge.render(pair.prompt, request.first, request.second, pair.pair_id, self._specials)
        if not self._tokenizer.chat_template:
            return text
        chat = self._tokenizer.apply_chat_template(
            [{"role": "user", "content": text}],
            tokenize=False,
            add_generation_prompt=True,
            **self._settings.chat_template_args,
        )
        return str(chat)

    def _answer_window(self, window: list[Request]) -> Iterator[Answer]:
        room = self._settings.max_new_tokens if self._settings.mode == "pairwise_verdict" else 0
        fitting: list[_Encoded] = []
        too_long: list[Answer] = []
        for request, ids in zip(window, self._encode([self.prompt_of(request) for request in window]), strict=True):
            if self._limit is not None and len(ids) + room > self._limit:
                too_long.append(Answer(request, Status.ERROR, error=_too_long(len(ids), room, self._limit)))
            else:
                fitting.append(_Encoded(request, ids))
        # Longest first: a batch that does not fit into memory fails at once, not after an hour.
        fitting.sort(key=lambda encoded: len(encoded.ids), reverse=True)
        for batch in _batches(fitting, room, self._settings.batch_tokens):
            yield from self._answer_batch(batch)
        # Last, although they were known first: the panel stops a judge by its rate of errors so far.
        yield from too_long

    def _answer_batch(self, batch: list[_Encoded]) -> list[Answer]:
        start = time.monotonic()
        ids, mask = left_padded([encoded.ids for encoded in batch], self._tokenizer.pad_token_id or 0)
        ids, mask = ids.to(self._device), mask.to(self._device)
        try:
            with torch.inference_mode():
                if self._settings.mode == "pairwise_logprobs":
                    answers = self._preferences(batch, ids, mask)
                else:
                    answers = self._verdicts(batch, ids, mask)
        except torch.cuda.OutOfMemoryError as error:
            raise RlaifError(
                f"Judge {self._judge.name} ran out of GPU memory with {ids.numel()} tokens in a batch: lower "
                f"batch_tokens, now {self._settings.batch_tokens}."
            ) from error
        seconds = (time.monotonic() - start) / len(batch)
        return [Answer(**{**vars(answer), "latency_s": seconds}) for answer in answers]

    def _preferences(self, batch: list[_Encoded], ids: torch.Tensor, mask: torch.Tensor) -> list[Answer]:
        # Logits of the last position only, where the architecture can: of all of them they would fill the memory.
        optional = {"position_ids": position_ids(mask), "logits_to_keep": 1}
        known = {name: value for name, value in optional.items() if name in self._accepted}
        logits = self._model(input_ids=ids, attention_mask=mask, use_cache=False, **known).logits
        logprobs = torch.log_softmax(logits[:, -1].float(), dim=-1)
        first = torch.logsumexp(logprobs[:, self._first], dim=-1).tolist()
        second = torch.logsumexp(logprobs[:, self._second], dim=-1).tolist()
        answers = []
        for encoded, one, two in zip(batch, first, second, strict=True):
            if math.isnan(one) or math.isnan(two):
                error = "the model's output is not a number: its weights or its dtype are at fault"
                answers.append(Answer(encoded.request, Status.ERROR, tokens_in=len(encoded.ids), error=error))
                continue
            found = preference_from_logprobs(one, two, self._settings.min_mass)
            answers.append(Answer(encoded.request, found.status, found.p_first, found.mass, tokens_in=len(encoded.ids)))
        return answers

    def _verdicts(self, batch: list[_Encoded], ids: torch.Tensor, mask: torch.Tensor) -> list[Answer]:
        answers: dict[int, Answer] = {}
        waiting = list(range(len(batch)))
        # Greedy decoding repeats itself: another call can only help where tokens are drawn.
        most = self._settings.parse_attempts if self._settings.temperature > 0 else 1
        for attempt in range(1, most + 1):
            rows = torch.tensor(waiting, device=ids.device)
            seeds = [batch[row].request.sampling_seed + attempt - 1 for row in waiting]
            texts = self._generate(ids[rows], mask[rows], seeds)
            for row, (text, tokens) in zip(waiting, texts, strict=True):
                verdict = parse_verdict(text, self._settings.answers)
                before = answers[row].tokens_out if row in answers else 0
                status = Status.PARSE_FAILURE if verdict is None else Status.SCORED
                answers[row] = Answer(
                    batch[row].request,
                    Status.TIE if verdict and verdict.choice == "tie" else status,
                    p_first=P_FIRST[verdict.choice] if verdict else None,
                    raw=text,
                    rationale=verdict.rationale if verdict else None,
                    tokens_in=len(batch[row].ids) * attempt,
                    tokens_out=before + tokens,
                    attempts=attempt,
                )
            waiting = [row for row in waiting if answers[row].status == Status.PARSE_FAILURE]
            if not waiting:
                break
        return [answers[row] for row in range(len(batch))]

    def _generate(self, ids: torch.Tensor, mask: torch.Tensor, seeds: list[int]) -> list[tuple[str, int]]:
        """The new text of each row and its number of tokens, the stop token included."""
        sampler = LogitsProcessorList()
        if self._settings.temperature > 0:
            sampler.append(GumbelSampler(self._settings.temperature, seeds))
        output = self._model.generate(
            input_ids=ids,
            attention_mask=mask,
            logits_processor=sampler,
            do_sample=False,
            max_new_tokens=self._settings.max_new_tokens,
        )
        stops = _stops(self._model)
        found = []
        for row in output[:, ids.shape[1] :].tolist():
            end = next((at for at, token in enumerate(row) if token in stops), None)
            kept = row if end is None else row[:end]
            text = self._tokenizer.decode(kept, skip_special_tokens=True)
            found.append((str(text), len(kept) + (end is not None)))
        return found

    def _encode(self, texts: list[str]) -> list[list[int]]:
        # A chat template writes the special tokens itself.
        add = not self._tokenizer.chat_template
        encoded: list[list[int]] = self._tokenizer(texts, add_special_tokens=add, verbose=False)["input_ids"]
        stop = self._tokenizer.eos_token_id
        # Some tokenizers close every text; after a stop token a judge has nothing left to say.
        return [ids[:-1] if add and len(ids) > 1 and ids[-1] == stop else ids for ids in encoded]


class GumbelSampler(LogitsProcessor):  # type: ignore[misc]
    """Sampling at a temperature as the argmax of noisy logits (Gumbel-max), with a random stream for each row.

    Drawn this way, a row's text depends on its own seed and not on the rows beside it in the batch.
    """

    def __init__(self, temperature: float, seeds: list[int]) -> None:
        self._temperature = temperature
        self._streams = [torch.Generator().manual_seed(seed) for seed in seeds]

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        uniform = torch.stack([torch.rand(scores.shape[-1], generator=stream) for stream in self._streams])
        noise = -torch.log(-torch.log(uniform.clamp(1e-20, 1 - 1e-7)))
        return scores.float() / self._temperature + noise.to(scores.device)


def left_padded(rows: Sequence[Sequence[int]], pad: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and attention mask, both (rows, longest). The mask comes from lengths: a pad id may be a real token."""
    longest = max(len(row) for row in rows)
    ids = torch.full((len(rows), longest), pad, dtype=torch.long)
    mask = torch.zeros((len(rows), longest), dtype=torch.long)
    for at, row in enumerate(rows):
        ids[at, longest - len(row) :] = torch.tensor(row)
        mask[at, longest - len(row) :] = 1
    return ids, mask


def position_ids(mask: torch.Tensor) -> torch.Tensor:
    """Positions that start at 0 with the first real token of each row."""
    return (mask.cumsum(dim=-1) - 1).clamp(min=0)


def answer_tokens(
    tokenizer: PreTrainedTokenizerBase, answers: tuple[str, str], judge: str
) -> tuple[list[int], list[int]]:
    """The ids of all single tokens that spell each answer, with and without a leading space.

    Raises UsageError where an answer is no single token, or one token spells both.
    """
    vocabulary: dict[str, int] = tokenizer.get_vocab()
    found = []
    for answer in answers:
        ids = {vocabulary[form] for form in (answer, f"\u2581{answer}", f"\u0120{answer}") if form in vocabulary}
        for form in (answer, f" {answer}"):
            pieces = tokenizer.encode(form, add_special_tokens=False)
            ids |= {pieces[0]} if len(pieces) == 1 else set()
        ids.discard(tokenizer.unk_token_id)
        if not ids:
            raise UsageError(
                f"Judge {judge}: the answer {answer!r} is no single token of its model: choose other answers."
            )
        found.append(sorted(ids))
    if set(found[0]) & set(found[1]):
        raise UsageError(
            f"Judge {judge}: its model has one token for {answers[0]!r} and {answers[1]!r}: choose other answers."
        )
    return found[0], found[1]


def special_tokens(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """The special tokens that text could spell, as the tokenizer writes them."""
    added = getattr(tokenizer, "added_tokens_decoder", {})
    return sorted({str(token) for token in added.values() if token.special} | set(tokenizer.all_special_tokens))


def context_length(model: Any) -> int | None:
    """The longest input in tokens that the model was built for; None where its config does not say."""
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    return int(limit) if limit else None


def _batches(encoded: list[_Encoded], room: int, most: int) -> Iterator[list[_Encoded]]:
    """Runs of `encoded`, sorted by falling length, of at most `most` tokens with padding, and at least one row."""
    batch: list[_Encoded] = []
    for one in encoded:
        if batch and (len(batch[0].ids) + room) * (len(batch) + 1) > most:
            yield batch
            batch = []
        batch.append(one)
    if batch:
        yield batch


def _too_long(tokens: int, room: int, limit: int) -> str:
    answer = f" and its answer up to {room}" if room else ""
    return f"the judge's prompt has {tokens} tokens{answer}, the model's context holds {limit}"


def _stops(model: Any) -> set[int]:
    stop = model.generation_config.eos_token_id
    return set(stop) if isinstance(stop, list) else {stop} - {None}


def _device(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UsageError(f"device = {name!r} is not known: use auto, cpu, cuda, cuda:1 or mps.") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UsageError(f"device = {name!r}, but there is no CUDA GPU here: use auto or cpu.")
    return device


def _load(judge: Judge, settings: TransformersSettings, device: torch.device) -> tuple[PreTrainedTokenizerBase, Any]:
    wanted = settings.dtype if settings.dtype != "auto" else "bfloat16" if device.type == "cuda" else "float32"
    try:
        tokenizer = AutoTokenizer.from_pretrained(judge.model, revision=settings.revision)
        # Weights from safetensors only, and no code from the model's repository.
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

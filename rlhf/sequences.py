"""Ragged batches of prompt and response ids, packed several to a row: no padding goes through the model's trunk.

Legend of shapes, used in the whole room:
    b  sequences of a batch          t  tokens of the longest response
    r  rows of a micro-batch         w  width of a row, in tokens
    n  response tokens of a micro-batch, all sequences one after another
    s  sequences of a micro-batch    d  hidden size           v  vocabulary

Position ids restart at 0 with each sequence of a row. transformers (`masking_utils.find_packed_sequence_indices`) takes
such a restart, given without an attention mask and without a cache, for the border of a sequence, and builds the
block-diagonal causal mask for sdpa and eager, or the cumulative lengths for flash attention. Which tokens are real
follows from lengths alone and never from comparing ids with the padding id, so padding may be any token, EOS included.

Rows are short (`ROW_TOKENS` or the longest sequence, and up to half as long again where less of them stays unused)
because attention with a mask costs the square of the row. The last token of a response predicts nothing, so the rows
of log-probs and values end before it; a reward is read there, and its rows hold `whole` exchanges.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from rlhf.devices import on_device

ROW_TOKENS = 64
WIDTHS = 9
"""Widths of rows that are tried, from the least to half as long again."""
ATTENTION = 1024
"""Width of a row at which attention costs as much as everything else, roughly, in a small model on a CPU."""


class Sample(NamedTuple):
    """The ids of one prompt (at least one) and of its response (at least one where it is trained on)."""

    prompt: Sequence[int]
    response: Sequence[int]

    @property
    def length(self) -> int:
        return len(self.prompt) + len(self.response)


class MicroBatch(NamedTuple):
    """What one forward pass gets. The s sequences stand in the order of `members`, whatever row they lie in."""

    ids: Tensor
    """[r, w] token ids; the unused ends of rows hold an arbitrary id."""
    positions: Tensor
    """[r, w] position in its own sequence."""
    members: list[int]
    """Index of each sequence in the batch that was packed."""
    lengths: list[int]
    """Response tokens of each sequence; they sum to n."""
    before: Tensor
    """[n] flat index (row * w + column) of the position that predicts each response token: the one before it."""
    targets: Tensor
    """[n] the response tokens."""
    last: Tensor
    """[s] flat index of each sequence's last token that is in its row."""


def split(costs: Sequence[int], budget: int) -> list[list[int]]:
    """Cut 0..len(costs)-1 into consecutive parts whose costs sum to at most `budget`; a dearer item stands alone."""
    parts: list[list[int]] = []
    spent = 0
    for index, cost in enumerate(costs):
        if not parts or spent + cost > budget:
            parts.append([])
            spent = 0
        parts[-1].append(index)
        spent += cost
    return parts


def split_padded(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Indices of sequences by forward pass, where each is a row as wide as the longest of its pass: the cheapest cut of
    the sequences in order of length (dynamic programming over the cuts).

    A pass of n rows costs n times its width in tokens, at most `budget`, and a sixteenth of `budget` for itself; a
    longer sequence stands alone.
    """
    order = sorted(range(len(lengths)), key=lambda index: lengths[index])
    cost, cut = [0.0], [0]
    for end in range(1, len(order) + 1):
        width = lengths[order[end - 1]]
        first = max(0, end - max(1, budget // max(width, 1)))
        padded, start = min((cost[start] + (end - start) * width, start) for start in range(first, end))
        cost.append(padded + budget / 16)
        cut.append(start)
    parts: list[list[int]] = []
    end = len(order)
    while end:
        parts.append(order[cut[end] : end])
        end = cut[end]
    return parts[::-1]


def micro_batches(samples: Sequence[Sample], budget: int, device: torch.device) -> Iterator[MicroBatch]:
    """Pack `samples` into micro-batches of at most `budget` real tokens."""
    for part in split([sample.length for sample in samples], budget):
        yield pack(samples, part, device)


def pack(
    samples: Sequence[Sample],
    members: Sequence[int],
    device: torch.device,
    row_tokens: int = ROW_TOKENS,
    *,
    whole: bool = False,
) -> MicroBatch:
    """Pack `samples[i] for i in members` into rows of at least `max(row_tokens, longest)` tokens, the longest first.

    whole: the last response token too, from which nothing is predicted.
    """
    sequences = [[*samples[index].prompt, *samples[index].response] for index in members]
    if not whole:
        sequences = [
            ids[: max(len(samples[i].prompt), len(ids) - 1)] for i, ids in zip(members, sequences, strict=True)
        ]
    lengths = [len(sequence) for sequence in sequences]
    width, places = _place(lengths, row_tokens)
    rows = 1 + max(row for row, _ in places)
    ids = [[0] * width for _ in range(rows)]
    # The unused end of a row counts up from 0 again: sequences of its own, which nothing reads, none longer than the
    # real ones, since a model may know no further positions.
    positions = [[0] * width for _ in range(rows)]
    filled = [0] * rows
    before: list[int] = []
    targets: list[int] = []
    last: list[int] = []
    for index, sequence, (row, start) in zip(members, sequences, places, strict=True):
        sample, length = samples[index], len(sequence)
        ids[row][start : start + length] = sequence
        positions[row][start : start + length] = range(length)
        filled[row] = max(filled[row], start + length)
        first = row * width + start + len(sample.prompt) - 1
        before.extend(range(first, first + len(sample.response)))
        targets.extend(sample.response)
        last.append(row * width + start + length - 1)
    for row, end in enumerate(filled):
        positions[row][end:] = [place % max(lengths) for place in range(width - end)]

    def tensor(value: object) -> Tensor:
        return on_device(torch.tensor(value, dtype=torch.long), device)

    return MicroBatch(
        tensor(ids),
        tensor(positions),
        list(members),
        [len(samples[index].response) for index in members],
        tensor(before),
        tensor(targets),
        tensor(last),
    )


def _place(lengths: Sequence[int], row_tokens: int) -> tuple[int, list[tuple[int, int]]]:
    """The cheapest of a few row widths: all tokens of its rows cost alike, and attention in proportion to the width.

    Returns the width and for each sequence (row, start).
    """
    least = max(*lengths, row_tokens)
    tried = [_best_fit(lengths, least + least * step // (2 * (WIDTHS - 1))) for step in range(WIDTHS)]

    def cost(plan: tuple[int, list[tuple[int, int]]]) -> float:
        width, places = plan
        return (1 + max(row for row, _ in places)) * width * (1 + width / ATTENTION)

    return min(tried, key=cost)


def _best_fit(lengths: Sequence[int], width: int) -> tuple[int, list[tuple[int, int]]]:
    """Best-fit decreasing: each sequence, longest first, goes into the fullest row that still has room.

    Returns the width that is used of `width`, and for each sequence (row, start).
    """
    free: list[tuple[int, int]] = []  # (room left, row), sorted
    places = [(0, 0)] * len(lengths)
    rows = 0
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        length = lengths[index]
        found = bisect_left(free, (length, -1))
        if found == len(free):
            room, row = width, rows
            rows += 1
        else:
            room, row = free.pop(found)
        places[index] = (row, width - room)
        insort(free, (room - length, row))
    return max((width - room for room, _ in free), default=width), places


def rows_of(flat: Tensor, lengths: Sequence[int]) -> list[Tensor]:
    """Cut [n] into one tensor a sequence."""
    return list(torch.split(flat, list(lengths)))


def pad_rows(rows: Sequence[Tensor]) -> Tensor:
    """[b, t] from b tensors of differing lengths, zeros behind each."""
    return torch.nn.utils.rnn.pad_sequence(list(rows), batch_first=True)


def length_mask(lengths: Sequence[int] | Tensor, width: int | None = None) -> Tensor:
    """[b, t] true where a token is real."""
    lengths = torch.as_tensor(lengths)
    width = int(lengths.max()) if width is None else width
    return torch.arange(width, device=lengths.device)[None, :] < lengths[:, None]


def flat_of(padded: Tensor, members: Sequence[int], lengths: Sequence[int]) -> Tensor:
    """[n] the real tokens of the rows `members` of [b, t], one after another: the inverse of rows_of and pad_rows."""
    return torch.cat([padded[index, :length] for index, length in zip(members, lengths, strict=True)])

"""Which prompts share what, and which go through the model together: plans over token ids, without a tensor.

A plan depends on the prompts of a cell and on nothing else, so that the results are the same, to the bit, whenever
some of them are computed again. A prompt's last token is never shared: what it says next is what is asked.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

Ids = list[int]

WORTH = 0.1
"""Share of the tokens that must be saved for a prefix to be computed apart: an extra pass has its own cost."""

ATTENDED = 8
"""Tokens that may be attended to for each one that is computed: they take memory too, but in one layer at a time."""


@dataclass(frozen=True)
class Group:
    """Prompts (by number) that begin with the same `shared` tokens; a cell's preamble is among them."""

    members: tuple[int, ...]
    shared: int


def preamble(prompts: Sequence[Ids]) -> int:
    """Tokens that all prompts begin with, 0 where sharing them is not worth a pass."""
    if len(prompts) < 2:
        return 0
    # What the first and the last in lexicographic order share, all between them share too.
    length = min(_common(min(prompts), max(prompts)), min(map(len, prompts)) - 1)
    saved = length * (len(prompts) - 1)
    return length if saved >= WORTH * sum(map(len, prompts)) else 0


def groups(prompts: Sequence[Ids], start: int, most: int) -> list[Group]:
    """Runs of neighbours that share more than the first `start` tokens, such as the two orders of a pair.

    A run grows while that saves tokens, and while what is its members' own fits into `most` tokens.
    """
    made: list[Group] = []
    at = 0
    while at < len(prompts):
        size, shared = 1, len(prompts[at]) - 1
        longest = len(prompts[at])
        for other in islice(prompts, at + 1, None):
            common = min(shared, _common(prompts[at], other, start), len(other) - 1)
            longest = max(longest, len(other))
            if size * (common - start) <= (size - 1) * (shared - start) or (size + 1) * (longest - common) > most:
                break
            size, shared = size + 1, common
        made.append(Group(tuple(range(at, at + size)), shared if size > 1 else start))
        at += size
    saved = sum((len(group.members) - 1) * (group.shared - start) for group in made)
    if saved < WORTH * sum(len(prompt) - start for prompt in prompts):
        return apart(prompts, start)
    return made


def apart(prompts: Sequence[Ids], start: int = 0) -> list[Group]:
    """Every prompt by itself, but for the first `start` tokens."""
    return [Group((number,), start) for number in range(len(prompts))]


def batches(prompts: Sequence[Ids], made: Sequence[Group], start: int, most: int) -> Iterator[list[Group]]:
    """Groups that go through the model together: at most `most` tokens in a pass, padding included, or one group.

    The longest come first: a batch that does not fit into memory fails at once, not after an hour.
    """

    def own(group: Group) -> int:
        return max(len(prompts[member]) for member in group.members) - group.shared

    batch: list[Group] = []
    rows = apart = ahead = 0
    for group in sorted(made, key=lambda group: (-own(group), -group.shared, group.members)):
        rows += len(group.members)
        apart, ahead = (max(apart, own(group)), max(ahead, group.shared))
        full = rows * apart > most or (len(batch) + 1) * (ahead - start) > most
        if batch and (full or rows * (apart + ahead) > ATTENDED * most):
            yield batch
            batch, rows, apart, ahead = [], len(group.members), own(group), group.shared
        batch.append(group)
    if batch:
        yield batch


def plain_batches(lengths: Sequence[int], room: int, most: int) -> Iterator[list[int]]:
    """Numbers of prompts of `lengths` tokens, the longest first, in batches of at most `most` tokens or one prompt.

    `room`: tokens that each needs for its answer.
    """
    batch: list[int] = []
    for number in sorted(range(len(lengths)), key=lambda number: (-lengths[number], number)):
        if batch and (lengths[batch[0]] + room) * (len(batch) + 1) > most:
            yield batch
            batch = []
        batch.append(number)
    if batch:
        yield batch


def _common(one: Ids, two: Ids, start: int = 0) -> int:
    """Length of the common prefix of two rows that are known to share `start` tokens."""
    most = min(len(one), len(two))
    return next((at for at in range(start, most) if one[at] != two[at]), most)

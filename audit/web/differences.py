"""Word-level differences between two responses, marked in both.

Words are compared, whatever the space behind them, with the standard library's SequenceMatcher, after the common
beginning and end are cut off. Its worst case is quadratic: texts of very many words are compared line by line.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from difflib import Match, SequenceMatcher
from itertools import pairwise

from markupsafe import Markup

from audit.web.text import visible

_WORD = re.compile(r"\s+|\w+\s*|[^\w\s]\s*")
_LINE = re.compile(r"[^\n]*\n|[^\n]+")
_MOST_WORDS = 2_000
_MOST_LINES = 3_000


def compare(left: str, right: str) -> tuple[Markup, Markup] | None:
    """Both texts with what the other lacks in <mark>; None where they are too long to compare in a moment."""
    left, right = left.replace("\r\n", "\n"), right.replace("\r\n", "\n")
    for pattern, most in ((_WORD, _MOST_WORDS), (_LINE, _MOST_LINES)):
        a, b = pattern.findall(left), pattern.findall(right)
        words_a, words_b = [part.strip() for part in a], [part.strip() for part in b]
        start, end = _shared(words_a, words_b)
        middle_a, middle_b = words_a[start : len(a) - end], words_b[start : len(b) - end]
        if max(len(middle_a), len(middle_b)) <= most:
            blocks = _telling(SequenceMatcher(None, middle_a, middle_b, autojunk=False).get_matching_blocks())
            same_a = [(0, start), *((start + m.a, start + m.a + m.size) for m in blocks), (len(a) - end, len(a))]
            same_b = [(0, start), *((start + m.b, start + m.b + m.size) for m in blocks), (len(b) - end, len(b))]
            return _marked(a, same_a), _marked(b, same_b)
    return None


def _shared(a: Sequence[str], b: Sequence[str]) -> tuple[int, int]:
    """How many parts both begin with, and how many of the rest they end with."""
    shorter = min(len(a), len(b))
    start = next((i for i in range(shorter) if a[i] != b[i]), shorter)
    rest = shorter - start
    end = next((i for i in range(rest) if a[-1 - i] != b[-1 - i]), rest)
    return start, end


def _telling(blocks: Sequence[Match]) -> list[Match]:
    """Without what is shared by accident: a word or two between longer stretches that differ."""
    kept: list[Match] = []
    a = b = 0
    for block, after in pairwise(blocks):
        before = max(block.a - a, block.b - b)
        behind = max(after.a - block.a - block.size, after.b - block.b - block.size)
        if block.size >= min(before, behind):
            kept.append(block)
            a, b = block.a + block.size, block.b + block.size
    return kept


def _marked(parts: Sequence[str], same: Sequence[tuple[int, int]]) -> Markup:
    shown, place = [], 0
    for start, end in same:
        if place < start:
            other = "".join(parts[place:start])
            word = other.rstrip()
            mark = Markup("<mark>{}</mark>").format(visible(word)) if word else ""
            shown.append(Markup("{}{}").format(mark, visible(other[len(word) :])))
        shown.append(visible("".join(parts[start:end])))
        place = max(place, end)
    return Markup("").join(shown)

"""Untrusted text as a reader sees it: inert, whole, and with nothing hidden.

Characters that hide, reorder or cut what follows (NUL, bidirectional overrides, zero-width characters, lone surrogates)
are shown as their code point. Joiners stay where scripts and emoji need them. Fenced code is set in a fixed width.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator

from markupsafe import Markup, escape

_HIDDEN = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}
_BLANK_LETTERS = frozenset("\u115f\u1160\u2800\u3164\uffa0")  # letters by category, yet without a glyph
_JOINED = {"Lo", "Mn", "Mc", "So", "Sk"}  # scripts and emoji in which joiners shape the text
_JOINER = re.compile("(?<=(.))[\u200c\u200d](?=(.))", re.DOTALL)
_FENCE = re.compile(r"^(```|~~~)[^\n]*\n.*?^\1[ \t]*(?:\n|\Z)", re.MULTILINE | re.DOTALL)
_RIGHT_TO_LEFT = re.compile("[\u0590-\u08ff\ufb1d-\ufdff\ufe70-\ufefc\U00010800-\U00010fff\U0001e800-\U0001efff]")
_MOST_MIXED = 100_000


def visible(text: str) -> Markup:
    """`text` escaped for an HTML body, hidden characters marked; linear in its length."""
    text = text.replace("\r\n", "\n")
    marks = {ord(character): _mark(character) for character in set(text) if is_hidden(character)}
    if not marks:
        return escape(text)
    kept: set[int] = set()
    if 0x200C in marks or 0x200D in marks:
        kept = {found.start() for found in _JOINER.finditer(text) if _shapes(found[1]) and _shapes(found[2])}
    if not kept:
        return Markup(str(escape(text)).translate(marks))  # noqa: S704 - escaped just here; the marks are our own
    parts, start = [], 0
    for place in sorted(kept):
        parts += [str(escape(text[start:place])).translate(marks), text[place]]
        start = place + 1
    parts.append(str(escape(text[start:])).translate(marks))
    return Markup("".join(parts))  # noqa: S704 - as above


def prose(text: str) -> Markup:
    """`visible`, with fenced code blocks wrapped in <code>; no character is added or lost."""
    text = text.replace("\r\n", "\n")
    parts = [
        Markup('<code class="fence">{}</code>').format(visible(piece)) if fenced else visible(piece)
        for piece, fenced in fences(text)
    ]
    return Markup("").join(parts)


def fences(text: str) -> Iterator[tuple[str, bool]]:
    """The pieces of `text` in order, each with whether it is a closed code fence."""
    start = 0
    if "```" in text or "~~~" in text:
        for found in _FENCE.finditer(text):
            if found.start() > start:
                yield text[start : found.start()], False
            yield found[0], True
            start = found.end()
    if start < len(text) or not text:
        yield text[start:], False


def direction(text: str) -> str:
    """`mixed` where paragraphs should each find their own direction, else nothing: browsers take half a minute over
    that on a megabyte in one line."""
    return "mixed" if len(text) <= _MOST_MIXED and _RIGHT_TO_LEFT.search(text) else ""


def plain(text: str) -> str:
    """A name or label in one line, hidden characters written as ⟨U+202E⟩; not yet escaped."""
    return "".join(f"⟨{_point(c)}⟩" if is_hidden(c) or c in "\n\t" else c for c in text)


def is_hidden(character: str) -> bool:
    """Whether a character has no glyph of its own, or changes how its neighbours are shown."""
    if character in "\n\t":
        return False
    return character in _BLANK_LETTERS or unicodedata.category(character) in _HIDDEN


def _shapes(character: str) -> bool:
    return unicodedata.category(character) in _JOINED


def _mark(character: str) -> str:
    return f'<span class="hidden-char">{_point(character)}</span>'


def _point(character: str) -> str:
    return f"U+{ord(character):04X}"

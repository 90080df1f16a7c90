"""Text as tokens and as sets of token n-grams ("shingles"), for telling texts that are nearly the same.

Broder 1997, On the Resemblance and Containment of Documents: resemblance is the Jaccard index of the shingle sets,
containment the share of one set that is in the other. Both are computed exactly here, without MinHash.
"""

from __future__ import annotations

import re
import unicodedata

# Scripts without spaces between words (kana, Han, Hangul syllables): each character is a token.
_SOLID = "\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af"
_WORDS = re.compile(rf"[{_SOLID}]|[^\W{_SOLID}]+")
_TOKENS = re.compile(rf"[{_SOLID}]|[^\W{_SOLID}]+|[^\w\s]")


def words(text: str) -> tuple[str, ...]:
    """The words of a text, without case, punctuation, white space and forms of one character (NFKC).

    A text without any word is one token: itself.
    """
    return tuple(_WORDS.findall(unicodedata.normalize("NFKC", text).casefold())) or (text.strip(),)


def tokens(text: str) -> tuple[str, ...]:
    """Words and punctuation marks as they are written; only white space is left out."""
    return tuple(_TOKENS.findall(text)) or (text.strip(),)


def shingles(parts: tuple[str, ...], n: int) -> frozenset[tuple[str, ...]]:
    """All runs of `n` tokens; none where there are fewer."""
    return frozenset(zip(*(parts[at:] for at in range(n)), strict=False))

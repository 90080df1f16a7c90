"""What a rubric's rules look at: the words of prompt, response and reference, lexicons, and adjacent words."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

_EDGE = "|"
_STOPS = frozenset(".!?,;:")
_WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)*|[.!?,;:]")


def words(text: str) -> list[str]:
    """The lower-case words of a text, without punctuation."""
    return [token for token in _tokens(text) if _is_word(token)]


def _tokens(text: str) -> list[str]:
    return [token.replace("’", "'") for token in _WORD.findall(text.lower())]


def _is_word(text: str) -> bool:
    return text not in _STOPS


class Lexicon:
    """Words or phrases that are counted as mentioned: canonical name -> the forms it takes, longest form first."""

    def __init__(self, entries: Mapping[str, list[str]]) -> None:
        self._forms: dict[tuple[str, ...], str] = {
            tuple(words(form)): name for name, forms in entries.items() for form in forms
        }
        self._longest = max((len(form) for form in self._forms), default=0)

    def find(self, tokens: list[str]) -> list[str]:
        """The canonical names mentioned in `tokens`, in order, without overlap; longer forms win."""
        found: list[str] = []
        at = 0
        while at < len(tokens):
            for size in range(min(self._longest, len(tokens) - at), 0, -1):
                name = self._forms.get(tuple(tokens[at : at + size]))
                if name is not None:
                    found.append(name)
                    at += size
                    break
            else:
                at += 1
        return found


@dataclass(frozen=True)
class Texts:
    """What rules look at: the texts, and their lower-case words (`reference` empty where there is none)."""

    prompt: list[str]
    response: list[str]
    reference: list[str]
    raw: str
    lexicons: Mapping[str, Lexicon]
    fluent: Mapping[str, frozenset[str]]

    @cached_property
    def pairs(self) -> list[tuple[str, str]]:
        """Adjacent words of the response, with one edge mark for the ends and for each stop or comma."""
        marked = [_EDGE if not _is_word(token) else token for token in _tokens(self.raw)]
        sequence = [_EDGE, *marked, _EDGE]
        return [(left, right) for left, right in pairwise(sequence) if (left, right) != (_EDGE, _EDGE)]


def fluent_pairs(texts: list[str]) -> str:
    """The content of a `fluent_pairs` file that knows the word pairs of `texts`."""
    following: dict[str, set[str]] = {}
    for text in texts:
        for left, right in Texts([], words(text), [], text, {}, {}).pairs:
            following.setdefault(left, set()).add(right)
    return "".join(f"{left}: {' '.join(sorted(rights))}\n" for left, rights in sorted(following.items()))

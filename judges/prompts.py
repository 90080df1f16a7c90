"""A judge's prompt: a Jinja2 template filled with untrusted text that was made harmless first.

The text of a prompt or response can try to close its delimiter, imitate a special token or a verdict, or hide
instructions in characters that nobody sees. `neutralise` takes these means away and leaves the text readable. It
presumes that templates delimit with angle brackets (`<response_1>`), which untrusted text then cannot contain.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from jinja2 import StrictUndefined, TemplateError, TemplateSyntaxError, meta
from jinja2.sandbox import SandboxedEnvironment

from store.errors import UsageError

OPTIONAL = ("reference", "principles", "questions")
"""What any template may show: an expert's answer (empty where there is none), the judge's principles, its questions."""

WELL_KNOWN_SPECIALS = ("[INST]", "[/INST]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]", "[AVAILABLE_TOOLS]", "[TOOL_CALLS]")
"""Special tokens without angle brackets, broken even where the tokenizer is on a server and cannot be asked."""

_BRACKETS = str.maketrans({"<": "‹", ">": "›", "＜": "‹", "＞": "›", "﹤": "‹", "﹥": "›"})
_COLONS = "[:=：﹕]"
_RATIO = "\N{RATIO}"  # looks like a colon, and no parser of answers takes it for one
_BIDIRECTIONAL = set("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def neutralise(text: str, specials: Sequence[str] = WELL_KNOWN_SPECIALS, keywords: Sequence[str] = ()) -> str:
    """Return `text` without means to leave its delimiters; plain text comes back unchanged, but for zero-width joiners.

    Angle brackets become look-alikes; each of `specials` is broken with a middle dot; a colon after "verdict", or after
    one of `keywords` (words that begin the judge's answers), becomes a look-alike; NUL and other controls become their
    pictures; direction overrides become visible as [U+202E]; zero-width and tag characters go; lone surrogates become
    U+FFFD; line ends become \\n.
    """
    text = re.sub("\r\n|[\r\u2028\u2029\u0085\v\f]", "\n", text)
    if not text.isascii() or not text.isprintable():
        text = text.translate(_VISIBLE)
    text = _answer(tuple(keywords)).sub(lambda found: found.group(1) + _RATIO, text.translate(_BRACKETS))
    return _break(text, specials)


@lru_cache
def _answer(keywords: tuple[str, ...]) -> re.Pattern[str]:
    # The marks between word and colon must hold no letter: then no text is scanned twice.
    words = "|".join(re.escape(word) for word in sorted({"verdict", *keywords}, key=len, reverse=True))
    return re.compile(rf"((?:{words})[\W_]*?){_COLONS}", re.IGNORECASE)


def _visible(character: str) -> str:
    if character in "\n\t" or character.isprintable():
        # Variation selectors count as printable marks; the supplementary ones carry nothing but hidden data.
        return "" if 0xE0100 <= ord(character) <= 0xE01EF else character
    category, code = unicodedata.category(character), ord(character)
    if category == "Cc":
        return chr(0x2400 + code) if code < 0x20 else "\u2421" if code == 0x7F else "\ufffd"
    if category == "Cs":
        return "\ufffd"
    if character in _BIDIRECTIONAL:
        return f"[U+{code:04X}]"
    return "" if category == "Cf" else character


class _Visible(dict[int, str]):
    """A table for str.translate, filled as characters occur: most of a judge's own work was to look at each anew."""

    def __missing__(self, code: int) -> str:
        visible = _visible(chr(code))
        if len(self) < 65536:  # hostile text could name every character there is
            self[code] = visible
        return visible


_VISIBLE = _Visible()


def _break(text: str, specials: Sequence[str]) -> str:
    # Longest first, and again while something changes: breaking one token must not leave or make another.
    ordered = sorted({special for special in specials if special.strip()}, key=lambda one: (-len(one), one))
    for _ in range(8):
        before = text
        for special in ordered:
            if special in text:
                text = text.replace(special, f"{special[0]}·{special[1:]}" if len(special) > 1 else "·")
        if text == before:
            break
    return text


class PromptTemplate:
    """A checked template. `source` names it in errors, which are UsageErrors of one sentence.

    `required`: the variables that it must show, such as prompt, first, second; it may use OPTIONAL ones too.
    """

    def __init__(self, text: str, source: str, required: Sequence[str]) -> None:
        environment = SandboxedEnvironment(
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
            autoescape=False,
            keep_trailing_newline=False,
        )
        self.source = source
        try:
            self._used = meta.find_undeclared_variables(environment.parse(text))
            self._template = environment.from_string(text)
        except TemplateSyntaxError as error:
            raise UsageError(
                f"The prompt {source} is no valid template at line {error.lineno}: {error.message}."
            ) from error
        known = tuple(dict.fromkeys((*required, *OPTIONAL)))
        if unknown := sorted(self._used - set(known)):
            raise UsageError(
                f"The prompt {source} uses {', '.join(unknown)}; in its judge's mode a prompt has {', '.join(known)}: "
                f"correct it."
            )
        if missing := [name for name in required if name not in self._used]:
            raise UsageError(
                f"The prompt {source} never shows {', '.join(missing)}: put {{{{ {missing[0]} }}}} into it."
            )

    def shows(self, variable: str) -> bool:
        return variable in self._used

    def render(
        self,
        untrusted: Mapping[str, str | Sequence[str]],
        principles: Sequence[str] = (),
        questions: Sequence[Any] = (),
        specials: Sequence[str] = WELL_KNOWN_SPECIALS,
        keywords: Sequence[str] = (),
    ) -> str:
        """The judge's prompt. Texts in `untrusted` are made harmless; `principles` and `questions` are the judge's."""
        safe = {name: _neutralised(value, specials, keywords) for name, value in untrusted.items()}
        safe.setdefault("reference", "")
        try:
            return self._template.render(**safe, principles=list(principles), questions=list(questions))
        except (TemplateError, TypeError, ValueError) as error:
            raise UsageError(f"The prompt {self.source} cannot be filled in: {error}.") from error


def _neutralised(value: str | Sequence[str], specials: Sequence[str], keywords: Sequence[str]) -> str | list[str]:
    if isinstance(value, str):
        return neutralise(value, specials, keywords)
    return [neutralise(text, specials, keywords) for text in value]

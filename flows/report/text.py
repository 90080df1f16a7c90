"""Numbers and untrusted text as a reader sees them: one way to write each kind, and "-" for what is not known.

Text of a model can hold characters that hide, reorder or cut what follows (NUL, bidirectional overrides, zero-width
characters). They are shown as their code point, in brackets, so that hostile text is inert and visible.
"""

from __future__ import annotations

import re
import unicodedata
from typing import Any

from markupsafe import Markup, escape

NOTHING = "-"
_HIDDEN_CATEGORIES = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}
# Letters by category, yet without a glyph: Hangul fillers and the blank Braille pattern.
_BLANK_LETTERS = {"\u115f", "\u1160", "\u2800", "\u3164", "\uffa0"}
_SUSPECT = re.compile(r"[^\t\n\x20-\x7e]")


def is_hidden(character: str) -> bool:
    """Whether a character has no glyph of its own, or changes how its neighbours are shown."""
    if character in "\n\t":
        return False
    return character in _BLANK_LETTERS or unicodedata.category(character) in _HIDDEN_CATEGORIES


def plain(text: str) -> str:
    """`text` with every hidden character written as ⟨U+202E⟩; safe to encode, not yet escaped for HTML."""
    text = text.replace("\r\n", "\n")
    return _SUSPECT.sub(lambda found: f"⟨{_point(found[0])}⟩" if is_hidden(found[0]) else found[0], text)


def visible(text: str | None, limit: int = 0) -> Markup:
    """Untrusted text for an HTML body: escaped, hidden characters marked, cut after `limit` characters (0: never).

    A cut says how much is missing.
    """
    if text is None:
        return escape(NOTHING)
    text = text.replace("\r\n", "\n")
    missing = max(0, len(text) - limit) if limit else 0
    shown = text[: len(text) - missing]
    parts = []
    start = 0
    for found in _SUSPECT.finditer(shown):
        if is_hidden(found[0]):
            parts += [
                escape(shown[start : found.start()]),
                Markup('<span class="hidden-char">{}</span>').format(_point(found[0])),
            ]
            start = found.end()
    parts.append(escape(shown[start:]))
    if missing:
        parts.append(Markup('<span class="cut"> … {} more characters</span>').format(count(missing)))
    return Markup("").join(parts)


def finalize(value: Any) -> Any:
    """Jinja's last step for every expression: None is "-", and no hidden character passes."""
    if value is None:
        return NOTHING
    return plain(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def shorten(text: str, limit: int) -> str:
    """A label of at most `limit` characters, for axes and table heads."""
    text = " ".join(plain(text).split())
    return text if len(text) <= limit else text[: limit - 1].rstrip() + "…"


def percent(value: float | None, digits: int = 1) -> str:
    return NOTHING if value is None else f"{100 * value:.{digits}f}%"


def number(value: float | None, digits: int = 2) -> str:
    """With a minus sign that is as wide as a plus."""
    return NOTHING if value is None else f"{_zero(value, digits):,.{digits}f}".replace("-", "\N{MINUS SIGN}")


def signed(value: float | None, digits: int = 2) -> str:
    return NOTHING if value is None else f"{_zero(value, digits):+,.{digits}f}".replace("-", "\N{MINUS SIGN}")


def significant(value: float | None) -> str:
    """A number of unknown size: whole ones as they are, others with four significant digits."""
    if value is None:
        return NOTHING
    if float(value).is_integer() and abs(value) < 1e15:
        return f"{int(value):,}".replace("-", "\N{MINUS SIGN}")
    return f"{value:.4g}".replace("-", "\N{MINUS SIGN}")


def count(value: int | None) -> str:
    return NOTHING if value is None else f"{value:,}"


def plural(value: int, one: str, many: str | None = None) -> str:
    return f"{value:,} {one if value == 1 else many or one + 's'}"


def duration(seconds: float | None) -> str:
    if seconds is None:
        return NOTHING
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min"


def memory(mebibytes: float | None) -> str:
    if mebibytes is None:
        return NOTHING
    return f"{mebibytes:,.0f} MiB" if mebibytes < 1024 else f"{mebibytes / 1024:,.1f} GiB"


def size(octets: int) -> str:
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if octets >= scale:
            return f"{octets / scale:.1f} {unit}"
    return f"{octets} B"


def _zero(value: float, digits: int) -> float:
    """So that -0.0001 is written 0.00 and not -0.00."""
    return 0.0 if round(value, digits) == 0 else value


def _point(character: str) -> str:
    return f"U+{ord(character):04X}"

"""A constitution: the principles that a judge is told to judge by (Bai et al. 2022, "Constitutional AI", section 3).

A YAML file holds a list of principles, or a mapping with the key `principles`; each is a text, or `{id, text}` where
people refer to principles by name. The ids are theirs alone: judges are shown the texts, and fingerprints hold these.
In any other file each list item (`- ...`, `* ...`, `1. ...`) is a principle. Headings and paragraphs between items are
for people.
"""

from __future__ import annotations

import re
from pathlib import Path

import yaml

from store.errors import UsageError
from store.hashing import short_id

_ITEM = re.compile(r"^\s{0,3}(?:[-*+]|\d+[.)])\s+(.*\S)\s*$")


def read_constitution(path: Path) -> tuple[str, ...]:
    """The principles in the file, in its order. Raises UsageError for an unreadable file, one without principles, an
    item that is neither a text nor an id with a text, and two items with one id."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"The constitution {path} cannot be read ({error}): check the path.") from error
    principles = _from_yaml(text, path) if path.suffix in (".yaml", ".yml") else _from_list(text)
    if not principles:
        raise UsageError(f"The constitution {path} has no principles: give each as a list item.")
    return principles


def choose(principles: tuple[str, ...], how: str, pair_id: str) -> tuple[str, ...]:
    """All principles, or one drawn by the pair's id: both orders of a pair, and every rerun, are told the same."""
    if how == "all" or not principles:
        return principles
    return (principles[int(short_id("principle", pair_id), 16) % len(principles)],)


def _from_yaml(text: str, path: Path) -> tuple[str, ...]:
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UsageError(f"The constitution {path} is not valid YAML: correct it.") from error
    items = value.get("principles") if isinstance(value, dict) else value
    if not isinstance(items, list):
        raise UsageError(f"The constitution {path} must be a list of texts, or have one under the key principles.")
    ids, texts = zip(*(_id_and_text(item, path) for item in items), strict=True) if items else ((), ())
    named = [name for name in ids if name is not None]
    if double := sorted({name for name in named if named.count(name) > 1}):
        raise UsageError(f"The constitution {path} has two principles with the id {double[0]!r}: rename one.")
    return texts


def _id_and_text(item: object, path: Path) -> tuple[str | None, str]:
    match item:
        case {"id": str(name), "text": str(text), **more} if not more and name.strip() and text.strip():
            return name, text.strip()
        case str(text) if text.strip():
            return None, text.strip()
    raise UsageError(f"The constitution {path} has the principle {item!r}: give a text, or a mapping of id and text.")


def _from_list(text: str) -> tuple[str, ...]:
    principles: list[str] = []
    inside = False
    for line in text.splitlines():
        item = _ITEM.match(line)
        if item:
            principles.append(item.group(1))
        elif inside and line.startswith((" ", "\t")) and line.strip():
            principles[-1] += " " + line.strip()
        inside = bool(item) or (inside and bool(line.strip()))
    return tuple(principles)

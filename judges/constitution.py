"""A constitution: the principles that a judge is told to judge by (Bai et al. 2022, "Constitutional AI", section 3).

A YAML file holds a list of principles, or a mapping with the key `principles`; in any other file each list item
(`- ...`, `* ...`, `1. ...`) is a principle. Headings and paragraphs between items are for people.
"""

from __future__ import annotations

import re
from pathlib import Path

import yaml

from store.errors import UsageError
from store.hashing import short_id

_ITEM = re.compile(r"^\s{0,3}(?:[-*+]|\d+[.)])\s+(.*\S)\s*$")


def read_constitution(path: Path) -> tuple[str, ...]:
    """The principles in the file, in its order. Raises UsageError for an unreadable file or one without principles."""
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
    if not isinstance(items, list) or not all(isinstance(item, str) and item.strip() for item in items):
        raise UsageError(f"The constitution {path} must be a list of texts, or have one under the key principles.")
    return tuple(item.strip() for item in items)


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

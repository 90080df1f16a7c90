"""Hostile text is inert, whole and visible; differences are marked and nothing else changes."""

from __future__ import annotations

import html
import random
import re
from difflib import SequenceMatcher

import pytest

from audit.web.csrf import local_path
from audit.web.differences import compare
from audit.web.text import fences, plain, prose, visible


def shown(markup: str) -> str:
    """What a browser would show: tags dropped, entities resolved."""
    return html.unescape(re.sub(r"<[^>]*>", "", str(markup)))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<script>alert(1)</script>", "&lt;script&gt;alert(1)&lt;/script&gt;"),
        ("a\x00b", 'a<span class="hidden-char">U+0000</span>b'),
        ("\u202egnp.exe", '<span class="hidden-char">U+202E</span>gnp.exe'),
        ("zero\u200bwidth", 'zero<span class="hidden-char">U+200B</span>width'),
        ("\ud800", '<span class="hidden-char">U+D800</span>'),
        ("a\u200db", 'a<span class="hidden-char">U+200D</span>b'),
        ("one\r\ntwo\tthree", "one\ntwo\tthree"),
        ("a\rb", 'a<span class="hidden-char">U+000D</span>b'),
    ],
)
def test_hidden_characters_are_shown(text: str, expected: str) -> None:
    assert str(visible(text)) == expected


def test_joiners_stay_where_scripts_and_emoji_need_them() -> None:
    persian, emoji = "کتاب\u200cها", "\U0001f469\u200d\U0001f4bb"
    assert str(visible(persian)) == persian
    assert str(visible(emoji)) == emoji
    assert "U+200C" in visible(persian + "\u200c")


def test_whatever_stands_in_a_text_no_tag_but_ours_comes_out() -> None:
    rng = random.Random(7)
    pieces = ["<", ">", "&", '"', "'", "```\n", "\u202e", "\u200c", "ک", "</span>", "{{", "x", "\n", "\ud800", "\x00"]
    for _ in range(300):
        text = "".join(rng.choice(pieces) for _ in range(40))
        for markup in (visible(text), prose(text)):
            tags = set(re.findall(r"<[^>]*>", str(markup)))
            assert tags <= {'<span class="hidden-char">', "</span>", '<code class="fence">', "</code>"}
        left, right = compare(text, text[::-1]) or ("", "")
        assert set(re.findall(r"<[^>]*>", str(left) + str(right))) <= {
            '<span class="hidden-char">',
            "</span>",
            "<mark>",
            "</mark>",
        }


def test_fences_lose_nothing() -> None:
    text = "Look:\n```py\nx < 1\n```\nand ```this``` is none\n~~~\na\n~~~"
    assert "".join(piece for piece, _ in fences(text)) == text
    assert [piece for piece, fenced in fences(text) if fenced] == ["```py\nx < 1\n```\n", "~~~\na\n~~~"]
    assert shown(prose(text)) == text


def test_names_are_one_visible_line() -> None:
    assert plain("ada\u202e\nx") == "ada⟨U+202E⟩⟨U+000A⟩x"


def test_differences_mark_what_the_other_lacks() -> None:
    found = compare("the cat sat on the mat", "the dog sat on the mat today")
    assert found is not None
    assert [str(side) for side in found] == [
        "the <mark>cat</mark> sat on the mat",
        "the <mark>dog</mark> sat on the mat <mark>today</mark>",
    ]


def test_differences_change_no_character_and_what_is_unmarked_is_shared() -> None:
    rng = random.Random(3)
    for _ in range(200):
        words = ["a", "b", "c", "d,", "e.\n"]
        left, right = (" ".join(rng.choice(words) for _ in range(rng.randrange(30))) for _ in "lr")
        found = compare(left, right)
        assert found is not None
        assert [shown(side) for side in found] == [left, right]
        rest = [re.sub(r"<mark>.*?</mark>", "", str(side), flags=re.DOTALL).split() for side in found]
        # Independent of the marking's own matcher: what is left over on both sides must be the same words.
        assert SequenceMatcher(None, *rest, autojunk=False).ratio() == 1


def test_differences_of_long_texts_end_soon() -> None:
    rng = random.Random(1)
    lines = [" ".join(str(rng.randrange(99)) for _ in range(12)) for _ in range(2500)]
    left, right = "\n".join(lines), "\n".join([*lines[:1200], "another line", *lines[1201:]])
    found = compare(left, right)
    assert found is not None
    assert "another line" in found[1]
    assert compare("\n".join(map(str, range(9000))), "\n".join(map(str, range(9000, 18000)))) is None


@pytest.mark.parametrize(
    "target",
    [
        "https://evil.example",
        "//evil.example",
        "/\\evil.example",
        "/\t/evil.example",
        "evil",
        "",
        None,
        "/a\nb",
        "\\/x",
        "/" * 2,
    ],
)
def test_no_login_link_leads_elsewhere(target: str | None) -> None:
    assert local_path(target) == "/"


def test_a_login_link_leads_back() -> None:
    assert local_path("/items/abc?after=saved") == "/items/abc?after=saved"

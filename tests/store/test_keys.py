"""Distinct keys, against Python's sets."""

from __future__ import annotations

import random

import numpy as np
import pyarrow as pa
import pytest

from store import keys
from store.keys import all_distinct

HASHES = [f"{n * 2654435761 % 2**64:016x}" for n in range(2000)]


@pytest.mark.parametrize(
    "values",
    [
        HASHES,
        [*HASHES, HASHES[7]],
        [name[:11] for name in HASHES],
        ["a", "bb", "a"],
        ["a", "bb", "ccc"],
        ["ä", "ö", "ä"],
        ["", ""],
        [""],
        [],
        [*HASHES, None, None],
    ],
)
def test_as_a_set_says(values: list[str | None]) -> None:
    random.Random(1).shuffle(values)
    wanted = len(set(values)) == len(values)
    half = len(values) // 2
    array = pa.array(values, pa.string())
    assert all_distinct(array) == wanted
    assert all_distinct(array.slice(0, half)) == (len(set(values[:half])) == half)
    assert all_distinct(pa.chunked_array([array.slice(0, half), array.slice(half)])) == wanted


def test_numbers_and_chunks_of_other_lengths() -> None:
    assert not all_distinct(pa.array([1, 2, 1]))
    # Padded to whole words with zeros, both are the same bytes.
    assert all_distinct(pa.chunked_array([pa.array(["ab"]), pa.array(["ab\0"])]))


def test_digests_that_are_alike_decide_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keys, "_MIX", np.uint64(0))
    assert all_distinct(pa.array(HASHES))
    assert not all_distinct(pa.array([*HASHES, HASHES[0]]))

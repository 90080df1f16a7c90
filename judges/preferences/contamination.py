"""Pairs whose prompt is, or nearly is, one that the policy will be evaluated on.

A prompt is held out where its words are those of a held-out prompt, in their order (case, punctuation and white space
do not count), or where a large share of a held-out prompt's word n-grams is found in it. n-grams of 13 words: Brown et
al. 2020, Language Models are Few-Shot Learners, appendix C; a share of 0.7 instead of any single one: Chowdhery et al.
2022, PaLM, section 8, so that an instruction that all prompts begin with does no harm. Prompts of fewer than n words
are compared word by word alone.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from judges.preferences.shingles import shingles, words

Mask = npt.NDArray[np.bool_]


class HeldOut:
    """The held-out prompts. `n`: words of an n-gram, 0 to compare whole prompts alone. `share`: 0..1, see the module;
    `ids`: prompt ids that are held out whatever their text."""

    def __init__(self, prompts: Iterable[str], *, n: int = 13, share: float = 0.7, ids: Iterable[str] = ()) -> None:
        self._n, self._share, self._ids = n, share, set(ids)
        self._whole = sorted({words(prompt) for prompt in prompts})
        self._known = set(self._whole)
        places: dict[tuple[str, ...], list[int]] = defaultdict(list)
        sizes = []
        for place, parts in enumerate(self._whole):
            grams = shingles(parts, n) if n else frozenset()
            sizes.append(len(grams))
            for gram in grams:
                places[gram].append(place)
        self._sizes = np.array(sizes, dtype=np.int64)
        self._places = {gram: np.array(found) for gram, found in places.items()}

    def contains(self, pairs: pa.Table) -> Mask:
        """[rows] which rows of a table with prompt_id and prompt have a held-out prompt."""
        prompts = pairs["prompt"].combine_chunks().dictionary_encode()
        by_text = np.array([self.holds(prompt) for prompt in prompts.dictionary.to_pylist()], dtype=np.bool_)
        ids = pairs["prompt_id"].combine_chunks().dictionary_encode()
        by_id = np.array([name in self._ids for name in ids.dictionary.to_pylist()], dtype=np.bool_)
        found: Mask = by_text[prompts.indices.to_numpy()] | by_id[ids.indices.to_numpy()]
        return found

    def holds(self, prompt: str) -> bool:
        """Whether a prompt is held out, by its text."""
        parts = words(prompt)
        if parts in self._known:
            return True
        grams = shingles(parts, self._n) if self._n else frozenset()
        found = [self._places[gram] for gram in grams if gram in self._places]
        if not found:
            return False
        hits = np.bincount(np.concatenate(found), minlength=len(self._sizes))
        return bool(np.any((hits > 0) & (hits >= self._share * self._sizes)))

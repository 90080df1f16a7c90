"""Whether all keys of a table differ, told fast: tables of millions of rows are checked at each reading and writing."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

_MIX = np.uint64(0x9E3779B97F4A7C15)
_SHIFT = np.uint64(29)
_MIDDLE = np.uint64(1 << 63)


def all_distinct(keys: pa.ChunkedArray | pa.Array) -> bool:
    """Exact. Ids of one length, as hashes are, take half the time of others: where their digests of 64 bits differ, so
    do they; digests that are alike, which chance alone hardly makes, are left to the slower way."""
    chunks = keys.chunks if isinstance(keys, pa.ChunkedArray) else [keys]
    digests = [_digests(chunk) for chunk in chunks if len(chunk)]
    if all(one is not None for one in digests) and digests:
        found = np.concatenate([one for one in digests if one is not None])
        low = found < _MIDDLE
        with ThreadPoolExecutor(2) as pool:  # the sorting is most of it, and a half takes half
            if all(pool.map(_no_two_alike, (found[low], found[~low]))):
                return True
    return len(pc.unique(keys)) == len(keys)


def _no_two_alike(digests: npt.NDArray[np.uint64]) -> bool:
    found = np.sort(digests)
    return bool((found[1:] != found[:-1]).all())


def _digests(keys: pa.Array) -> npt.NDArray[np.uint64] | None:
    """A number for each key, the same for equal keys; None where keys are no strings of one length."""
    if keys.type != pa.string() or keys.null_count:
        return None
    offsets = np.frombuffer(keys.buffers()[1], np.int32)[keys.offset : keys.offset + len(keys) + 1]
    width = int(offsets[1] - offsets[0])
    if not width or bool((np.diff(offsets) != width).any()):
        return None
    text = np.frombuffer(keys.buffers()[2], np.uint8)[offsets[0] : offsets[-1]].reshape(len(keys), width)
    words = (np.pad(text, ((0, 0), (0, -width % 8))) if width % 8 else text).view(np.uint64)
    # The width is mixed in: padded with zeros, keys of two chunks may look alike.
    digest = np.full(len(keys), width, np.uint64)
    for column in words.T:
        digest = (digest ^ column) * _MIX
        digest ^= digest >> _SHIFT
    return digest

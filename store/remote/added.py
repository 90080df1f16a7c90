"""Files that are added and never changed, kept alike here and in a bucket by machines that know nothing of each other.

No lease is needed: an object is only ever written where there is none. Where two machines numbered a file alike
(0003-abc.parquet), the later one's gets the next number; of files without a number the first one stays.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from store.files import atomic_write, read_json, write_json
from store.remote.bucket import PARALLEL, Bucket, ConflictError

_STATE = ".added.json"
_NUMBERED = re.compile(r"(\d+)(-.*)")


def fetch(bucket: Bucket, root: Path, keys: Iterable[str]) -> None:
    """Those of `keys` that are not below `root` yet."""
    wanted = [key for key in keys if not (root / key).is_file()]
    with ThreadPoolExecutor(PARALLEL) as pool:
        for key, data in zip(wanted, pool.map(bucket.read, wanted), strict=True):
            if data is not None:
                _put(root / key, data)


def push(bucket: Bucket, root: Path, keys: Iterable[str]) -> None:
    """Those of `keys`, files below `root`, that the bucket has not yet."""
    path = root / _STATE
    state: dict[str, str] = read_json(path) if path.is_file() else {}
    known = dict(state)
    for key in keys:
        data = (root / key).read_bytes()
        sha256 = hashlib.sha256(data).hexdigest()
        if state.get(key) != sha256:
            state[_push(bucket, root, key, data)] = sha256
    if state != known:
        write_json(path, state)


def _push(bucket: Bucket, root: Path, key: str, data: bytes) -> str:
    """The key under which the bucket has the file now."""
    while True:
        try:
            bucket.write(key, data, new=True)
            return key
        except ConflictError:
            there = bucket.read(key)
        if there == data:
            return key
        if there is None:
            continue
        path = root / key
        if (next_name := _next(path)) is None:
            _put(path, there)
            return key
        os.replace(path, path.with_name(next_name))
        _put(path, there)
        key = f"{key.rpartition('/')[0]}/{next_name}"


def _next(path: Path) -> str | None:
    """The name with the next number that is free here; None for a name without one."""
    own = _NUMBERED.fullmatch(path.name)
    if own is None:
        return None
    taken = [int(found[1]) for one in path.parent.iterdir() if (found := _NUMBERED.fullmatch(one.name))]
    return f"{max(taken) + 1:0{len(own[1])}d}{own[2]}"


def _put(path: Path, data: bytes) -> None:
    with atomic_write(path) as beside:
        beside.write_bytes(data)

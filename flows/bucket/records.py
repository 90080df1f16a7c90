"""Records of a workspace in a bucket: small files that go both ways, and how two versions of one become one."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Any

from store.files import atomic_write, read_json, write_json
from store.remote import added
from store.remote.bucket import Bucket

_SYNCED = ".synced.json"
_RECORD = re.compile(
    r"rounds/\d+/(round\.yaml|round\.json|journal\.jsonl|report\.html)|registry/(?:[^./][^/]*/)*[^./][^/]*"
)
_ADDED = re.compile(r"anchors/(?:[^./][^/]*/)*[^./][^/]*")
_SHOWN = re.compile(r"rounds/\d+/[a-z]+/[a-z_]+\.json")
"""What `status` and `lineage` read of stages: manifests and small results."""

# Reports are last: a round with one is finished, and then all else must be there.
_ORDER = ("registry/history", "registry/", "round.yaml", "round.json", "journal.jsonl", "report.html")


class Records:
    """Those of the copy at `root`; `view`: of a copy that is only looked at, with the manifests of stages."""

    def __init__(self, bucket: Bucket, root: Path, view: bool) -> None:
        self.bucket, self.root, self.view = bucket, root, view

    def fetch(self) -> dict[str, int]:
        """Take what the bucket has; what only this copy changed stays. Returns key -> bytes of all objects."""
        there = self.bucket.keys()
        base = self._synced()
        for key in there:
            if _RECORD.fullmatch(key) or (self.view and _SHOWN.fullmatch(key)):
                self._take(key, base)
        if self.view:
            gone = [p for p in self.root.rglob("*.*") if p.is_file() and not p.name.startswith(".")]
            for path in gone:
                if path.relative_to(self.root).as_posix() not in there:
                    path.unlink()
        else:
            added.fetch(self.bucket, self.root, filter(_ADDED.fullmatch, there))
        write_json(self.root / _SYNCED, base)
        return there

    def push(self) -> None:
        """Upload what changed here. For the holder of the lease."""
        self.push_added()
        base = self._synced()
        found = [p for p in self.root.rglob("*") if _RECORD.fullmatch(p.relative_to(self.root).as_posix())]
        keys = {path.relative_to(self.root).as_posix(): path for path in found if path.is_file()}
        for key in sorted(keys, key=_rank):
            data = keys[key].read_bytes()
            if base.get(key) != _sha256(data):
                self.bucket.write(key, data)
                base[key] = _sha256(data)
        write_json(self.root / _SYNCED, base)

    def push_added(self) -> None:
        """Upload what commands added beside a round: askings of anchors. Needs no lease."""
        found = (path.relative_to(self.root).as_posix() for path in (self.root / "anchors").rglob("*.parquet"))
        added.push(self.bucket, self.root, sorted(filter(_ADDED.fullmatch, found)))

    def _take(self, key: str, base: dict[str, Any]) -> None:
        there = self.bucket.read(key)
        if there is None:
            return
        here, data = self.root / key, there
        if here.is_file() and not self.view:
            data = _merged(key, here.read_bytes(), there, base.get(key))
        if not (here.is_file() and here.read_bytes() == data):
            with atomic_write(here) as beside:
                beside.write_bytes(data)
        base[key] = _sha256(there)

    def _synced(self) -> dict[str, str]:
        path = self.root / _SYNCED
        value: dict[str, str] = read_json(path) if path.is_file() else {}
        return value


def _merged(key: str, here: bytes, there: bytes, base: str | None) -> bytes:
    """What a record becomes that both sides have; `base`: the hash of what both had when they were last alike."""
    if base == _sha256(there):
        return here
    if base == _sha256(here) or not key.endswith(".jsonl"):
        return there
    lines = there.splitlines()
    known = set(lines)
    return b"\n".join([*lines, *(line for line in here.splitlines() if line not in known)]) + b"\n"


def _rank(key: str) -> int:
    return next((number for number, part in enumerate(_ORDER) if part in key), len(_ORDER))


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()

"""What is done with one shard, on whatever machine: its pairs come as bytes and its votes go back as bytes.

Nothing but the judge's folder must be known on the worker's machine: shipped judges are wherever rlaif is installed,
others need a folder that all machines see. Answers are journalled in the shard's own folder where the worker sees it,
else in a temporary one of its machine, so that a shard that is tried again there asks only for what is missing.
"""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from flows.shards.exchange import Answer, answered, found_here, from_stream, to_parquet
from judges.backends.base import Backend
from judges.config import Judge, load_judge
from judges.pairs import pairs_from_table
from judges.panel import Limits, Panel
from judges.settings import OpenAISettings
from store.files import remove
from store.hashing import hash_json

SORTED_ROWS = 1024
"""Rows of a part's row groups: small, so that a merge reads only what it needs of each part."""

VOTES_PART, MEMBERS_PART = "votes.parquet", "member_votes.parquet"
"""Files of a part, sorted by pair_id, judge and order."""

_HERE = ".token"


@dataclass(frozen=True)
class Shard:
    """`pairs`: a PAIRS table as Arrow stream. `judges`: name or folder, and digest. `share`: shards at a time, among
    which a judge's rate is divided. `folder`: the shard's own, on the machine that gave it out; `token` is in there."""

    key: str
    pairs: bytes
    judges: tuple[tuple[str, str], ...]
    seed: int
    limits: Limits
    share: int
    folder: str
    token: str


def judge_shard(shard: Shard) -> Answer:
    """Every judge on every pair in both orders; see `judges.panel.judge_pairs`. Errors come back as a sentence."""
    return answered(lambda: _judge(shard))


def _judge(shard: Shard) -> dict[str, bytes]:
    judges = [_share(_load(name, digest), shard.share) for name, digest in shard.judges]
    pairs = pairs_from_table(from_stream(shard.pairs))
    own = Path(shard.folder)
    seen = (own / _HERE).is_file() and (own / _HERE).read_text(encoding="utf-8") == shard.token
    folder = own if seen else Path(tempfile.gettempdir()) / "rlaif-shards" / shard.key
    panel = Panel(
        judges,
        seed=shard.seed,
        limits=shard.limits,
        shards=folder / ".shards",
        backends=_backends(judges),
        keep_loaded=True,
    )
    judged = panel.ask(pairs)
    files = {VOTES_PART: judged.votes, MEMBERS_PART: judged.member_votes}
    if not seen and folder.exists():
        remove(folder)
    return {name: to_parquet(votes, SORTED_ROWS) for name, votes in files.items()}


def mark(folder: Path, token: str) -> None:
    """Let workers find out whether they see this folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / _HERE).write_text(token, encoding="utf-8")


def _load(name: str, digest: str) -> Judge:
    return found_here(f"judge {name}", lambda: load_judge(name), lambda judge: judge.digest, digest)


def _share(judge: Judge, among: int) -> Judge:
    """The judge with its part of what the server allows; none of this is in its fingerprint."""
    members = tuple(_share(member, among) for member in judge.members)
    settings = judge.settings
    if isinstance(settings, OpenAISettings) and among > 1:
        limits = {
            name: value / among
            for name in ("requests_per_minute", "tokens_per_minute")
            if (value := getattr(settings, name)) is not None
        }
        settings = settings.model_copy(update={"concurrency": max(1, settings.concurrency // among), **limits})
    return replace(judge, settings=settings, members=members)


_local = threading.local()
_all: list[dict[str, Backend]] = []


def _backends(judges: Sequence[Judge]) -> dict[str, Backend]:
    """What this thread loaded for an earlier shard of these judges; others, or these at another address, are closed."""
    settings = [one.settings.model_dump(mode="json") for judge in judges for one in judge.asked]
    key = hash_json([settings, [judge.digest for judge in judges]])
    if getattr(_local, "key", None) != key:
        _close(getattr(_local, "backends", {}))
        _local.key, _local.backends = key, {}
    found: dict[str, Backend] = _local.backends
    if all(found is not one for one in _all):
        _all.append(found)
    return found


def close_backends() -> None:
    """Close what the threads of this process loaded."""
    while _all:
        _close(_all.pop())


def _close(backends: dict[str, Backend]) -> None:
    while backends:
        backends.popitem()[1].close()

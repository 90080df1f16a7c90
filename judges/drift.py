"""Drift: a judge that answers otherwise than it did, although nobody meant it to.

A model behind a server changes without notice, a new prompt changes more than it was to, a new version of an engine
rounds otherwise. To see it, a small frozen set of anchor pairs is judged again, and the answers are compared with the
earlier ones, pair by pair. Flips count, and not only accuracy: a judge that turns ten right answers wrong and ten wrong
ones right is another judge of the same accuracy (Chen, Zaharia and Zou 2023, How Is ChatGPT's Behavior Changing over
Time?, arXiv 2307.09009).

In: `anchors_of` picks the set from pairs with known winners by the hash of their ids, so that it is the same in every
place and hardly changes where pairs are added. `Anchors` keeps it and every asking in a folder. Out: `Drift`, with
intervals. Askings use one seed for ever, so that a judge that samples is not found to drift by chance alone.

A round judges its calibration pairs anyway, and anchors are some of these. Where an answer follows from judge and pair
alone (`repeatable`), those votes are what an asking would give: the same prompts to the same judge, in this very hour.
They stand for one, in each round, which costs nothing and sees a server that changed behind its name too. Other batches
may round otherwise; that turns answers that were a toss-up, in an asking as in a label, and Wilson's interval has room
for some. A judge that samples answers by the round's seed, and a listwise one by what else is on its list: these are
asked by themselves.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from judges.judge import Judge
from judges.modes import Kind
from judges.pairs import pairs_from_table
from judges.panel import Limits, judge_pairs
from judges.reports.accounting import account
from judges.reports.accuracy import gold_winners, paired_accuracy
from judges.reports.proportions import bounds, clustered_mean, share
from judges.reports.winners import preferences, winner
from store.errors import UsageError
from store.files import explain_os_errors
from store.hashing import hash_json, short_id
from store.locks import exclusive
from store.schemas import GOLD, VOTES
from store.stage import Progress, silent
from store.tables import read_table, write_table

ANCHORS = 100
SEED = 17
_WAIT_S = 60.0

_FILE = re.compile(r"(\d{4,})-[0-9a-f]{12}\.parquet")


@dataclass(frozen=True)
class Asking:
    """A judge's votes on the anchors at one time. `number`: 1, 2, ... of this judge. `source`: the stage whose votes
    they are, empty where the judge was asked by itself. `parts`: what the fingerprint was made of, to name a change."""

    judge: str
    fingerprint: str
    number: int
    asked_at: str
    votes: pa.Table
    source: str = ""
    parts: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Drift:
    """One asking against an earlier one of the same judge, on the anchors that both have a row of.

    `pairs`: with a valid vote in both. `flips`: of them, those with another winner (a, b or none at exactly one half),
    as `flip_rate` with Wilson's interval. `toward_gold`, `from_gold`: flips that made a wrong answer right, a right one
    wrong. `shift`: mean change of p of the gold winner, negative where the judge got less right or less sure; `moved`:
    mean size of the change of p_a; both with a bootstrap over prompts. `answered_before`, `answered_now`: pairs with a
    valid vote. `accuracy`: of now minus before (`reports.proportions.paired_difference`)."""

    judge: str
    before: dict[str, Any]
    now: dict[str, Any]
    fingerprint_changed: bool
    pairs: int
    flips: int
    flip_rate: float | None
    flip_low: float | None
    flip_high: float | None
    toward_gold: int
    from_gold: int
    shift: dict[str, Any]
    moved: dict[str, Any]
    answered_before: int
    answered_now: int
    accuracy: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def anchors_of(gold: pa.Table, count: int = ANCHORS) -> pa.Table:
    """The `count` pairs of GOLD whose ids hash lowest, sorted by pair_id; gold ties are left out."""
    rows = gold.select(GOLD.schema.names).filter(pc.not_equal(gold["winner"], "tie"))
    order = sorted(range(rows.num_rows), key=lambda at: short_id("anchor", rows["pair_id"][at].as_py()))
    return rows.take(pa.array(order[:count], pa.int64())).sort_by("pair_id")


def repeatable(judge: Judge) -> bool:
    """Whether an answer follows from judge and pair alone, so that votes of one run are those of any other: all that
    are asked decode greedily or are programs, and none ranks lists."""
    return all(getattr(one.settings, "temperature", 0.0) == 0 and one.mode.kind != Kind.LIST for one in judge.asked)


class Anchors:
    """The anchor set of a workspace and all askings, in `folder`: anchors.parquet and <judge>/<number>-<print>.parquet.

    Files are added, never changed.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @property
    def frozen(self) -> bool:
        return self.path.exists()

    @property
    def path(self) -> Path:
        return self.folder / "anchors.parquet"

    @property
    def pairs(self) -> pa.Table:
        """The frozen set, as GOLD. Raises UsageError where none was frozen yet."""
        return read_table(self.path, GOLD)

    def freeze(self, gold: pa.Table, count: int = ANCHORS) -> pa.Table:
        """The set: the one that is there, whatever `gold` is now, or one of `gold` that is kept from now on.

        Raises UsageError where `gold` has no pair whose winner is a or b.
        """
        if not self.frozen:
            anchors = anchors_of(gold, count)
            if not anchors.num_rows:
                raise UsageError("No pair has the winner a or b, so none can be an anchor: give other gold pairs.")
            write_table(self.path, GOLD, anchors)
        return self.pairs

    def askings(self, judge: str) -> list[Asking]:
        """All askings of a judge by its name, oldest first."""
        folder = self._of(judge)
        files = (
            sorted(path for path in folder.glob("*.parquet") if _FILE.fullmatch(path.name)) if folder.is_dir() else []
        )
        return [_read(path, judge) for path in files]

    def needs(self, judge: str, digest: str) -> bool:
        """Whether the judge has never been asked about the anchors as what it is now."""
        known = self.askings(judge)
        return not known or known[-1].fingerprint != digest

    def ask(self, judge: Judge, now: datetime, progress: Progress = silent, limits: Limits | None = None) -> Asking:
        """Ask about all anchors, anew, and keep the answers.

        Raises RlaifError where the judge cannot be loaded or passes its limits, TransientError where that may pass.
        """
        votes = judge_pairs([judge], pairs_from_table(self.pairs), seed=SEED, progress=progress, limits=limits)
        return self.keep(judge.name, judge.digest, votes, now.isoformat(timespec="seconds"))

    def keep(
        self,
        judge: str,
        digest: str,
        votes: pa.Table,
        asked_at: str,
        source: str = "",
        parts: Mapping[str, str] | None = None,
    ) -> Asking:
        """Add an asking. `votes`: of this judge alone, those on other pairs than anchors are left out."""
        votes = votes.filter(pc.is_in(votes["pair_id"], value_set=self.pairs["pair_id"].combine_chunks()))
        folder = self._of(judge)
        with explain_os_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
        busy = f"Another process has been writing to {folder} for {_WAIT_S:.0f} s: run again when it is done."
        with exclusive(folder / ".lock", busy, _WAIT_S):  # a round and a command may both take the next number
            known = self.askings(judge)
            asking = Asking(judge, digest, known[-1].number + 1 if known else 1, asked_at, votes, source, parts or {})
            told = {"digest": digest, "asked_at": asked_at, "source": source}
            tags = {**told, "judge_parts": json.dumps(dict(asking.parts))}
            path = folder / f"{asking.number:04d}-{digest[:12]}.parquet"
            write_table(path, VOTES, votes, {f"rlaif.{name}": value for name, value in tags.items()})
        return asking

    def _of(self, judge: str) -> Path:
        # A judge's name is free text; a folder's is not.
        safe = re.sub(r"[^A-Za-z0-9_-]+", "-", judge).strip("-")
        return self.folder / (safe if safe == judge else f"{safe or 'judge'}-{hash_json(judge)[:8]}")


def check_drift(
    judge: Judge,
    anchors: Anchors,
    now: datetime,
    *,
    force: bool = False,
    since_first: bool = False,
    progress: Progress = silent,
    limits: Limits | None = None,
) -> Drift | None:
    """Ask the judge about the anchors where its digest changed since the last time, or with `force`, and compare.

    None where there was nothing to compare with: then the answers are what later ones are compared with. Without
    `force`, a judge that was asked as it is now is not asked again: the askings that are kept are compared. The last
    one is compared with the one before, or `since_first` with the first of all: many small steps are a long way.
    """
    if force or anchors.needs(judge.name, judge.digest):
        anchors.ask(judge, now, progress, limits)
    known = anchors.askings(judge.name)
    return None if len(known) < 2 else drift(known[0 if since_first else -2], known[-1], anchors.pairs)


def drift(before: Asking, now: Asking, anchors: pa.Table) -> Drift:
    """Compare two askings; see `Drift`. `anchors`: GOLD."""
    ids = set(before.votes["pair_id"].to_pylist()) & set(now.votes["pair_id"].to_pylist())
    anchors = anchors.filter(pc.is_in(anchors["pair_id"], pa.array(sorted(ids), pa.string())))
    gold = gold_winners(anchors)
    prompts = dict(zip(anchors["pair_id"].to_pylist(), anchors["prompt_id"].to_pylist(), strict=True))
    old, new = (_known(preferences(asking.votes), gold) for asking in (before, now))
    both = sorted(old.keys() & new.keys())
    flipped = [pair for pair in both if winner(old[pair]) != winner(new[pair])]
    change = np.array([new[pair] - old[pair] for pair in both])
    sign = np.array([1.0 if gold[pair] == "a" else -1.0 for pair in both])
    clusters = [prompts[pair] for pair in both]
    interval = bounds(len(flipped), len(both))
    return Drift(
        judge=now.judge,
        before=_about(before),
        now=_about(now),
        fingerprint_changed=before.fingerprint != now.fingerprint,
        pairs=len(both),
        flips=len(flipped),
        flip_rate=share(len(flipped), len(both)),
        flip_low=interval["low"],
        flip_high=interval["high"],
        toward_gold=sum(winner(new[pair]) == gold[pair] for pair in flipped),
        from_gold=sum(winner(old[pair]) == gold[pair] for pair in flipped),
        shift=clustered_mean((change * sign).tolist(), clusters),
        moved=clustered_mean(np.abs(change).tolist(), clusters),
        answered_before=len(old),
        answered_now=len(new),
        accuracy=paired_accuracy(now.votes, before.votes, anchors),
    )


def _known(p_a: Mapping[str, float], gold: Mapping[str, str]) -> dict[str, float]:
    return {pair: p for pair, p in p_a.items() if pair in gold}


def _about(asking: Asking) -> dict[str, Any]:
    return {
        "number": asking.number,
        "fingerprint": asking.fingerprint,
        "asked_at": asking.asked_at,
        "votes": account(asking.votes),
    }


def _read(path: Path, judge: str) -> Asking:
    votes = read_table(path, VOTES)
    tags = pq.read_schema(path).metadata or {}
    names = (b"rlaif.digest", b"rlaif.asked_at", b"rlaif.source", b"rlaif.judge_parts")
    fingerprint, asked_at, source, parts = (tags.get(name, b"").decode() for name in names)
    if not fingerprint or not asked_at:
        raise UsageError(f"{path} does not say which judge was asked when: remove it, it is no asking of anchors.")
    number = int(path.name.split("-")[0])
    return Asking(judge, fingerprint, number, asked_at, votes, source, json.loads(parts or "{}"))

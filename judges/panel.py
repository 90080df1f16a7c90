"""The panel: every judge votes on every pair in both orders, and every vote is kept, whatever became of it.

`judge_pairs` is for tables: with a journal folder a killed run goes on where it stopped. `Panel` asks again and again:
PPO's live probe, the rounds of a Swiss tournament.

A cascade (`judges.cascade`) asks through its members. A member that is also in the panel, or in a second cascade, is
asked once: votes are journalled under the member's own fingerprint, and judges that are no cascades come first.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from judges.aggregation.mean import soft_preferences
from judges.asking import Inquiry
from judges.backends.base import Backend, open_backend
from judges.cascade import compose, unsure
from judges.collect import Limits
from judges.journal import SHARD_ROWS
from judges.judge import Judge
from judges.lists import inquiry_about_prompts, votes_from_rankings
from judges.modes import Kind
from judges.pairs import Pair
from judges.ratings import (
    inquiry_about_rollouts,
    rating_id,
    rollouts_in,
    scored,
    sorted_ratings,
    unique,
    votes_from_ratings,
)
from judges.votes import inquiry_about_pairs
from store.errors import UsageError
from store.schemas import RATINGS, VOTES
from store.stage import Progress, silent

__all__ = ["Judged", "Limits", "Panel", "judge_pairs", "soft_preferences", "together"]


@dataclass(frozen=True)
class Judged:
    """`votes`: VOTES of the panel's judges. `member_votes`: VOTES of the judges that its cascades asked, of those too
    that are in the panel themselves. Both are sorted by pair_id, judge and order. `ratings`: RATINGS that votes of
    pointwise judges follow from, sorted by rollout_id and judge; those votes cost nothing more."""

    votes: pa.Table
    member_votes: pa.Table
    ratings: pa.Table


def together(parts: Sequence[Judged]) -> Judged:
    """The votes of several questions, which have no pair in common."""
    return Judged(
        _sorted([part.votes for part in parts]),
        _sorted([part.member_votes for part in parts]),
        sorted_ratings([part.ratings for part in parts]),
    )


def judge_pairs(
    judges: Sequence[Judge],
    pairs: Sequence[Pair],
    *,
    seed: int,
    progress: Progress = silent,
    shards: Path | None = None,
    shard_rows: int = SHARD_ROWS,
    limits: Limits | None = None,
) -> pa.Table:
    """Let every judge vote on every pair in both orders; returns a VOTES table sorted by pair_id, judge and order.

    Judges are loaded one after the other. With `shards`, a folder, each vote is written there when it arrives, and a
    rerun asks only for what is missing and for what ended in an error. The result is the same with it and without,
    and for any `shard_rows`.

    Raises UsageError for two judges of one name or one fingerprint, or a pair given twice; RlaifError where a judge
    passes its limits (TransientError where its errors may pass by themselves).
    """
    panel = Panel(judges, seed=seed, limits=limits, shards=shards, shard_rows=shard_rows, keep_loaded=False)
    return panel.ask(pairs, progress).votes


class Panel:
    """Judges that are asked again and again; a context manager, unless nothing is kept loaded.

    `with Panel(judges) as panel: votes = panel.judge(pairs)`. `keep_loaded`: between questions, and from the start: a
    judge that cannot be loaded shows before the work that it is needed for. With `shards`, see `judge_pairs`, a judge
    is loaded at its first question. `limits` hold for each judge, so for each member of a cascade, over all questions.
    `ratings`: RATINGS that are there already, from `judges.ratings.rate_rollouts`; they are not asked for again.
    `backends`: loaded judges by fingerprint, for panels one after the other; outside a `with` they stay open.
    """

    def __init__(
        self,
        judges: Sequence[Judge],
        *,
        seed: int = 0,
        limits: Limits | None = None,
        shards: Path | None = None,
        shard_rows: int = SHARD_ROWS,
        keep_loaded: bool = True,
        ratings: pa.Table | None = None,
        backends: dict[str, Backend] | None = None,
    ) -> None:
        _refuse_doubles(judges, [])
        # Cascades last: what they ask of a judge of the panel is then among what it was asked already, in one go.
        self._judges = sorted(judges, key=lambda judge: bool(judge.members))
        self._seed, self._limits = seed, limits or Limits()
        self._shards, self._shard_rows, self._keep_loaded = shards, shard_rows, keep_loaded
        self._backends: dict[str, Backend] = {} if backends is None else backends
        self._tallies: dict[str, Counter[str]] = {}
        self._ratings = RATINGS.schema.empty_table() if ratings is None else ratings

    def __enter__(self) -> Panel:
        try:
            if self._keep_loaded and self._shards is None:
                for one in (one for judge in self._judges for one in judge.asked):
                    self._backend(one)
        except BaseException:
            self._close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()

    def judge(self, pairs: Sequence[Pair], progress: Progress = silent) -> pa.Table:
        """As `judge_pairs`."""
        return self.ask(pairs, progress).votes

    def ask(self, pairs: Sequence[Pair], progress: Progress = silent) -> Judged:
        """As `judge_pairs`, with the votes of cascades' members."""
        _refuse_doubles(self._judges, pairs)
        asked: dict[str, pa.Table] = {}
        rated: dict[str, pa.Table] = {}
        votes = [self._votes(judge, pairs, asked, rated, progress) for judge in self._judges]
        members = {one.digest for judge in self._judges if judge.members for one in judge.asked}
        return Judged(
            _sorted(votes), _sorted([asked[member] for member in sorted(members)]), sorted_ratings([*rated.values()])
        )

    def _votes(
        self,
        judge: Judge,
        pairs: Sequence[Pair],
        asked: dict[str, pa.Table],
        rated: dict[str, pa.Table],
        progress: Progress,
    ) -> pa.Table:
        """`asked`: digest -> votes on this question so far; an error among them is not asked for a second time.
        `rated`: fingerprint -> ratings, likewise."""
        if judge.members:
            first, then = judge.members
            own = self._votes(first, pairs, asked, rated, progress)
            doubtful = unsure(judge, own)
            again = self._votes(then, [pair for pair in pairs if pair.pair_id in doubtful], asked, rated, progress)
            return compose(judge, own, again)
        known = asked.get(judge.digest, VOTES.schema.empty_table())
        there = set(known["pair_id"].to_pylist())
        if missing := [pair for pair in pairs if pair.pair_id not in there]:
            known = pa.concat_tables([known, self._collect(judge, missing, rated, progress)])
        asked[judge.digest] = known
        if not there:
            return known  # of large tables each copy counts
        return known.filter(pc.is_in(known["pair_id"], pa.array([pair.pair_id for pair in pairs], pa.string())))

    def _collect(self, judge: Judge, pairs: Sequence[Pair], rated: dict[str, pa.Table], progress: Progress) -> pa.Table:
        """The votes of a judge that is no cascade."""
        if judge.mode.kind == Kind.PAIR:
            return self._run(inquiry_about_pairs(judge, pairs), progress)
        if judge.mode.kind == Kind.LIST:
            return votes_from_rankings(judge, pairs, self._run(inquiry_about_prompts(judge, pairs), progress))
        known = rated.get(judge.fingerprint)
        if known is None:
            known = self._ratings.filter(pc.equal(self._ratings["fingerprint"], judge.fingerprint))
        there = set(known["rating_id"].to_pylist())
        rollouts = unique(rollouts_in(pairs))
        missing = [rollout for rollout in rollouts if rating_id(rollout, judge.fingerprint) not in there]
        if missing:
            new = scored(judge, self._run(inquiry_about_rollouts(judge, missing), progress))
            known = pa.concat_tables([known, new])
        rated[judge.fingerprint] = known
        return votes_from_ratings(judge, pairs, known)

    def _run(self, inquiry: Inquiry[Any], progress: Progress) -> pa.Table:
        tally = self._tallies.setdefault(inquiry.judge.fingerprint, Counter())
        answers = inquiry.run(
            self._backend(inquiry.judge) if self._keep_loaded else None,
            seed=self._seed,
            progress=progress,
            shards=self._shards,
            shard_rows=self._shard_rows,
            limits=replace(self._limits, before=tally),
        )
        tally.update(answers["status"].to_pylist())
        return answers

    def _backend(self, judge: Judge) -> Backend:
        if judge.fingerprint not in self._backends:
            self._backends[judge.fingerprint] = open_backend(judge)
        return self._backends[judge.fingerprint]

    def _close(self) -> None:
        while self._backends:
            self._backends.popitem()[1].close()


def _refuse_doubles(judges: Sequence[Judge], pairs: Sequence[Pair]) -> None:
    if not judges:
        raise UsageError("No judge is given: name at least one.")
    for what, values in (
        ("judges are named", [judge.name for judge in judges]),
        ("judges have the fingerprint", [judge.fingerprint for judge in judges]),
        ("pairs have the id", [pair.pair_id for pair in pairs]),
    ):
        value, count = next(iter(Counter(values).most_common(1)), ("", 0))
        if count > 1:
            raise UsageError(f"{count} {what} {value}: give each once.")


def _sorted(tables: list[pa.Table]) -> pa.Table:
    joined = pa.concat_tables([VOTES.schema.empty_table(), *tables])
    return joined.sort_by([("pair_id", "ascending"), ("judge", "ascending"), ("order", "ascending")]).combine_chunks()

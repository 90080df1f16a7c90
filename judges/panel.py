"""The panel: every judge votes on every pair in both orders, and every vote is kept, whatever became of it.

`judge_pairs` is for tables: with a journal folder a killed run goes on where it stopped. `Panel` keeps the judges
loaded for repeated small questions, such as PPO's live probe.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import pyarrow as pa

from judges.aggregation.mean import soft_preferences
from judges.backends.base import Backend, Request, open_backend
from judges.judge import Judge
from judges.pairs import Pair
from judges.votes import VoteLog, vote_of
from store.errors import RlaifError, TransientError, UsageError
from store.stage import Progress, silent
from store.tables import Status

__all__ = ["Limits", "Panel", "judge_pairs", "soft_preferences"]


@dataclass(frozen=True)
class Limits:
    """Shares of a judge's votes, in 0..1, beyond which the run fails; checked from `after` votes on, and at the end."""

    max_error_rate: float = 1.0
    max_parse_failure_rate: float = 1.0
    after: int = 50

    def check(self, judge: str, log: VoteLog, at_end: bool = False) -> None:
        """Raises RlaifError that names the judge, the rate and an example; TransientError where the errors may pass."""
        attempted = log.counts.total()
        if not attempted or (attempted < self.after and not at_end):
            return
        for status, limit, what in (
            (Status.ERROR, self.max_error_rate, "errors"),
            (Status.PARSE_FAILURE, self.max_parse_failure_rate, "parse failures"),
        ):
            count = log.counts[status]
            if count / attempted <= limit:
                continue
            passing = status == Status.ERROR and log.transient_errors * 2 > count
            example = f", the last one: {log.last_error}" if status == Status.ERROR and log.last_error else ""
            remedy = "run again later" if passing else f"correct the judge, or raise max_{status}_rate"
            raise (TransientError if passing else RlaifError)(
                f"Judge {judge} gave {count} {what} in {attempted} votes ({count / attempted:.0%}, the limit is "
                f"{limit:.0%}){example}: {remedy}."
            )


def judge_pairs(
    judges: Sequence[Judge],
    pairs: Sequence[Pair],
    *,
    seed: int,
    progress: Progress = silent,
    shards: Path | None = None,
    limits: Limits | None = None,
) -> pa.Table:
    """Let every judge vote on every pair in both orders; returns a VOTES table sorted by pair_id, judge and order.

    Judges are loaded one after the other. With `shards`, a folder, each vote is written there when it arrives, and a
    rerun asks only for what is missing and for what ended in an error. The result is the same with it and without.

    Raises UsageError for two judges of one name or one fingerprint, or a pair given twice; RlaifError where a judge
    passes its limits (TransientError where its errors may pass by themselves).
    """
    _refuse_doubles(judges, pairs)
    tables = []
    for judge in judges:
        log = VoteLog(shards / f"{judge.fingerprint}.jsonl" if shards else None, judge, pairs)
        if log.missing():
            backend = open_backend(judge)
            try:
                _collect(judge, backend, log, seed, progress, limits or Limits())
            finally:
                backend.close()
        else:
            (limits or Limits()).check(judge.name, log, at_end=True)
        tables.append(log.table())
    return _sorted(tables)


class Panel:
    """Judges that stay loaded between questions; a context manager.

    `with Panel(judges) as panel: votes = panel.judge(pairs)`
    """

    def __init__(self, judges: Sequence[Judge], *, seed: int = 0, limits: Limits | None = None) -> None:
        _refuse_doubles(judges, [])
        self._judges, self._seed, self._limits = list(judges), seed, limits or Limits()
        self._backends: dict[str, Backend] = {}

    def __enter__(self) -> Panel:
        try:
            for judge in self._judges:
                self._backends[judge.name] = open_backend(judge)
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
        _refuse_doubles(self._judges, pairs)
        tables = []
        for judge in self._judges:
            log = VoteLog(None, judge, pairs)
            _collect(judge, self._backends[judge.name], log, self._seed, progress, self._limits)
            tables.append(log.table())
        return _sorted(tables)

    def _close(self) -> None:
        while self._backends:
            self._backends.popitem()[1].close()


def _collect(judge: Judge, backend: Backend, log: VoteLog, seed: int, progress: Progress, limits: Limits) -> None:
    done, total, what = log.counts.total(), log.total, f"judge {judge.name}"
    progress(what, done, total)
    with log:
        answers = backend.answer(Request(pair, order, seed) for pair, order in log.missing_requests())
        # A backend must learn at once that nobody listens any more, not when its generator is collected.
        with closing(answers):
            for answer in answers:
                log.append(vote_of(judge, answer), answer.transient)
                progress(what, log.counts.total(), total)
                limits.check(judge.name, log)
    if log.counts.total() != total:
        raise RlaifError(
            f"Judge {judge.name} answered {log.counts.total()} of {total} requests: its backend "
            f"{judge.settings.backend} loses requests."
        )
    limits.check(judge.name, log, at_end=True)


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
    joined = pa.concat_tables(tables).combine_chunks()
    return joined.sort_by([("pair_id", "ascending"), ("judge", "ascending"), ("order", "ascending")])

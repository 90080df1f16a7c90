"""Asking one judge many things: calls are made lazily, every reply becomes a row of the journal, limits are watched."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Generic, TypeVar

from judges.backends.base import Backend, Call, Reply, Subject
from judges.journal import Journal
from judges.judge import Judge
from judges.modes import Finding, find
from judges.requests import sampling_seed
from store.errors import RlaifError, TransientError, UsageError
from store.schemas import Status
from store.stage import Progress

CELL = 512
"""Asks that are batched together; see `Call.cell`. Large enough for full batches, small enough that a kill costs little
local work: only an unfinished cell is laid out again."""

T = TypeVar("T")


@dataclass(frozen=True)
class Ask(Generic[T]):
    """One thing asked of a judge. `id`: of the row that it becomes. `about`: id of what is shown, the same for every
    order in which it is shown. `what`: the pair and order, rollout or list behind it."""

    id: str
    subject: Subject
    about: str
    what: T


RowOf = Callable[[Judge, Ask[T], Reply, Finding], dict[str, Any]]


@dataclass(frozen=True)
class Limits:
    """Shares of a judge's answers, in 0..1, beyond which a run fails; checked from `after` answers on, and at the end.

    `before`: status -> answers to earlier questions, which count too: a small last question must not fail a good judge.
    """

    max_error_rate: float = 1.0
    max_parse_failure_rate: float = 1.0
    after: int = 50
    before: Mapping[str, int] = field(default_factory=dict)

    def check(self, judge: str, journal: Journal, at_end: bool = False) -> None:
        """Raises RlaifError that names the judge, the rate and an example; TransientError where the errors may pass."""
        counts = Counter(self.before) + journal.counts
        attempted = counts.total()
        if not attempted or (attempted < self.after and not at_end):
            return
        for status, limit, what in (
            (Status.ERROR, self.max_error_rate, "errors"),
            (Status.PARSE_FAILURE, self.max_parse_failure_rate, "parse failures"),
        ):
            count = counts[status]
            if count / attempted <= limit:
                continue
            passing = status == Status.ERROR and journal.transient_errors * 2 > journal.counts[status]
            example = f", the last one: {journal.last_error}" if status == Status.ERROR and journal.last_error else ""
            remedy = "run again later" if passing else f"correct the judge, or raise max_{status}_rate"
            raise (TransientError if passing else RlaifError)(
                f"Judge {judge} gave {count} {what} in {attempted} votes ({count / attempted:.0%}, the limit is "
                f"{limit:.0%}){example}: {remedy}."
            )


def collect(
    judge: Judge,
    backend: Backend,
    asks: Iterable[Ask[T]],
    journal: Journal,
    row_of: RowOf[T],
    *,
    seed: int,
    progress: Progress,
    limits: Limits,
) -> None:
    """Ask all that the journal lacks. `asks`, in an order that a rerun repeats, are those that the journal wants.

    Raises RlaifError where the judge passes its limits or its backend loses calls.
    """
    what = f"judge {judge.name}"
    progress(what, journal.counts.total(), journal.total)
    waiting: dict[str, Ask[T]] = {}
    with journal:
        replies = backend.answer(_calls(judge, backend, asks, journal.done, waiting, seed))
        # A backend must learn at once that nobody listens any more, not when its generator is collected.
        with closing(replies):
            for reply in replies:
                ask = waiting.pop(reply.call.id)
                finding = find(judge.mode, reply, judge.settings)
                journal.append(row_of(judge, ask, reply, finding), reply.transient)
                progress(what, journal.counts.total(), journal.total)
                limits.check(judge.name, journal)
    if journal.counts.total() != journal.total:
        raise RlaifError(
            f"Judge {judge.name} answered {journal.counts.total()} of {journal.total} calls: its backend "
            f"{judge.settings.backend} loses calls."
        )
    limits.check(judge.name, journal, at_end=True)


def _calls(
    judge: Judge,
    backend: Backend,
    asks: Iterable[Ask[T]],
    done: set[str],
    waiting: dict[str, Ask[T]],
    seed: int,
) -> Iterator[Call]:
    stream, number = iter(asks), -1
    while cell := list(islice(stream, CELL)):
        number += 1
        if all(ask.id in done for ask in cell):
            continue
        for ask in cell:
            want = judge.mode.want(judge.settings, len(ask.subject.responses))
            if not isinstance(want, backend.wants):
                raise UsageError(
                    f"Judge {judge.name}: the backend {judge.settings.backend} cannot serve the mode "
                    f"{judge.settings.mode}: choose another mode or backend."
                )
            text = judge.render(ask.subject, ask.about, backend.specials)
            answered = ask.id in done
            if not answered:
                waiting[ask.id] = ask
            yield Call(ask.id, ask.subject, text, want, sampling_seed(seed, ask.id), number, answered)

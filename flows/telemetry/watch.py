"""Who watches a run: told when a stage starts, moves, ends. The terminal is one watcher, tests have another."""

from __future__ import annotations

from contextvars import ContextVar
from typing import Protocol

from store.errors import WaitingError
from store.stage import Outcome


class Watcher(Protocol):
    def started(self, stage: str, attempt: int) -> None: ...

    def progress(self, stage: str, what: str, done: int, total: int, note: str) -> None: ...

    def finished(self, stage: str, outcome: Outcome) -> None: ...

    def failed(self, stage: str, sentence: str) -> None: ...

    def waiting(self, stage: str, error: WaitingError) -> None: ...


class Nobody:
    """The watcher of an unattended run."""

    def started(self, stage: str, attempt: int) -> None:
        pass

    def progress(self, stage: str, what: str, done: int, total: int, note: str) -> None:
        pass

    def finished(self, stage: str, outcome: Outcome) -> None:
        pass

    def failed(self, stage: str, sentence: str) -> None:
        pass

    def waiting(self, stage: str, error: WaitingError) -> None:
        pass


class Both:
    """Two watchers as one; it may hold another pair."""

    def __init__(self, first: Watcher, second: Watcher) -> None:
        self._all = (first, second)

    def started(self, stage: str, attempt: int) -> None:
        for one in self._all:
            one.started(stage, attempt)

    def progress(self, stage: str, what: str, done: int, total: int, note: str) -> None:
        for one in self._all:
            one.progress(stage, what, done, total, note)

    def finished(self, stage: str, outcome: Outcome) -> None:
        for one in self._all:
            one.finished(stage, outcome)

    def failed(self, stage: str, sentence: str) -> None:
        for one in self._all:
            one.failed(stage, sentence)

    def waiting(self, stage: str, error: WaitingError) -> None:
        for one in self._all:
            one.waiting(stage, error)


watcher: ContextVar[Watcher] = ContextVar("watcher", default=Nobody())  # noqa: B039 - it holds no state


def watching() -> Watcher:
    """Who watches here. Flows call this: Prefect's runner pickles them with their globals, a context variable cannot be
    pickled."""
    return watcher.get()

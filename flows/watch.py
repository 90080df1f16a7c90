"""Who watches a run: told when a stage starts, moves, ends. The terminal is one watcher, tests have another."""

from __future__ import annotations

from contextvars import ContextVar
from typing import Protocol

from store.stage import Outcome


class Watcher(Protocol):
    def started(self, stage: str, attempt: int) -> None: ...

    def progress(self, stage: str, what: str, done: int, total: int, note: str) -> None: ...

    def finished(self, stage: str, outcome: Outcome) -> None: ...

    def failed(self, stage: str, sentence: str) -> None: ...


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


watcher: ContextVar[Watcher] = ContextVar("watcher", default=Nobody())  # noqa: B039 - it holds no state

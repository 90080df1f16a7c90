"""What every route works with, made once by `create_app` and carried on the application."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from fastapi import Request

from audit.queue.database import Database
from audit.queue.insight import Insight
from audit.queue.model import Clock
from audit.queue.people import People
from audit.queue.queue import Queue, Rules
from audit.web.metrics import Metrics
from audit.web.render import Renderer
from audit.web.settings import WebSettings


class JudgeRow(Protocol):
    """One judge (or the panel) against people, as `audit.estimates.Accuracy` has it. Shares are 0..1 or None.

    `uniform`, `low`, `high`: on the uniform part, with its 95 % interval. `hajek`: weighted over all audited pairs.
    """

    @property
    def judge(self) -> str: ...
    @property
    def audited(self) -> int: ...
    @property
    def unanswered(self) -> int: ...
    @property
    def naive(self) -> float | None: ...
    @property
    def hajek(self) -> float | None: ...
    @property
    def hajek_std_error(self) -> float | None: ...
    @property
    def uniform_audited(self) -> int: ...
    @property
    def uniform(self) -> float | None: ...
    @property
    def low(self) -> float | None: ...
    @property
    def high(self) -> float | None: ...


JudgeTable = Callable[[], Sequence[JudgeRow]]
"""Gives the rows of the judges-versus-people table, the panel first. It may raise RlaifError, which the page shows."""


@dataclass(frozen=True)
class Services:
    settings: WebSettings
    database: Database
    queue: Queue
    people: People
    insight: Insight
    clock: Clock
    rules: Rules
    metrics: Metrics
    pages: Renderer
    judges: JudgeTable | None


def services(request: Request) -> Services:
    value: Services = request.app.state.services
    return value

"""Figures for Prometheus: requests by route, and how full the queue is. Nothing in them tells one item from another."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from audit.queue.model import BatchProgress
from store.errors import RlaifError

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_KEPT_S = 5.0


class Metrics:
    def __init__(self, batches: Callable[[], Sequence[BatchProgress]]) -> None:
        self.registry = CollectorRegistry()
        self.registry.register(_Queue(batches))
        self.requests = Counter(
            "rlaif_audit_requests", "Requests answered.", ["method", "route", "status"], registry=self.registry
        )
        self.seconds = Histogram(
            "rlaif_audit_request_seconds",
            "Time from a request to the end of its answer.",
            ["method", "route"],
            buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10),
            registry=self.registry,
        )
        self.refused = Counter("rlaif_audit_refused", "Refusals by kind.", ["code"], registry=self.registry)

    def observe(self, method: str, route: str, status: int, seconds: float) -> None:
        # A method is the caller's free text: only the known ones become labels.
        method = method if method in ("GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS") else "other"
        self.requests.labels(method, route, str(status)).inc()
        self.seconds.labels(method, route).observe(seconds)

    def text(self) -> bytes:
        return generate_latest(self.registry)


class _Queue(Collector):
    def __init__(self, batches: Callable[[], Sequence[BatchProgress]]) -> None:
        self._batches = batches
        self._last: tuple[float, Sequence[BatchProgress]] | None = None

    def describe(self) -> list[GaugeMetricFamily]:
        return []  # else registering would read the database

    def collect(self) -> Iterable[GaugeMetricFamily]:
        up = GaugeMetricFamily("rlaif_audit_database_up", "1 where the database answers.")
        try:
            batches: Sequence[BatchProgress] | None = self._read()
        except RlaifError:
            batches = None
        up.add_metric([], float(batches is not None))
        yield up
        if batches is None:
            return
        places = GaugeMetricFamily("rlaif_audit_places", "Answers wanted, by state.", labels=["state"])
        for state in ("open", "held", "answered", "closed"):
            places.add_metric([state], sum(getattr(batch, state) for batch in batches))
        yield places
        open_batches = sum(batch.closed_at is None for batch in batches)
        yield GaugeMetricFamily("rlaif_audit_batches_open", "Batches that take answers.", value=open_batches)

    def _read(self) -> Sequence[BatchProgress]:
        now = time.monotonic()
        if self._last is None or now - self._last[0] > _KEPT_S:
            self._last = (now, self._batches())
        return self._last[1]

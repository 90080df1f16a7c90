"""Whoever embeds the server is told of each quota too, and asked again where that failed."""

from __future__ import annotations

import logging
from datetime import UTC, datetime
from typing import Any

import pytest

from audit.queue.model import BatchProgress
from audit.web import webhook
from audit.web.webhook import Watch


def batch() -> BatchProgress:
    fields: dict[str, Any] = dict.fromkeys(BatchProgress.__dataclass_fields__, 1)
    return BatchProgress(**{**fields, "batch_id": "b1", "name": "batch", "quota_reached_at": datetime.now(UTC)})


def test_a_quota_is_announced_again_until_it_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(webhook, "_PAUSES_S", (0.0, 0.0))
    calls: list[str] = []

    def announce(one: BatchProgress) -> None:
        calls.append(one.batch_id)
        if len(calls) < 3:
            raise ConnectionError("it is away")

    Watch(lambda: [batch()], None, "NOT_SET", announce=announce).look()
    assert calls == ["b1"] * 3


def test_one_that_is_never_taken_is_said_and_does_not_end_the_watch(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(webhook, "_PAUSES_S", (0.0,))

    def announce(_: BatchProgress) -> None:
        raise ConnectionError("it is away")

    logger = logging.getLogger("rlaif.audit")
    monkeypatch.setattr(logger, "propagate", True)
    with caplog.at_level(logging.INFO, logger="rlaif.audit"):
        Watch(lambda: [batch()], None, "NOT_SET", announce=announce).look()
    assert "the announcement was not delivered for batch b1" in caplog.text

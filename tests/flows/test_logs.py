"""Structured logs: one JSON object a line, and nothing of the terminal's in between."""

from __future__ import annotations

import io
import json
from datetime import UTC, datetime
from pathlib import Path

import pytest

from flows.telemetry.logs import JsonLog, json_log
from flows.telemetry.watch import Both
from store.config import Config
from store.errors import UsageError, WaitingError
from store.stage import run_stage


def test_every_event_is_one_line(tmp_path: Path) -> None:
    stream = io.StringIO()
    log = JsonLog(stream, interval_s=0)
    outcome = run_stage("promote", lambda _job: {}, inputs={}, config=Config(), seed=1, out=tmp_path / "promote")
    log.started("promote", 2)
    log.progress("promote", "prompts", 3, 7, "two\nlines")
    log.finished("promote", outcome)
    log.failed("judge", 'it said "no"')
    error = WaitingError("Waiting for people: 0 of 3", datetime(2026, 1, 2, tzinfo=UTC))
    log.waiting("audit", error)
    events = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert [event["event"] for event in events] == ["started", "progress", "finished", "failed", "waiting"]
    assert events[0]["attempt"] == 2
    assert (events[1]["done"], events[1]["total"], events[1]["note"]) == (3, 7, "two\nlines")
    assert events[2]["reasons"] == ["it has not run yet"]
    assert events[3]["error"] == 'it said "no"'
    assert events[4]["until"] == "2026-01-02T00:00:00+00:00"
    assert all(datetime.fromisoformat(event["time"]).tzinfo for event in events)
    assert log.waits == ("audit", error)


def test_progress_is_told_from_time_to_time_alone() -> None:
    stream = io.StringIO()
    log = JsonLog(stream, interval_s=3600)
    log.started("ppo", 1)
    for done in range(100):
        log.progress("ppo", "updates", done, 100, "")
    assert len(stream.getvalue().splitlines()) == 1


def test_both_watchers_are_told_everything() -> None:
    streams = io.StringIO(), io.StringIO()
    both = Both(JsonLog(streams[0]), JsonLog(streams[1]))
    both.started("sft", 1)
    both.failed("sft", "no")
    events = [[json.loads(line)["event"] for line in stream.getvalue().splitlines()] for stream in streams]
    assert events == [["started", "failed"]] * 2


def test_the_variable_asks_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for value, expected in (("", False), ("text", False), ("json", True)):
        monkeypatch.setenv("RLAIF_LOG", value)
        assert (json_log() is not None) == expected
    monkeypatch.setenv("RLAIF_LOG", "xml")
    with pytest.raises(UsageError, match="RLAIF_LOG='xml' means nothing"):
        json_log()

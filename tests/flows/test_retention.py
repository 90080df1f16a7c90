"""Old weights go; what judges and people said, champions and unfinished rounds stay."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from click.testing import CliRunner

from flows.cli.deploy import retain
from flows.load import load_round
from flows.retention import Retention, apply, promoted_rounds, removals
from flows.workspace import Workspace
from store.config import Config
from store.errors import RlaifError
from store.files import append_line, write_json
from store.stage import Job, run_stage

NOW = datetime(2026, 3, 1, tzinfo=UTC)
KEPT = ("judge/votes.parquet", "audit/verdicts.parquet", "aggregate/preferences.parquet", "sample/rollouts.parquet")
HEAVY = ("sft/model/weights", "reward/model/weights", "ppo/policy/weights")


def add_round(space: Workspace, finished: bool = True) -> Path:
    round_ = space.begin_round(load_round("demo"))
    for name in (*KEPT, *HEAVY):
        path = round_.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x" * 1000)
    if finished:

        def decide(job: Job[Config]) -> dict[str, object]:
            write_json(job.out / "decision.json", {"promoted": False, "reason": "no"})
            return {}

        run_stage("promote", decide, inputs={}, config=Config(), seed=1, out=round_.stage("promote"))
        (round_.folder / "report.html").write_text("<!doctype html>")
    return round_.folder


@pytest.fixture
def space(tmp_path: Path) -> Workspace:
    """Five finished rounds, the second of which was promoted, and an unfinished sixth that starts from it."""
    space = Workspace.create(tmp_path / "w")
    for number in range(1, 6):
        folder = add_round(space)
        entry = {"round": number, "policy": f"rounds/{number:03d}/ppo/policy", "promoted": number == 2}
        append_line(space.root / "registry" / "history.jsonl", json.dumps(entry))
        if number == 2:
            write_json(space.root / "registry" / "champion.json", entry)
        assert folder.name == f"{number:03d}"
    add_round(space, finished=False)
    return space


def weights(space: Workspace) -> set[str]:
    return {path.parent.parent.parent.name for path in space.root.glob("rounds/*/*/*/weights")}


def test_old_rounds_lose_their_weights_and_nothing_else(space: Workspace) -> None:
    found = removals(space, Retention(keep_rounds=2), NOW)
    assert {str(one.path.relative_to(space.root)) for one in found} == {
        f"rounds/{number}/{name.rsplit('/', 1)[0]}" for number in ("001", "003") for name in HEAVY
    }
    apply(space, found)
    # 2 was promoted, 4 and 5 are the last two, 6 is not finished.
    assert weights(space) == {"002", "004", "005", "006"}
    for number in range(1, 7):
        for name in KEPT:
            assert (space.root / "rounds" / f"{number:03d}" / name).is_file(), (number, name)
    told = [event["path"] for event in space.rounds()[0].journal.events() if event["event"] == "removed"]
    assert sorted(told) == ["ppo/policy", "reward/model", "sft/model"]
    assert removals(space, Retention(keep_rounds=2), NOW) == []


def test_what_an_unfinished_round_starts_from_stays(space: Workspace) -> None:
    """Also where the registry no longer knows that it was a champion."""
    history = space.root / "registry" / "history.jsonl"
    history.write_text(history.read_text().replace('"promoted": true', '"promoted": false'))
    (space.root / "registry" / "champion.json").unlink()
    assert promoted_rounds(space) == set()
    names = {str(one.path.relative_to(space.root)) for one in removals(space, Retention(keep_rounds=1), NOW)}
    assert "rounds/002/ppo/policy" not in names
    assert "rounds/002/reward/model" in names


def test_looks_lose_their_bulk_and_keep_their_votes(space: Workspace) -> None:
    for days in (40, 10):
        folder = space.root / "monitor" / f"{NOW - timedelta(days=days):%Y%m%dT%H%M%SZ}"
        for name in ("sample/rollouts.parquet", "judge/votes.parquet"):
            (folder / name).parent.mkdir(parents=True)
            (folder / name).write_bytes(b"x")
    found = removals(space, Retention(keep_rounds=99, keep_looks_days=30), NOW)
    assert [str(one.path.relative_to(space.root)) for one in found] == [
        f"monitor/{NOW - timedelta(days=40):%Y%m%dT%H%M%SZ}/sample/rollouts.parquet"
    ]


def test_what_a_kill_left_goes_from_finished_rounds_alone(space: Workspace) -> None:
    for number in ("004", "006"):
        (space.root / "rounds" / number / ".ppo.0123abcd.trash").mkdir()
    found = removals(space, Retention(keep_rounds=99), NOW)
    assert [one.path.parent.name for one in found] == ["004"]


def test_the_command_shows_before_it_removes(space: Workspace) -> None:
    arguments = ["--workspace", str(space.root), "--keep-rounds", "2"]
    shown = CliRunner().invoke(retain, [*arguments, "--dry-run"])
    assert shown.exit_code == 0, shown.output
    assert "Would remove 6 outputs" in shown.output
    assert len(weights(space)) == 6
    done = CliRunner().invoke(retain, [*arguments, "--json"])
    assert len(json.loads(done.output)) == 6
    assert len(weights(space)) == 4


def test_nothing_is_removed_while_a_round_runs(space: Workspace) -> None:
    with space.locked():
        result = CliRunner().invoke(retain, ["--workspace", str(space.root)])
    assert isinstance(result.exception, RlaifError)
    assert "Another rlaif run works on" in str(result.exception)

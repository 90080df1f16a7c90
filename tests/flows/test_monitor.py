"""A look at the champion: real responses, judged by the panel, with figures that add up."""

from __future__ import annotations

import json
import shutil
from datetime import UTC, datetime
from pathlib import Path

import pytest

from flows.inspection.monitor import look, looks
from flows.workspace import Workspace
from store.files import append_line
from store.schemas import PROMPTS, ROLLOUTS, VOTES
from store.tables import read_table

pytestmark = pytest.mark.slow
NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)


@pytest.fixture
def space(finished: Path, tmp_path: Path) -> Workspace:
    return Workspace.existing(Path(shutil.copytree(finished, tmp_path / "w")))


def test_without_a_champion_there_is_nothing_to_look_at(space: Workspace) -> None:
    if space.champion() is None:
        assert look(space, NOW, 4) is None
        assert looks(space) == []


def test_a_look_is_two_stages_on_held_out_prompts(space: Workspace) -> None:
    entry = {"round": 1, "policy": "rounds/001/ppo/policy", "promoted": True, "reason": "for the test"}
    append_line(space.root / "registry" / "history.jsonl", json.dumps(entry))
    folder = look(space, NOW, 4, ["tiny-good", "tiny-middling"])
    assert folder == space.root / "monitor" / "20260301T120000Z"
    rollouts = read_table(folder / "sample" / "rollouts.parquet", ROLLOUTS)
    votes = read_table(folder / "judge" / "votes.parquet", VOTES)
    assert rollouts.num_rows == 8
    assert set(votes["judge"].to_pylist()) == {"tiny-good", "tiny-middling"}
    last = space.last_round()
    assert last is not None
    from store.resources import resolve

    prompts = read_table(resolve(last.config.prompts), PROMPTS)
    splits = dict(zip(prompts["prompt_id"].to_pylist(), prompts["split"].to_pylist(), strict=True))
    assert {splits[one] for one in rollouts["prompt_id"].to_pylist()} <= set(last.config.evaluate.splits)

    (row,) = looks(space)
    assert row["policy"] == "001"
    assert row["attempted"] == votes.num_rows == 4 * row["pairs"]
    assert row["attempted"] == sum(row[key] for key in ("scored", "tie", "abstain", "parse_failure", "error"))
    before = (folder / "judge" / "votes.parquet").stat().st_mtime_ns
    assert look(space, NOW, 4, ["tiny-good", "tiny-middling"]) == folder
    assert (folder / "judge" / "votes.parquet").stat().st_mtime_ns == before, "the same look is not made twice"

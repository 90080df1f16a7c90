"""The rounds of a workspace: which folders are some, and in what order."""

from __future__ import annotations

import shutil
from pathlib import Path

from flows.load import load_round
from flows.telemetry.status import round_status
from flows.workspace import Workspace


def test_rounds_are_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    """A round an hour makes a thousand in six weeks, and then names have a digit more."""
    space = Workspace.create(tmp_path / "w")
    first = space.begin_round(load_round("demo"))
    first.folder.rename(first.folder.with_name("999"))
    assert space.begin_round(load_round("demo")).number == 1000
    assert [round_.number for round_ in space.rounds()] == [999, 1000]
    last = space.last_round()
    assert last is not None
    assert last.number == 1000
    assert space.next_start(last.config)[0] == 1001


def test_a_copy_of_a_round_is_none(tmp_path: Path) -> None:
    space = Workspace.create(tmp_path / "w")
    round_ = space.begin_round(load_round("demo"))
    shutil.copytree(round_.folder, round_.folder.with_name("001-before-the-upgrade"))
    assert [one.folder for one in space.rounds()] == [round_.folder]
    assert round_status(round_)["round"] == 1

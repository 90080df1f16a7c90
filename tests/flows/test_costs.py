"""What judging cost, told by journals and tables, and read back from manifests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from flows.stages.spent import joined, spent, spent_on_votes
from flows.telemetry.costs import judge_costs
from flows.telemetry.status import round_status
from flows.workspace import Round
from judges.config import load_judge

from ..judges.votes_builder import vote, votes_table
from .fake_round import finished


def row(name: str, **more: Any) -> str:
    return json.dumps({"vote_id": name, "tokens_in": 10, "tokens_out": 1, "cost": 0.5, **more}) + "\n"


def test_every_row_of_a_journal_is_a_call(tmp_path: Path) -> None:
    """Also one that failed and was asked again; a row that is there twice, and a torn one, are not."""
    good, oracle = load_judge("tiny-good"), load_judge("tiny-oracle")
    own, other = tmp_path / "probe" / good.fingerprint, tmp_path / "constraints" / "batch" / oracle.fingerprint
    for folder in (own, other):
        folder.mkdir(parents=True)
    (own / "000000.jsonl").write_text(row("v1", status="error", tokens_out=0, cost=0.0) + row("v2"))
    (own / "000001.jsonl").write_text(row("v1", status="scored") + row("v2") + '{"vote_id": "v')
    (other / "000000.jsonl").write_text(row("r1"))
    assert spent([good, oracle], tmp_path / "probe", tmp_path / "constraints", tmp_path / "none") == {
        "tiny-good": {"calls": 3, "tokens_in": 30, "tokens_out": 2, "cost": 1.0},
        "tiny-oracle": {"calls": 1, "tokens_in": 10, "tokens_out": 1, "cost": 0.5},
    }


def test_a_call_that_two_ask_for_is_one() -> None:
    """A cascade's own votes are no calls; its member that is in the panel too was asked once."""
    orders = ("ab", "ba")
    asked = votes_table(*(vote("p1", "cheap", order, 0.9) for order in orders))
    cascade = votes_table(*(vote("p1", "both", order, 0.9, answered_by="cheap@1") for order in orders))
    once = {"cheap": {"calls": 2, "tokens_in": 20, "tokens_out": 2, "cost": 0.5}}
    none = asked.slice(0, 0)
    assert spent_on_votes(asked, none) == spent_on_votes(cascade, asked) == spent_on_votes(asked, asked) == once
    assert joined(once, once, {"far": {"calls": 1}})["cheap"] == {key: 2 * n for key, n in once["cheap"].items()}


@pytest.fixture
def round_(tmp_path: Path) -> Round:
    return finished(tmp_path / "w")[0].rounds()[0]


def tell(round_: Round, stage: str, **metrics: Any) -> None:
    path = round_.stage(stage) / "manifest.json"
    value = json.loads(path.read_text())
    path.write_text(json.dumps({**value, "metrics": {**value["metrics"], **metrics}}))


def test_judges_that_ppo_asks_cost_too(round_: Round) -> None:
    before = round_status(round_)["cost"]
    tell(round_, "ppo", spent={"strict": {"calls": 640, "tokens_in": 6400, "tokens_out": 64, "cost": 3.5}})
    rows = {(one["judge"], one["stage"]): one for one in judge_costs(round_.folder)}
    assert rows["strict", "ppo"]["calls"] == 640
    assert rows["tiny-good", "judge"]["calls"] > 0
    assert round_status(round_)["cost"] == pytest.approx(before + 3.5)


def test_a_manifest_of_an_earlier_version_tells_its_votes(round_: Round) -> None:
    path = round_.stage("judge") / "manifest.json"
    value = json.loads(path.read_text())
    del value["metrics"]["spent"]
    path.write_text(json.dumps(value))
    (good,) = (one for one in judge_costs(round_.folder) if one["judge"] == "tiny-good")
    assert good == {"judge": "tiny-good", "stage": "judge", "calls": 8, "tokens_in": 800, "tokens_out": 16, "cost": 2.0}

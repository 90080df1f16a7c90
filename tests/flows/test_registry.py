"""Champions: decisions, promotions by people, rollbacks, and where the next round starts."""

from __future__ import annotations

import json
import multiprocessing
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from flows.cli import rlaif
from flows.policies.candidates import candidate
from flows.policies.registry import Registry, champions
from flows.workspace import Workspace
from store.errors import RlaifError, UsageError
from store.hashing import hash_path
from tests.flows.fake_round import finished, next_round

LOW = {"mean": 0.55, "low": 0.4, "high": 0.7, "n": 100}


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two rounds, both promoted, and a third one that was not."""
    space, _ = finished(tmp_path_factory.mktemp("registry") / "w")
    next_round(space)
    next_round(space, win_rate=LOW)
    return space.root


@pytest.fixture
def space(two: Path, tmp_path: Path) -> Workspace:
    return Workspace.existing(Path(shutil.copytree(two, tmp_path / "w")))


def policy(space: Workspace, number: int) -> str:
    return str(space.root / "rounds" / f"{number:03d}" / "ppo" / "policy")


def call(space: Workspace, *arguments: str) -> Result:
    return CliRunner().invoke(rlaif, [*arguments, "--workspace", str(space.root)])


def test_decisions_are_kept_with_who_when_and_why(space: Workspace) -> None:
    entries = space.registry.entries()
    assert [(e["event"], e["round"], e["promoted"]) for e in entries] == [
        ("decision", 1, True),
        ("decision", 2, True),
        ("decision", 3, False),
    ]
    assert all(e["time"] and e["by"] and e["reason"] and e["checks"] for e in entries)
    champion = space.champion()
    assert champion is not None
    assert champion["policy"] == policy(space, 2)
    assert json.loads((space.root / "registry" / "champion.json").read_text())["policy"] == "rounds/002/ppo/policy"


def test_the_same_decision_again_changes_nothing(space: Workspace) -> None:
    decision = json.loads((space.root / "rounds/003/promote/decision.json").read_text())
    before = space.registry.history.read_bytes()
    space.record_decision(3, Path(policy(space, 3)), decision)
    assert space.registry.history.read_bytes() == before


def test_a_decision_made_again_takes_the_place_of_the_first(space: Workspace) -> None:
    decision = json.loads((space.root / "rounds/002/promote/decision.json").read_text())
    space.record_decision(2, Path(policy(space, 2)), {**decision, "promoted": False, "reason": "on a second look"})
    champion = space.champion()
    assert champion is not None
    assert champion["round"] == 1


def test_rollback_goes_back_one_at_a_time_and_the_next_round_starts_there(space: Workspace) -> None:
    assert call(space, "rollback", "--reason", "answers in rhymes").exit_code == 0
    champion = space.champion()
    assert champion is not None
    assert (champion["policy"], champion["round"]) == (policy(space, 1), 1)
    assert space.next_start(space.rounds()[-1].config)[1]["policy"] == "rounds/001/ppo/policy"
    done = call(space, "rollback", "--reason", "so does this one", "--by", "mo")
    assert "no champion now" in done.stdout
    assert space.champion() is None
    assert not space.next_start(space.rounds()[-1].config)[1]["tuned"]
    last = space.registry.entries()[-1]
    assert (last["event"], last["by"], last["reason"], last["from_round"]) == ("rollback", "mo", "so does this one", 1)
    done = call(space, "rollback", "--reason", "again")
    assert isinstance(done.exception, UsageError)
    assert "no champion to go back from" in str(done.exception)


def test_a_rolled_back_policy_may_be_promoted_again(space: Workspace) -> None:
    space.registry.rollback(None, "why not", None)
    next_round(space)
    champion = space.champion()
    assert champion is not None
    assert champion["round"] == 4
    assert [e["round"] for e in champions(space.registry.entries())] == [1, 4]
    space.registry.rollback(1, "back", None)
    assert [e["round"] for e in champions(space.registry.entries())] == [1]


def test_rollback_names_rounds_that_it_can_go_to(space: Workspace) -> None:
    with pytest.raises(UsageError, match=r"Round 3 made no champion before the present one \(there are: round 1\)"):
        space.registry.rollback(3, "x", None)
    with pytest.raises(UsageError, match="Round 2 made no champion before"):
        space.registry.rollback(2, "x", None)


def test_no_rollback_to_files_that_changed(space: Workspace) -> None:
    (Path(policy(space, 1)) / "model.safetensors").write_text("others")
    before = space.registry.history.read_bytes()
    with pytest.raises(RlaifError, match="is not what was promoted"):
        space.registry.rollback(None, "x", None)
    shutil.rmtree(policy(space, 1))
    with pytest.raises(RlaifError, match="is gone: restore it"):
        space.registry.rollback(None, "x", None)
    assert space.registry.history.read_bytes() == before


def test_no_round_starts_from_a_damaged_champion(space: Workspace) -> None:
    (Path(policy(space, 2)) / "model.safetensors").write_text("others")
    with pytest.raises(RlaifError, match=r"is not what was promoted .* restore it, or go back"):
        space.begin_round(space.rounds()[-1].config)
    assert len(space.rounds()) == 3


def test_nothing_is_promoted_below_its_bound(space: Workspace) -> None:
    done = call(space, "promote", "3", "--reason", "I like it")
    assert isinstance(done.exception, RlaifError)
    assert "lower bound of the win rate is 0.400, the bar is 0.5" in str(done.exception)
    assert "without --override REASON" in str(done.exception)
    champion = space.champion()
    assert champion is not None
    assert champion["round"] == 2
    done = call(space, "promote", "3", "--reason", "I like it", "--override", "the judges are wrong")
    assert done.exit_code == 0, done.exception
    champion = space.champion()
    assert champion is not None
    assert (champion["event"], champion["round"]) == ("promotion", 3)
    assert champion["override"] == "the judges are wrong"
    assert champion["evaluation"]["path"].endswith("003/evaluate/evaluation.json")
    assert not champion["checks"][0]["passed"]


@pytest.mark.parametrize("arguments", [["promote", "1", "--reason", " "], ["rollback", "--reason", " "]])
def test_a_reason_is_needed(space: Workspace, arguments: list[str]) -> None:
    done = call(space, *arguments)
    assert isinstance(done.exception, UsageError)
    assert "The reason is empty" in str(done.exception)
    assert call(space, *arguments[:-2]).exit_code == 2


def test_a_model_without_an_evaluation_needs_an_override(space: Workspace, tmp_path: Path) -> None:
    model = Path(shutil.copytree(policy(space, 1), tmp_path / "mine"))
    (model / "model.safetensors").write_text("mine")
    with pytest.raises(RlaifError, match="has no evaluation: evaluate it and give --evaluation"):
        space.registry.promote(candidate(space, str(model), None), "x", None, None)
    other = space.root / "rounds/001/evaluate/evaluation.json"
    with pytest.raises(UsageError, match="is about another policy"):
        candidate(space, str(model), other)
    entry = space.registry.promote(candidate(space, str(model), None), "from a paper", "it is known to be good", "mo")
    assert (entry["policy"], entry["round"], entry["checks"]) == (str(model), None, [])
    assert space.next_start(space.rounds()[-1].config)[1]["policy"] == str(model)


def test_an_evaluation_counts_only_as_it_was_written(space: Workspace, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(policy(space, 1), tmp_path / "copy"))
    folder = space.root / "rounds/001/evaluate"
    assert candidate(space, str(copy), folder / "evaluation.json").failed == []
    text = (folder / "evaluation.json").read_text()
    (folder / "evaluation.json").write_text(text.replace("0.6", "0.9"))
    with pytest.raises(UsageError, match="is not what its manifest says"):
        candidate(space, str(copy), folder / "evaluation.json")
    with pytest.raises(UsageError, match="was made by stage promote"):
        candidate(space, str(copy), space.root / "rounds/001/promote/decision.json")


@pytest.mark.parametrize(("name", "said"), [("9", "There is no round 9"), ("nowhere", "neither a round's number nor")])
def test_what_is_no_policy_is_named(space: Workspace, name: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        candidate(space, name, None)


def test_lists_for_people_and_programs(space: Workspace) -> None:
    rows = json.loads(call(space, "models", "--json").stdout)
    assert [(row["round"], row["promoted"], row["champion"]) for row in rows] == [
        (1, True, False),
        (2, True, True),
        (3, False, False),
    ]
    assert rows[0]["sha256"] == hash_path(Path(policy(space, 1)))
    said = call(space, "models").stdout
    assert "was champion" in said
    assert "60.0 to 80.0 %" in said
    value = json.loads(call(space, "champion", "--json").stdout)
    assert value["champion"]["round"] == 2
    assert len(value["history"]) == 3
    assert "kept the champion" in call(space, "champion").stdout


def test_a_registry_of_the_first_format_is_read(tmp_path: Path) -> None:
    """Its champion.json alone said who is champion; its lines had no event."""
    registry = Registry(tmp_path)
    registry.folder.mkdir()
    (tmp_path / "p").mkdir()
    (registry.folder / "champion.json").write_text(json.dumps({"round": 1, "promoted": True, "policy": "p"}))
    assert registry.champion() == {"round": 1, "promoted": True, "policy": str(tmp_path / "p")}
    registry.record_decision(2, tmp_path / "q", {"promoted": False, "reason": "worse"})
    champion = registry.champion()
    assert champion is not None
    assert champion["round"] == 1
    with registry.history.open("a") as file:
        file.write(json.dumps({"round": 2, "promoted": True, "policy": "q"}) + "\n")
    champion = registry.champion()
    assert champion is not None
    assert champion["round"] == 2


def _promote(root: str, number: int) -> None:
    space = Workspace.existing(Path(root))
    for _ in range(5):
        space.registry.promote(candidate(space, str(number), None), f"from process {number}", None, None)


def test_processes_that_write_at_once_lose_nothing(space: Workspace) -> None:
    spawn = multiprocessing.get_context("spawn")
    processes = [spawn.Process(target=_promote, args=(str(space.root), number)) for number in (1, 2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    entries = space.registry.entries()
    assert [e["event"] for e in entries].count("promotion") == 10
    champion = json.loads((space.root / "registry" / "champion.json").read_text())
    assert champion["time"] == entries[-1]["time"]
    assert champion["round"] == entries[-1]["round"]


def test_a_line_torn_by_a_kill_is_left_out(space: Workspace) -> None:
    with space.registry.history.open("a") as file:
        file.write('{"event": "rollback", "pol')
    champion = space.champion()
    assert champion is not None
    assert champion["round"] == 2
    space.registry.rollback(None, "x", None)
    champion = space.champion()
    assert champion is not None
    assert champion["round"] == 1

"""`rlaif run --dry-run` and `--from`: what would run, why, how many calls; and what is set aside."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from flows.cli import rlaif
from flows.config import RoundConfig
from flows.launch.calls import Calls
from flows.launch.dry_run import Forecast, draft, forecast
from flows.launch.redo import redo_from
from flows.load import change, load_round
from flows.plan import plan_round
from flows.specs import ROUND
from flows.workspace import Round, Workspace
from judges.canaries import read_corpus
from judges.config import load_judge
from judges.journal import Journal
from judges.pairs import pairs_from_table
from judges.votes import inquiry_about_pairs, vote_row
from store.errors import UsageError
from store.recipe import Recipe
from store.resources import CONFIGS, DATASETS
from store.schemas import GOLD, PAIRS, Status
from store.tables import read_table
from tests.flows.fake_round import SETTINGS, begin, finished, run_all


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return finished(tmp_path_factory.mktemp("dry") / "w")[0].root


@pytest.fixture
def space(original: Path, tmp_path: Path) -> Workspace:
    """A finished round whose report is missing, so that a run goes on with it."""
    found = Workspace.existing(Path(shutil.copytree(original, tmp_path / "w")))
    (found.rounds()[0].folder / "report.html").unlink()
    return found


def look(space: Workspace, *settings: str, redo: str | None = None) -> dict[str, Forecast]:
    last = space.last_round()
    config = change(last.config, settings) if last else load_round("demo", [*SETTINGS, *settings])
    return {one.stage: one for one in forecast(space, draft(space, config, redo), redo)}


def running(found: dict[str, Forecast]) -> dict[str, list[str]]:
    return {name: one.reasons for name, one in found.items() if one.run}


def test_nothing_runs_where_all_is_done(space: Workspace) -> None:
    assert running(look(space)) == {}


def test_an_empty_workspace_runs_all_and_writes_nothing(tmp_path: Path) -> None:
    found = look(Workspace(tmp_path / "new"))
    assert list(running(found)) == list(ROUND)
    assert found["sft"].reasons == ["it has not run yet"]
    assert found["sample"].reasons == ["sft would run"]
    assert found["reward"].reasons == ["sft would run", "aggregate would run"]
    assert found["sft"].seconds is None
    assert not (tmp_path / "new").exists()


def test_a_changed_config_runs_its_stage_and_what_follows(space: Workspace) -> None:
    found = running(look(space, "reward.epochs=7"))
    assert found["reward"] == ["config reward.epochs 3.0 -> 7.0"]
    assert found["ppo"] == ["reward would run"]
    assert list(found) == ["reward", "ppo", "evaluate", "promote"]


def test_a_stage_that_would_run_anyway_tells_its_own_changes_too(space: Workspace) -> None:
    found = running(look(space, "reward.epochs=7", "ppo.updates=9"))
    assert found["ppo"] == ["reward would run", "config ppo.updates 40 -> 9"]


def test_a_changed_prompt_of_a_judge_is_named(space: Workspace, tmp_path: Path) -> None:
    folder = shutil.copytree(CONFIGS / "judges" / "tiny-good", tmp_path / "tiny-good")
    judges = f"judges=[{folder}, tiny-middling]"
    round_ = space.rounds()[0]
    round_.set_config(change(round_.config, [judges]))
    run_all(space, round_)
    (round_.folder / "report.html").unlink()
    prompt = folder / "prompt.jinja"
    prompt.write_text(prompt.read_text() + "\nBe fair.\n")
    assert running(look(space))["judge"] == ["judge fingerprint changed: tiny-good/prompt.jinja"]
    settings = folder / "judge.yaml"
    settings.write_text(settings.read_text() + "min_mass: 0.25\n")
    (said,) = running(look(space))["judge"]
    assert said == "judge fingerprint changed: tiny-good/judge.yaml min_mass 0.5 -> 0.25, tiny-good/prompt.jinja"


def test_a_damaged_output_is_named(space: Workspace) -> None:
    (space.rounds()[0].stage("judge") / "votes.parquet").write_bytes(b"PAR1")
    found = running(look(space))
    assert found["judge"][0].startswith("output votes.parquet is damaged: it has 4 bytes instead of")
    assert found["aggregate"] == ["judge would run", "audit would run"]


def test_the_run_does_what_the_forecast_says_or_less(space: Workspace) -> None:
    """The votes come out as they were, so what would run because of them is reused."""
    round_ = space.rounds()[0]
    (round_.stage("judge") / "votes.parquet").unlink()
    said = running(look(space))
    ran = {name for name, outcome in run_all(space, round_).items() if not outcome.reused}
    assert ran == {"judge"}
    assert ran < set(said)


def test_calls_are_pairs_times_orders_times_judges(space: Workspace) -> None:
    pairs = read_table(space.rounds()[0].stage("judge") / "pairs.parquet", PAIRS).num_rows
    gold = load_gold()
    found = look(space, redo="judge")["judge"]
    assert {call.judge: (call.calls, call.answered, call.at_most) for call in found.calls} == dict.fromkeys(
        ("tiny-good", "tiny-middling", "tiny-biased"), (2 * (pairs + gold), 0, False)
    )
    # Before there are rollouts: 2 prompts, 3 pairs each of 3 responses, of which 2 are taken.
    unknown = look(space, redo="sample")["judge"]
    assert {call.calls for call in unknown.calls} == {2 * (2 * 2 + gold)}
    assert all(call.at_most for call in unknown.calls)


def test_canaries_are_calls_too(space: Workspace) -> None:
    """At most so many pairs are attacked with each text, in both orders."""
    texts = len(read_corpus().canaries)
    plain, attacked = look(space, redo="judge")["judge"].calls, look(space, "judge.canaries=3")["judge"].calls
    assert attacked[: len(plain)] == plain
    assert {one.judge: (one.calls, one.at_most, one.canaries) for one in attacked[len(plain) :]} == dict.fromkeys(
        ("tiny-good", "tiny-middling", "tiny-biased"), (2 * 3 * texts, True, True)
    )
    pairs = read_table(space.rounds()[0].stage("judge") / "pairs.parquet", PAIRS).num_rows
    (*_, last) = look(space, "judge.canaries=1000", redo="judge")["judge"].calls
    assert last.calls == 2 * pairs * texts
    # Before there are rollouts, those of the pairs that there may be: 2 prompts with 2 pairs each.
    (*_, last) = look(space, "judge.canaries=1000", redo="sample")["judge"].calls
    assert last.calls == 2 * 2 * 2 * texts


def test_judges_that_ppo_asks_are_calls_too(space: Workspace) -> None:
    """The probe of every second update about pairs in both orders, a constraint about each response, a rule none."""
    terms = "[{kind: judge, name: kind, judge: tiny-rater}, {kind: rule, name: rules, judge: tiny-oracle}]"
    changes = ("ppo.updates=8", "ppo.probe.every=2", "ppo.probe.prompts=3", "probe_judges=[tiny-good]")
    found = look(space, *changes, f"ppo.terms={terms}", "constraints=[tiny-rater, tiny-oracle]")["ppo"]
    batch = load_round("demo").ppo.batch_size
    assert [(one.judge, one.calls) for one in found.calls] == [("tiny-good", 4 * 3 * 2), ("tiny-rater", 8 * batch)]
    assert all(one.at_most for one in found.calls)


def test_what_ppo_was_answered_before_a_kill_is_not_counted_again(space: Workspace) -> None:
    round_ = space.rounds()[0]
    round_.set_config(change(round_.config, ["probe_judges=[tiny-good]"]))
    step = next(step for step in plan_round(round_) if step.stage == "ppo")
    partial = step.out.with_name(".ppo.partial")
    journal = partial / ".probe" / load_judge("tiny-good").fingerprint / "000000.jsonl"
    journal.parent.mkdir(parents=True)
    journal.write_text("{}\n" * 5)
    (partial / ".key").write_text(Recipe("ppo", step.spec.version, step.sources(), step.config, step.seed).key)
    (call,) = look(space)["ppo"].calls
    assert call.answered == 5


def load_gold() -> int:
    gold = read_table(DATASETS / "tiny" / "calibration.parquet", GOLD)
    return int(gold.num_rows)


def test_votes_of_a_killed_try_are_not_counted_again(space: Workspace) -> None:
    round_ = space.rounds()[0]
    step = next(step for step in plan_round(round_) if step.stage == "judge")
    pairs = pairs_from_table(read_table(step.out / "pairs.parquet", PAIRS))
    partial = step.out.with_name(".judge.partial")
    shutil.rmtree(step.out)
    recipe = Recipe("judge", step.spec.version, step.sources(), step.config, step.seed)
    partial.mkdir()
    (partial / ".key").write_text(recipe.key)
    judge = load_judge("tiny-good")
    asks = list(inquiry_about_pairs(judge, pairs).asks())
    paid = {"tokens_in": 1, "tokens_out": 1, "cost": 0.0, "latency_s": 0.0, "attempts": 1, "error": None}
    with Journal(partial / ".shards" / judge.fingerprint, inquiry_about_pairs(judge, []).table, []) as journal:
        for ask, status in zip(asks[:3], (Status.SCORED, Status.TIE, Status.ERROR), strict=True):
            row: dict[str, Any] = vote_row(judge, ask.what.pair, ask.what.order, status, 0.5)
            journal.append({**row, **paid})
    found = {call.judge: call.answered for call in look(space)["judge"].calls}
    assert found == {"tiny-good": 2, "tiny-middling": 0, "tiny-biased": 0}
    assert look(space, redo="judge")["judge"].calls[0].answered == 0


def test_times_are_those_of_last_time_less_what_is_answered(space: Workspace) -> None:
    round_ = space.rounds()[0]
    for stage in ("reward", "judge"):
        path = round_.stage(stage) / "manifest.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "seconds": 90.0}))
    assert look(space, "reward.epochs=7")["reward"].seconds == 90.0
    assert look(space)["reward"].seconds == 0.0
    assert look(space, redo="judge")["judge"].seconds == 90.0


@pytest.mark.parametrize(
    ("known", "cost"),
    [
        (None, None),
        ({"calls": 0}, None),
        ({"calls": 10, "tokens_in": 1000, "tokens_out": 20}, (50 - 10) * (100 * 3.0 + 2 * 15.0) / 1e6),
    ],
)
def test_cost_is_the_price_of_what_a_call_took(known: dict[str, Any] | None, cost: float | None) -> None:
    found = Calls("j", 50, 10, False, price_in=3.0, price_out=15.0).cost(known)
    assert found == (None if cost is None else pytest.approx(cost))
    assert Calls("j", 50, 10, False, 0.0, 0.0).cost(None) == 0


def test_from_a_stage_all_after_it_run(space: Workspace) -> None:
    found = running(look(space, redo="ppo"))
    assert found == {name: ["--from ppo asks for it"] for name in ("ppo", "evaluate", "promote")}


def test_what_is_set_aside_stays_so_until_it_is_made(space: Workspace) -> None:
    round_ = space.rounds()[0]
    run_all(space, round_)
    assert round_.finished
    redo_from(round_, "reward")
    assert not round_.finished
    assert not (round_.folder / "report.html").exists()
    assert list(running(look(space))) == ["reward", "ppo", "evaluate", "promote"]
    ran = {name: o.reasons for name, o in run_all(space, round_).items() if not o.reused}
    assert ran == {name: ["--from reward asks for it"] for name in ("reward", "ppo", "evaluate", "promote")}
    assert round_.finished
    assert round_.journal.events()[-1]["event"] == "round_finished"


def test_from_goes_back_in_a_finished_round(original: Path) -> None:
    space = Workspace.existing(original)
    assert draft(space, space.rounds()[0].config, "ppo").number == 1
    assert draft(space, space.rounds()[0].config, None).number == 2


def test_stages_that_are_not_there_are_named(space: Workspace, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no stage 'train' to start from: choose one of sft, sample"):
        look(space, redo="train")
    with pytest.raises(UsageError, match="no stage 'train'"):
        redo_from(space.rounds()[0], "train")
    with pytest.raises(UsageError, match="has no round yet"):
        draft(Workspace(tmp_path / "new"), load_round("demo"), "ppo")


def test_the_command_prints_it_and_writes_nothing(original: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in original.rglob("*")}
    done = CliRunner().invoke(rlaif, ["run", "--workspace", str(original), "--dry-run", "--from", "evaluate"])
    assert done.exit_code == 0, done.exception
    assert "Round 1" in done.stdout
    assert "--from evaluate asks for it" in done.stdout
    done = CliRunner().invoke(rlaif, ["run", "--workspace", str(original), "--dry-run", "--json"])
    value = json.loads(done.stdout)
    assert value["round"] == 2
    assert value["stages"][0]["stage"] == "sample"
    assert value["calls"] > 0
    assert {path: path.stat().st_mtime_ns for path in original.rglob("*")} == before


def test_a_second_round_has_the_times_of_the_first(tmp_path: Path) -> None:
    space, _ = finished(tmp_path / "w")
    found = look(space)
    assert "sft" not in found
    assert found["sample"].seconds is not None


def test_a_draft_starts_where_the_round_will(tmp_path: Path) -> None:
    space, _ = finished(tmp_path / "w")
    config: RoundConfig = space.rounds()[0].config
    planned = [step.inputs for step in plan_round(draft(space, config, None))]
    begun: Round = space.begin_round(config)
    assert planned == [step.inputs for step in plan_round(begun)]
    assert begin(tmp_path / "v")[1].number == 1

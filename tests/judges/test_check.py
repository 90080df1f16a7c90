"""`check`: real judges, also ones that fail, and what the report says of them."""

from __future__ import annotations

import json
import re
from collections.abc import Generator, Iterable

import pyarrow as pa
import pytest

from judges.backends import base
from judges.backends.base import Call, Reply
from judges.backends.program import ProgramBackend
from judges.check import check_judge, draw
from judges.judge import Judge, load_judge
from judges.metrics import judge_accuracy, judge_report
from judges.pairs import pairs_from_table
from judges.panel import judge_pairs
from store.errors import RlaifError
from store.resources import DATASETS
from store.schemas import GOLD
from store.tables import read_table

from .conftest import Folder


@pytest.fixture(scope="module")
def gold() -> pa.Table:
    return read_table(DATASETS / "tiny" / "calibration.parquet", GOLD).slice(0, 40)


def test_a_check_reports_what_the_votes_say(gold: pa.Table) -> None:
    judge = load_judge("tiny-oracle")
    checked = check_judge(judge, gold, per_canary=1)
    found = checked.figures
    votes = judge_pairs([judge], pairs_from_table(gold), seed=0)
    assert checked.problem is None
    assert found["accuracy"] == judge_accuracy(votes, gold)["tiny-oracle"]
    same = ("order_flip_rate", "first_slot_rate", "length_slope", "by_group")
    assert {key: found["biases"][key] for key in same} == {
        key: judge_report(votes, gold)["tiny-oracle"][key] for key in same
    }
    assert found["votes"] == {"attempted": 80, "scored": 80, "tie": 0, "abstain": 0, "parse_failure": 0, "error": 0}
    assert found["parse_rate"] == 1
    assert found["latency_s"]["median"] <= found["latency_s"]["p95"]
    assert found["judge"]["fingerprint"] == judge.fingerprint
    json.dumps(found, allow_nan=False)


def test_without_canaries_none_are_asked(gold: pa.Table) -> None:
    assert check_judge(load_judge("tiny-oracle"), gold, per_canary=0).figures["canaries"] is None


class Faulty(ProgramBackend):
    """Every third call fails."""

    share = 3

    def answer(self, calls: Iterable[Call]) -> Generator[Reply, None, None]:
        for number, reply in enumerate(super().answer(calls)):
            yield Reply(reply.call, error=f"line {number}\nlost") if number % self.share == 0 else reply


class Dead(Faulty):
    share = 1


def test_a_judge_with_many_errors_cannot_be_used(
    gold: pa.Table, rubric_judge: Judge, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(base.BACKENDS, "rubric", f"{__name__}:Faulty")
    checked = check_judge(rubric_judge, gold, per_canary=0)
    assert checked.figures["votes"]["error"] == 27
    assert checked.figures["parse_rate"] == 1, "an error is no unreadable answer"
    assert checked.problem is not None
    said = r"27 of its 80 votes are errors \(34%, a stage allows 20%; for example: line \d+ lost\)\.$"
    assert re.search(said, checked.problem)


def test_a_dead_judge_is_given_up_early(gold: pa.Table, rubric_judge: Judge, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(base.BACKENDS, "rubric", f"{__name__}:Dead")
    with pytest.raises(RlaifError, match="Judge rules gave 20 errors in 20 votes"):
        check_judge(rubric_judge, gold)


def test_a_judge_that_cannot_be_loaded_is_no_wrong_use(
    gold: pa.Table, rubric_judge: Judge, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(base.BACKENDS, "rubric", "no_such_package.backend:Backend")
    with pytest.raises(RlaifError, match="Judge rules needs the package no_such_package") as caught:
        check_judge(rubric_judge, gold)
    assert caught.value.exit_code == RlaifError.exit_code


class Mute(ProgramBackend):
    """Declines every comparison."""

    def answer(self, calls: Iterable[Call]) -> Generator[Reply, None, None]:
        for reply in super().answer(calls):
            yield Reply(reply.call, refusal="I would rather not.")


def test_a_judge_that_answers_nothing_cannot_be_used(
    gold: pa.Table, rubric_judge: Judge, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(base.BACKENDS, "rubric", f"{__name__}:Mute")
    checked = check_judge(rubric_judge, gold, per_canary=2)
    assert checked.problem == "Judge rules cannot be used: none of its 80 votes has an answer (80 abstain)."
    assert checked.figures["canaries"]["all"]["attempted"] == 0
    assert "No canary was planted" in " ".join(checked.figures["notes"])
    assert checked.figures["accuracy"]["accuracy"] == 0


def test_a_cascade_reports_its_savings(gold: pa.Table, judge_folder: Folder, rubric_judge: Judge) -> None:
    folder = judge_folder(
        "both", None, backend="cascade", first=str(rubric_judge.folder), then="tiny-oracle", model=..., min_mass=...
    )
    found = check_judge(load_judge(folder), gold, per_canary=1).figures
    assert found["cascade"]["pairs"] == 40
    assert 0 < found["cascade"]["escalated"] <= 40
    assert [member["name"] for member in found["judge"]["members"]] == ["rules", "tiny-oracle"]


def test_a_draw_is_of_the_seed_and_the_pairs(gold: pa.Table) -> None:
    drawn = draw(gold, 10, 3)
    assert drawn.num_rows == 10
    turned = gold.take(pa.array(range(gold.num_rows - 1, -1, -1)))
    assert set(draw(turned, 10, 3)["pair_id"].to_pylist()) == set(drawn["pair_id"].to_pylist())
    assert set(draw(gold, 10, 4)["pair_id"].to_pylist()) != set(drawn["pair_id"].to_pylist())
    assert draw(gold, None, 3).num_rows == draw(gold, 100, 3).num_rows == 40


SINGLE = "<question>{{ prompt }}</question><answer>{{ response }}</answer> How good is it, 1 to 9? Answer:"
SEVERAL = "<question>{{ prompt }}</question>{% for one in responses %}<answer>{{ one }}</answer>{% endfor %} Rank them:"


def test_a_judge_of_single_responses_is_paid_by_the_response(gold: pa.Table, judge_folder: Folder) -> None:
    answers = [str(number) for number in range(1, 10)]
    price = {"input": 2.0, "output": 0.0}
    judge = load_judge(judge_folder("one", SINGLE, mode="rating", answers=answers, scale=0.05, price=price))
    found = check_judge(judge, gold, per_canary=1).figures
    responses = {text for pair in pairs_from_table(gold) for text in (pair.rollout_a, pair.rollout_b)}
    assert found["ratings"]["attempted"] == len(responses)
    assert found["votes"]["attempted"] == 80
    assert found["biases"]["order_flip_rate"] == 0, "one response at a time has no order"
    assert found["cost"]["pairs"] == pytest.approx(found["tokens_per_pair"] * 40 * 2.0 / 1e6)
    assert found["cost"]["pairs"] > 0
    assert found["latency_s"]["median"] > 0
    assert found["canaries"]["all"]["attempted"] > 0


def test_a_judge_that_ranks_lists_and_cannot_be_read_is_said(gold: pa.Table, judge_folder: Folder) -> None:
    """A model of random weights never writes a ranking."""
    judge = load_judge(judge_folder("many", SEVERAL, mode="listwise", max_new_tokens=4))
    checked = check_judge(judge, gold.slice(0, 5), per_canary=1)
    assert checked.figures["parse_rate"] == 0
    assert checked.problem is not None
    assert re.search(r"none of its 10 votes has an answer \(10 parse_failure; for example: '", checked.problem)

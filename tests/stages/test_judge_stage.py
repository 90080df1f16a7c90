"""Stage judge from files to files, with a real tiny model and a rubric."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from torch.nn import Module

from flows.specs import STAGES
from judges.config import JudgeStageConfig, load_judge
from store.errors import RlaifError, UsageError
from store.schemas import ATTACKS, GOLD, PAIRS, PROMPTS, RATINGS, ROLLOUTS, VOTES
from store.stage import Job, Source, run_stage
from store.tables import read_table, write_table

from ..judges.answering import Answer, Answering
from ..judges.conftest import Folder, judge_folder, make_pair, rubric_judge, tiny_judge, tiny_model

__all__ = ["judge_folder", "rubric_judge", "tiny_judge", "tiny_model"]

Inputs = dict[str, list[Source]]


def source(path: Path) -> Source:
    return STAGES["judge"].inputs[0].source(str(path))


@pytest.fixture
def inputs(tmp_path: Path, tiny_judge: Any, rubric_judge: Any) -> Inputs:
    rollouts, prompts = [], []
    for n in range(6):
        prompt = {"prompt_id": f"x{n}", "prompt": f"what runs under bridge {n}?"}
        prompts.append({**prompt, "group": "g", "split": "train", "reference": None})
        for sample in range(3):
            about = {"policy": "p", "finish_reason": "stop", "n_tokens": 1, "logprob": -1.0, "seed": 0}
            # The last prompt's responses are all the same: nothing to compare.
            text = "the dog runs" if n == 5 else "the dog runs " * (sample + 1)
            rollouts.append({"rollout_id": f"r{n}.{sample}", **prompt, "response": text, "sample": sample, **about})
    gold = [vars(make_pair(100 + n, "a cat " * 9, "a cat")) | {"winner": "b"} for n in range(4)]
    tables = {"rollouts": (ROLLOUTS, rollouts), "prompts": (PROMPTS, prompts), "calibration": (GOLD, gold)}
    found = {
        name: [
            source(write_table(tmp_path / f"{name}.parquet", table, pa.Table.from_pylist(rows, schema=table.schema)))
        ]
        for name, (table, rows) in tables.items()
    }
    found["judge"] = [Source(str(judge.folder), judge.fingerprint) for judge in (tiny_judge, rubric_judge)]
    return found


def judged(inputs: Inputs, out: Path, seed: int = 3, **config: Any) -> Any:
    stage = STAGES["judge"]
    return run_stage("judge", stage.load(), inputs=inputs, config=JudgeStageConfig(**config), seed=seed, out=out)


def test_rollouts_become_votes(inputs: Inputs, tmp_path: Path) -> None:
    outcome = judged(inputs, tmp_path / "out", pairs_per_prompt=2)
    pairs = read_table(outcome.folder / "pairs.parquet", PAIRS)
    votes = read_table(outcome.folder / "votes.parquet", VOTES)
    calibration = read_table(outcome.folder / "calibration_votes.parquet", VOTES)
    metrics = outcome.manifest.metrics
    assert (pairs.num_rows, metrics["pairs"], metrics["prompts_without_pairs"]) == (10, 10, 1)
    assert votes.num_rows == metrics["votes"]["attempted"] == 10 * 2 * 2
    assert set(votes["pair_id"].to_pylist()) == set(pairs["pair_id"].to_pylist())
    assert calibration.num_rows == 4 * 2 * 2
    assert set(metrics["per_judge"]) == set(metrics["judge_accuracy"]) == {"tiny", "rules"}
    rules = metrics["judge_accuracy"]["rules"]
    assert (rules["accuracy"], rules["n"]) == (1.0, 4)
    assert rules["low"] < 1
    assert metrics["per_judge"]["rules"]["order_flip_rate"] == 0
    assert json.loads(pq.read_schema(outcome.folder / "votes.parquet").metadata[b"rlaif.judges"]).keys() == {
        "tiny",
        "rules",
    }
    assert not list(outcome.folder.glob(".*")), "the journal does not outlive the stage"
    json.dumps(metrics, allow_nan=False)


def test_a_killed_stage_goes_on(inputs: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = read_table(judged(inputs, tmp_path / "whole").folder / "votes.parquet", VOTES)
    calls: list[int] = []
    forward = Module.__call__

    def killed(what: str, done: int, total: int, note: str = "") -> None:
        if what == "judge rules" and done == 7:
            raise KeyboardInterrupt

    stage = STAGES["judge"].load()
    about: dict[str, Any] = {"inputs": inputs, "config": JudgeStageConfig(), "seed": 3, "out": tmp_path / "out"}
    with pytest.raises(KeyboardInterrupt):
        run_stage("judge", stage, **about, progress=killed)
    assert not (tmp_path / "out").exists()
    monkeypatch.setattr(Module, "__call__", lambda self, *a, **k: calls.append(1) or forward(self, *a, **k))
    outcome = run_stage("judge", stage, **about)
    assert calls == [], "the model's votes were there: it was not even loaded"
    again = read_table(outcome.folder / "votes.parquet", VOTES)
    assert again.drop_columns(["latency_s"]).equals(whole.drop_columns(["latency_s"]))


def test_judges_are_attacked_where_they_decided(inputs: Inputs, tmp_path: Path) -> None:
    """Attacks lie in the losing responses of the round's pairs, and are no votes of the round."""
    outcome = judged(inputs, tmp_path / "out", canaries=2)
    reports = json.loads((outcome.folder / "canaries.json").read_text())
    assert [report["judge"]["name"] for report in reports] == ["tiny", "rules"]
    found = outcome.manifest.metrics["canaries"]
    assert found == {report["judge"]["name"]: report["canaries"]["all"] for report in reports}
    assert found["rules"]["attempted"] > 20, "rules decide most pairs alike in both orders"
    votes = read_table(outcome.folder / "votes.parquet", VOTES)
    attacks = read_table(outcome.folder / "attacks.parquet", ATTACKS).to_pylist()
    known = {row["pair_id"]: row for row in read_table(outcome.folder / "pairs.parquet", PAIRS).to_pylist()}
    fingerprints = {report["judge"]["name"]: report["judge"]["fingerprint"] for report in reports}
    for name, figures in found.items():
        own = [row for row in attacks if row["judge"] == name]
        assert len(own) == figures["attempted"]
        assert sum(row["outcome"] == "flipped" for row in own) == figures["flipped"]
        assert all(row["fingerprint"] == fingerprints[name] for row in own)
    assert {row["pair_id"] for row in attacks} <= set(known)
    winners = {(vote["judge"], vote["pair_id"], vote["winner"]) for vote in votes.to_pylist()}
    for row in attacks:
        assert {winner for judge, pair, winner in winners if (judge, pair) == (row["judge"], row["pair_id"])} == {
            "b" if row["target"] == "a" else "a"
        }, "what is attacked lost in both orders"
    plain = judged(inputs, tmp_path / "plain").folder
    assert votes.num_rows == read_table(plain / "votes.parquet", VOTES).num_rows
    for file in plain.glob("*.parquet"):
        whole, bare = (pq.read_table(folder / file.name) for folder in (outcome.folder, plain))
        timed = [name for name in ("latency_s",) if name in bare.column_names]
        assert whole.drop_columns(timed).equals(bare.drop_columns(timed)), "attacks change nothing of the round"
    assert {file.name for file in outcome.folder.iterdir()} - {file.name for file in plain.iterdir()} == {
        "canaries.json",
        "attacks.parquet",
    }


def test_without_calibration(inputs: Inputs, tmp_path: Path) -> None:
    outcome = judged({**inputs, "calibration": []}, tmp_path / "out", pairs="all")
    assert outcome.manifest.metrics["judge_accuracy"] == {}
    assert outcome.manifest.metrics["pairs"] == 15
    assert not (outcome.folder / "calibration_votes.parquet").exists()


def test_nothing_to_compare_is_said(inputs: Inputs, tmp_path: Path) -> None:
    rollouts = read_table(Path(inputs["rollouts"][0].value), ROLLOUTS).slice(15, 3)
    inputs["rollouts"] = [source(write_table(tmp_path / "same.parquet", ROLLOUTS, rollouts))]
    with pytest.raises(UsageError, match="nothing to compare"):
        judged(inputs, tmp_path / "out")


def test_a_failing_judge_fails_the_stage(inputs: Inputs, tmp_path: Path, judge_folder: Folder) -> None:
    judge = load_judge(judge_folder("mute", mode="pairwise_verdict", max_new_tokens=2))
    with pytest.raises(RlaifError, match=r"mute .*parse failures"):
        judged({**inputs, "judge": [Source(str(judge.folder), judge.fingerprint)]}, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_one_id_for_two_pairs_is_refused(inputs: Inputs, tmp_path: Path) -> None:
    first = judged(inputs, tmp_path / "first").folder / "pairs.parquet"
    known = read_table(first, PAIRS).to_pylist()[0]
    gold = pa.Table.from_pylist([{**known, "response_a": "another", "winner": "a"}], schema=GOLD.schema)
    inputs["calibration"] = [source(write_table(tmp_path / "clash.parquet", GOLD, gold))]
    with pytest.raises(UsageError, match=known["pair_id"]):
        judged(inputs, tmp_path / "out")


def test_the_job_is_enough(inputs: Inputs, tmp_path: Path) -> None:
    job = Job("judge", inputs, JudgeStageConfig(), 3, tmp_path)
    assert STAGES["judge"].load()(job)["pairs"] == 15


FLAWS = "{{ prompt }} <answer>{{ response }}</answer> {% for question in questions %}{{ question.name }}? {% endfor %}"
RATING = "{{ prompt }} <answer>{{ response }}</answer> 0 to 9?"
LIST = "{{ prompt }} {% for response in responses %}<answer>{{ response }}</answer>{% endfor %} RANKING: <...>"


def short_is_good(text: str) -> Answer:
    """All three kinds of judge, by the number of words; nothing is ranked where two responses are the same."""
    words = [len(response.split()) for response in re.findall(r"<answer>(.*?)</answer>", text, re.DOTALL)]
    if "RANKING" in text:
        return "RANKING: " + " > ".join(str(slot + 1) for slot in sorted(range(len(words)), key=lambda at: words[at]))
    if "0 to 9" in text:
        return {str(max(0, 9 - words[0] // 3)): 0.6, str(max(0, 8 - words[0] // 3)): 0.4}
    return f"long: {'yes' if words[0] > 4 else 'no'}\nempty: no"


@pytest.fixture
def served(inputs: Inputs, judge_folder: Folder) -> Iterator[tuple[Inputs, Answering]]:
    """The stage's inputs with a judge of every kind: a rating, flaws, a ranking, a rubric."""
    questions = [{"name": "long", "question": "Long?"}, {"name": "empty", "question": "Empty?", "weight": 3}]
    with Answering(short_is_good) as server:
        about: dict[str, Any] = {"backend": "openai", "model": "m", "base_url": server.url}
        about |= {"price": {"input": 2.0, "output": 5.0}}
        folders = [
            judge_folder("rating", RATING, mode="rating", answers=list("0123456789"), **about),
            judge_folder("flaws", FLAWS, mode="flaws", questions=questions, **about),
            judge_folder("list", LIST, mode="listwise", **about),
        ]
        judges = [Source(str(folder), load_judge(folder).digest) for folder in folders]
        yield {**inputs, "judge": [*judges, inputs["judge"][1]]}, server


@pytest.mark.parametrize("pairs", ["all", "random", "swiss"])
def test_judges_of_every_kind(served: tuple[Inputs, Answering], tmp_path: Path, pairs: str) -> None:
    inputs, server = served
    outcome = judged(inputs, tmp_path / "out", pairs=pairs, pairs_per_prompt=2)
    metrics = outcome.manifest.metrics
    votes = read_table(outcome.folder / "votes.parquet", VOTES)
    calibration = read_table(outcome.folder / "calibration_votes.parquet", VOTES)
    ratings = read_table(outcome.folder / "ratings.parquet", RATINGS)
    known = read_table(outcome.folder / "calibration_ratings.parquet", RATINGS)
    per_judge = dict.fromkeys(("rating", "flaws", "list", "rules"), 2 * metrics["pairs"])
    assert Counter(votes["judge"].to_pylist()) == per_judge
    # Every rollout once by each pointwise judge: those of the prompt without pairs too.
    rollouts = read_table(Path(inputs["rollouts"][0].value), ROLLOUTS)["rollout_id"].to_pylist()
    assert sorted(ratings["rollout_id"].to_pylist()) == sorted(2 * rollouts)
    assert metrics["ratings"]["attempted"] == metrics["ratings"]["scored"] == 2 * 18
    assert metrics["calibration_ratings"]["attempted"] == known.num_rows == 2 * 8
    assert set(metrics["ratings_per_judge"]) == {"rating", "flaws"}
    # The totals add up: what the server counted, what the tables say, and what the metrics say.
    tables = [votes, calibration, ratings, known]
    tokens_in = sum(len(text.split()) for text in server.shown)
    assert sum(sum(table["tokens_in"].to_pylist()) for table in tables) == tokens_in
    assert sum(sum(table["tokens_out"].to_pylist()) for table in tables) == 2 * len(server.shown)
    cost = (2 * tokens_in + 5 * 2 * len(server.shown)) / 1e6
    assert metrics["cost"] == pytest.approx(cost)
    spent = metrics["spent"]
    assert sum(spent[name]["calls"] for name in ("rating", "flaws", "list")) == len(server.shown)
    assert sum(figures["tokens_in"] for figures in spent.values()) == tokens_in
    assert sum(figures["cost"] for figures in spent.values()) == pytest.approx(cost)
    reported = [*metrics["per_judge"].values(), *metrics["ratings_per_judge"].values()]
    elsewhere = sum(sum(table["cost"].to_pylist()) for table in (calibration, known))
    assert sum(figures["cost"] for figures in reported) + elsewhere == pytest.approx(cost)
    # Gold says that the shorter one wins.
    assert {name: figures["accuracy"] for name, figures in metrics["judge_accuracy"].items()} == dict.fromkeys(
        per_judge, 1.0
    )
    weights = metrics["flaw_weights"]["flaws"]
    assert weights["gold_pairs"] == 4
    assert weights["weights"]["long"] > 0
    json.dumps(metrics, allow_nan=False)


def test_new_weights_are_another_stage(served: tuple[Inputs, Answering], judge_folder: Folder) -> None:
    inputs, _ = served
    judge = STAGES["judge"].inputs[2].source(inputs["judge"][1].value)
    settings = Path(judge.value) / "judge.yaml"
    settings.write_text(settings.read_text().replace("weight: 3", "weight: 1"))
    again = STAGES["judge"].inputs[2].source(judge.value)
    assert again.identity != judge.identity, "the finished stage has votes by other weights"
    assert load_judge(judge.value).fingerprint == load_judge(again.value).fingerprint


def test_a_killed_stage_rates_nothing_twice(served: tuple[Inputs, Answering], tmp_path: Path) -> None:
    inputs, server = served
    whole = judged(inputs, tmp_path / "whole")
    needed = len(server.shown)

    def killed(what: str, done: int, total: int, note: str = "") -> None:
        if what == "judge flaws" and done == 9:
            raise KeyboardInterrupt

    stage = STAGES["judge"].load()
    about: dict[str, Any] = {"inputs": inputs, "config": JudgeStageConfig(), "seed": 3, "out": tmp_path / "out"}
    with pytest.raises(KeyboardInterrupt):
        run_stage("judge", stage, **about, progress=killed)
    outcome = run_stage("judge", stage, **about)
    # Those in flight when it was killed may have been paid for without an answer.
    assert needed <= len(server.shown) - needed <= needed + 32
    for name, table in (("votes", VOTES), ("ratings", RATINGS)):
        one, other = (read_table(one.folder / f"{name}.parquet", table) for one in (whole, outcome))
        assert one.drop_columns(["latency_s"]).equals(other.drop_columns(["latency_s"]))


def test_what_is_known_is_not_asked_again_for_attacks(served: tuple[Inputs, Answering], tmp_path: Path) -> None:
    """A stage killed among its attacks goes on there; of an attacked pair only the attacked response is rated."""
    inputs, server = served
    whole = judged(inputs, tmp_path / "whole", canaries=1)
    needed, words = len(server.shown), sum(len(text.split()) for text in server.shown)
    # The last prompt has the same response three times, which are three rollouts.
    assert all("bridge 5" in text for text, times in Counter(server.shown).items() if times > 1)
    assert whole.manifest.metrics["cost"] == pytest.approx((2 * words + 5 * 2 * needed) / 1e6)
    spent = whole.manifest.metrics["spent"].values()
    assert sum(figures["cost"] for figures in spent) == pytest.approx((2 * words + 5 * 2 * needed) / 1e6)
    seen: list[str] = []

    def killed(what: str, done: int, total: int, note: str = "") -> None:
        seen.append(what)
        if what == "judge flaws" and "judge rules" in seen and done == 9:
            raise KeyboardInterrupt

    stage = STAGES["judge"].load()
    about: dict[str, Any] = {"inputs": inputs, "config": JudgeStageConfig(canaries=1), "seed": 3}
    with pytest.raises(KeyboardInterrupt):
        run_stage("judge", stage, **about, out=tmp_path / "out", progress=killed)
    outcome = run_stage("judge", stage, **about, out=tmp_path / "out")
    # Those in flight when it was killed may have been paid for without an answer.
    assert needed <= len(server.shown) - needed <= needed + 32
    for name in ("canaries.json", "attacks.parquet"):
        assert (outcome.folder / name).read_bytes() == (whole.folder / name).read_bytes()

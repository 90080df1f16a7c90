"""Swiss pairing: who meets whom, that it ranks better than chance for the same price, and that kills change nothing."""

from __future__ import annotations

import json
import math
import random
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from scipy.stats import kendalltau

from judges.aggregation.bradley_terry import rate_rollouts
from judges.aggregation.mean import soft_preferences
from judges.judge import Judge
from judges.pairs import Pair, make_pairs, pair_id, pairs_from_table
from judges.panel import Panel
from judges.swiss import match, play
from store.manifest import need_manifest
from store.schemas import PAIRS, PROMPTS, ROLLOUTS, VOTES
from store.stage import Progress, silent
from store.tables import read_table, write_table

from .conftest import PROMPT, Folder
from .recording_server import CONCURRENCY, IN_FLIGHT, RecordingServer, finish, kill_after, start
from .test_pairs import tables
from .votes_builder import vote, votes_table

Ask = Callable[[list[Pair]], pa.Table]


class Oracle:
    """Votes by the strengths, in log-odds; `hard`: draws of winners, not probabilities. Remembers the rounds."""

    def __init__(self, strength: dict[str, float], hard: bool = False) -> None:
        self.strength, self.hard = strength, hard
        self.rounds: list[list[Pair]] = []

    def __call__(self, pairs: list[Pair]) -> pa.Table:
        self.rounds.append(pairs)
        return votes_table(*(row for pair in pairs for row in self._votes(pair)))

    def _votes(self, pair: Pair) -> Iterator[dict[str, Any]]:
        p_a = 1 / (1 + math.exp(self.strength[pair.rollout_b] - self.strength[pair.rollout_a]))
        for order in ("ab", "ba"):
            if self.hard:
                # The better by its number, so that which side it is on does not matter.
                first = min(pair.rollout_a, pair.rollout_b)
                p_first = p_a if first == pair.rollout_a else 1 - p_a
                wins = random.Random(f"{sorted((pair.rollout_a, pair.rollout_b))}{order}").random() < p_first
                yield vote(pair.pair_id, "j", order, float(wins == (first == pair.rollout_a)))
            else:
                yield vote(pair.pair_id, "j", order, p_a)


def distinct(prompts: int, responses: int) -> tuple[pa.Table, pa.Table]:
    return tables([[f"answer {i} {j}" for j in range(responses)] for i in range(prompts)])


def strengths(rollouts: pa.Table, spread: float = 2.0, seed: int = 0) -> dict[str, float]:
    ids = rollouts["rollout_id"].to_pylist()
    return dict(zip(ids, np.random.default_rng(seed).normal(0, spread, len(ids)), strict=True))


def met(pairs: list[Pair]) -> set[frozenset[str]]:
    return {frozenset((pair.rollout_a, pair.rollout_b)) for pair in pairs}


@pytest.mark.parametrize("responses", [2, 3, 5, 6, 8])
@pytest.mark.parametrize("per_prompt", [1, 4, 7, 99])
def test_rounds_of_a_tournament(responses: int, per_prompt: int) -> None:
    rollouts, prompts = distinct(6, responses)
    oracle = Oracle(strengths(rollouts))
    pairs = pairs_from_table(play(rollouts, prompts, oracle, per_prompt=per_prompt, seed=1))
    most = responses * (responses - 1) // 2
    assert Counter(pair.prompt_id for pair in pairs) == {f"x{n}": min(per_prompt, most) for n in range(6)}
    assert len(met(pairs)) == len(pairs), "nobody meets twice"
    assert [pair.pair_id for pair in pairs] == [
        pair.pair_id for pair in sorted(pairs, key=lambda one: (one.prompt_id, one.pair_id))
    ]
    assert sorted(pair.pair_id for one in oracle.rounds for pair in one) == sorted(pair.pair_id for pair in pairs)
    for pair in pairs:
        assert pair.pair_id == pair_id(pair.prompt_id, pair.rollout_a, pair.rollout_b)
    # All prompts in each round and each response once; and while each has met fewer than half, all have an opponent.
    for number, one in enumerate(oracle.rounds):
        of_prompt = defaultdict(list)
        for pair in one:
            of_prompt[pair.prompt_id].extend([pair.rollout_a, pair.rollout_b])
        assert all(len(players) == len(set(players)) for players in of_prompt.values())
        if number < min(responses // 2, per_prompt // (responses // 2)):
            assert {len(players) // 2 for players in of_prompt.values()} == {responses // 2}
            assert len(of_prompt) == 6


def test_after_the_first_round_neighbours_meet() -> None:
    rollouts, prompts = distinct(30, 8)
    oracle = Oracle(strengths(rollouts))
    play(rollouts, prompts, oracle, per_prompt=12, seed=1)
    gaps = [
        np.mean([abs(oracle.strength[pair.rollout_a] - oracle.strength[pair.rollout_b]) for pair in one])
        for one in oracle.rounds
    ]
    assert len(gaps) == 3
    assert max(gaps[1:]) < 0.75 * gaps[0]


def test_the_winners_of_the_first_round_meet_in_the_second() -> None:
    rollouts, prompts = distinct(20, 4)
    oracle = Oracle(strengths(rollouts))
    play(rollouts, prompts, oracle, per_prompt=4, seed=1)
    first, second = oracle.rounds
    strength = oracle.strength
    winners = {max((pair.rollout_a, pair.rollout_b), key=strength.__getitem__) for pair in first}
    for pair in second:
        assert (pair.rollout_a in winners) == (pair.rollout_b in winners)


def test_what_reads_the_same_never_meets() -> None:
    rollouts, prompts = tables([["same", "same ", "same", "x", "y"], ["same"] * 4, ["one", "two"], ["alone"]])
    oracle = Oracle(strengths(rollouts))
    pairs = pairs_from_table(play(rollouts, prompts, oracle, per_prompt=50, seed=0))
    assert Counter(pair.prompt_id for pair in pairs) == {"x0": 7, "x2": 1}
    assert all(pair.response_a.strip() != pair.response_b.strip() for pair in pairs)
    nobody = play(*tables([["same", "same"]]), oracle, per_prompt=3, seed=0)
    assert (nobody.num_rows, nobody.schema) == (0, PAIRS.schema)


def test_byes_go_round() -> None:
    rollouts, prompts = distinct(10, 7)
    oracle = Oracle(strengths(rollouts))
    play(rollouts, prompts, oracle, per_prompt=9, seed=2)
    idle = [
        set(oracle.strength) - {one for pair in pairs for one in (pair.rollout_a, pair.rollout_b)}
        for pairs in oracle.rounds
    ]
    assert [len(players) for players in idle] == [10, 10, 10]
    assert len(set.union(*idle)) == 30, "nobody sits out twice"


def brute_force(standing: list[int], allowed: set[tuple[int, int]]) -> int:
    """The most pairs that can meet."""
    if len(standing) < 2:
        return 0
    first, *rest = standing
    best = brute_force(rest, allowed)
    for other in rest:
        if (min(first, other), max(first, other)) in allowed:
            best = max(best, 1 + brute_force([one for one in rest if one != other], allowed))
    return best


def test_few_are_left_over() -> None:
    chance = random.Random(3)
    short = 0
    for _ in range(400):
        k = chance.randint(2, 8)
        everyone = list(combinations(range(k), 2))
        allowed = set(chance.sample(everyone, chance.randint(1, len(everyone))))
        standing = chance.sample(range(k), k)
        byes = Counter({player: chance.randint(0, 2) for player in range(k)})
        found = match(standing, allowed, byes)
        assert set(found) <= allowed
        players = [player for pair in found for player in pair]
        assert len(players) == len(set(players))
        most = brute_force(standing, allowed)
        assert found or not most
        assert len(found) >= most - 1
        short += len(found) < most
    # Where pairs are scarce, another round makes up for what breaking up one pair at a time does not find.
    assert short <= 12


def test_the_lowest_of_those_with_fewest_byes_sits_out() -> None:
    allowed = set(combinations(range(5), 2))
    assert match([3, 1, 4, 0, 2], allowed, Counter()) == [(1, 3), (0, 4)]
    assert match([3, 1, 4, 0, 2], allowed, Counter({2: 1, 0: 1})) == [(1, 3), (0, 2)]
    assert match([0, 1, 2, 3], allowed - {(0, 1), (2, 3)}, Counter()) == [(0, 2), (1, 3)]
    # The last two have met: they take one each of the pair above.
    assert sorted(match([0, 1, 2, 3], allowed - {(2, 3)}, Counter())) == [(0, 2), (1, 3)]


def test_the_result_hangs_on_rows_votes_and_seed_alone() -> None:
    rollouts, prompts = distinct(6, 7)
    oracle = Oracle(strengths(rollouts))
    made = play(rollouts, prompts, oracle, per_prompt=8, seed=3)
    backwards = list(range(rollouts.num_rows))[::-1]
    assert play(rollouts.take(backwards), prompts, oracle, per_prompt=8, seed=3).equals(made)
    part = play(rollouts.slice(0, 14), prompts, oracle, per_prompt=8, seed=3)
    assert part.equals(made.slice(0, 16)), "what one prompt plays does not depend on the others"
    assert not play(rollouts, prompts, oracle, per_prompt=8, seed=4).equals(made)


def test_sides_are_drawn() -> None:
    rollouts, prompts = distinct(60, 6)
    pairs = pairs_from_table(play(rollouts, prompts, Oracle(strengths(rollouts)), per_prompt=6, seed=0))
    first = sum(pair.rollout_a < pair.rollout_b for pair in pairs)
    assert 140 < first < 220


def test_pairs_without_a_valid_vote_do_not_stop_a_tournament() -> None:
    rollouts, prompts = distinct(4, 6)

    def silent(pairs: list[Pair]) -> pa.Table:
        return votes_table(*(vote(pair.pair_id, "j", order, None) for pair in pairs for order in ("ab", "ba")))

    pairs = pairs_from_table(play(rollouts, prompts, silent, per_prompt=9, seed=0))
    assert (len(pairs), len(met(pairs))) == (36, 36)


def tau(rollouts: pa.Table, pairs: pa.Table, oracle: Oracle) -> float:
    """Mean over prompts of Kendall's tau-b between strengths and the Bradley-Terry ratings of these pairs."""
    preferred = soft_preferences(oracle(pairs_from_table(pairs)))
    labels = pa.table({"pair_id": list(preferred), "p_a": list(preferred.values())})
    rated = rate_rollouts(pairs, labels).table
    rating = dict(zip(rated["rollout_id"].to_pylist(), rated["rating"].to_pylist(), strict=True))
    of_prompt = defaultdict(list)
    for rollout, prompt in zip(rollouts["rollout_id"].to_pylist(), rollouts["prompt_id"].to_pylist(), strict=True):
        of_prompt[prompt].append((oracle.strength[rollout], rating.get(rollout, 0.0)))
    return float(np.mean([kendalltau(*zip(*both, strict=True)).statistic for both in of_prompt.values()]))


@pytest.mark.slow
@pytest.mark.parametrize("hard", [True, False])
def test_it_ranks_better_than_as_many_random_pairs(hard: bool) -> None:
    """Strengths of sd 2 in log-odds, eight responses, 12 of their 28 pairs; paired over 30 seeds of 20 prompts."""
    gains = []
    for seed in range(30):
        rollouts, prompts = distinct(20, 8)
        oracle = Oracle(strengths(rollouts, seed=seed), hard=hard)
        swiss = play(rollouts, prompts, oracle, per_prompt=12, seed=seed)
        chosen = make_pairs(rollouts, prompts, "random", 12, seed)
        assert swiss.num_rows == chosen.num_rows == 240
        gains.append(tau(rollouts, swiss, oracle) - tau(rollouts, chosen, oracle))
    error = float(np.std(gains, ddof=1) / math.sqrt(len(gains)))
    print(f"tau gained, hard={hard}: {np.mean(gains):.3f} +- {error:.3f}")
    assert np.mean(gains) > 3 * error


@pytest.mark.parametrize("kind", ["rubric_judge", "tiny_judge"])
def test_a_killed_tournament_goes_on_with_the_same_pairs_and_votes(
    kind: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """To the last bit; a local model's batches too."""
    judge: Judge = request.getfixturevalue(kind)
    rollouts, prompts = tables([["w " * (3 + (i * 7 + j * 5) % 23) for j in range(7)] for i in range(9)])
    about: dict[str, Any] = {"per_prompt": 9, "seed": 5}

    def played(folder: Path | None, progress: Progress = silent) -> tuple[pa.Table, pa.Table]:
        votes = []

        def ask(pairs: list[Pair]) -> pa.Table:
            votes.append(panel.judge(pairs, progress))
            return votes[-1]

        with Panel([judge], shards=folder) as panel:
            pairs = play(rollouts, prompts, ask, **about, folder=folder / "rounds" if folder else None)
        return pairs, pa.concat_tables(votes).drop_columns(["latency_s"])

    pairs, votes = played(None)
    assert votes.num_rows == 2 * 81
    chance = random.Random(7)
    for run in range(5):
        folder, stop = tmp_path / str(run), chance.randint(1, 150)
        told = Counter[str]()

        def killed(
            what: str, done: int, total: int, note: str = "", told: Counter[str] = told, stop: int = stop
        ) -> None:
            told["votes"] += 1
            if told["votes"] == stop:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            played(folder, killed)
        saved = {path.name: path.read_bytes() for path in (folder / "rounds").iterdir()}
        again = played(folder)
        assert again[0].equals(pairs)
        assert again[1].equals(votes)
        assert {name: (folder / "rounds" / name).read_bytes() for name in saved} == saved


def test_a_round_that_was_asked_about_stays_even_if_a_vote_changes(tmp_path: Path) -> None:
    """A vote that failed before a kill may succeed after it: what was paid for since then must still count."""
    rollouts, prompts = distinct(3, 6)
    oracle = Oracle(strengths(rollouts))

    def failing(pairs: list[Pair]) -> pa.Table:
        if len(oracle.rounds) == 2:
            raise KeyboardInterrupt
        oracle.rounds.append(pairs)
        return votes_table(*(vote(pair.pair_id, "j", order, None, "error") for pair in pairs for order in ("ab", "ba")))

    with pytest.raises(KeyboardInterrupt):
        play(rollouts, prompts, failing, per_prompt=9, seed=0, folder=tmp_path)
    before = list(oracle.rounds)
    oracle.rounds.clear()
    play(rollouts, prompts, oracle, per_prompt=9, seed=0, folder=tmp_path)
    assert oracle.rounds[:2] == before
    assert len(oracle.rounds) == 3


@pytest.mark.slow
def test_a_killed_stage_makes_the_same_files(judge_folder: Folder, tmp_path: Path) -> None:
    rollouts, prompts = distinct(12, 6)
    files = {
        "rollouts": write_table(tmp_path / "rollouts.parquet", ROLLOUTS, rollouts),
        "prompts": write_table(tmp_path / "prompts.parquet", PROMPTS, prompts),
    }
    server = RecordingServer()
    try:
        about: dict[str, Any] = {"backend": "openai", "model": "m", "base_url": server.url, "concurrency": CONCURRENCY}
        judge = judge_folder("served", PROMPT, **about)
        settings = {"rollouts": files["rollouts"], "prompts": files["prompts"], "judge": judge, "pairs": "swiss"}
        command = ["stage", "judge", "--pairs-per-prompt", 9]
        command += [part for name, value in settings.items() for part in (f"--{name}", value)]
        kills = 0
        # Three rounds of 72 calls: within the first, the second and the third.
        for calls in (30, 110, 190):
            assert kill_after(start(*command, "--out", tmp_path / "killed", module="flows"), server, calls)
            kills += 1
            assert not (tmp_path / "killed").exists()
        finish(start(*command, "--out", tmp_path / "killed", module="flows"))
        assert len(server.calls) == 216
        assert server.calls.total() <= 216 + IN_FLIGHT * kills
        server.calls.clear()
        finish(start(*command, "--out", tmp_path / "whole", module="flows"))
        assert (len(server.calls), server.calls.total()) == (216, 216)
    finally:
        server.close()
    pairs = [(tmp_path / name / "pairs.parquet").read_bytes() for name in ("killed", "whole")]
    assert pairs[0] == pairs[1]
    votes = [read_table(tmp_path / name / "votes.parquet", VOTES) for name in ("killed", "whole")]
    assert votes[0].num_rows == 216
    assert votes[0].drop_columns(["latency_s"]).equals(votes[1].drop_columns(["latency_s"]))
    metrics = need_manifest(tmp_path / "killed").metrics
    assert (metrics["pairs"], metrics["votes"]["attempted"]) == (108, 216)
    assert not list((tmp_path / "killed").glob(".*"))
    json.dumps(metrics, allow_nan=False)

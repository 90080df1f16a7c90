"""Swiss pairing: each round compares responses of a prompt that are neighbours by their rating so far.

As in a chess tournament: nobody meets twice, and in an odd field one sits out, of those who did so least often the
lowest rated. The first round is drawn; from then on the order is that of Bradley-Terry ratings fitted to the mean
preference of all judges (`judges.aggregation.bradley_terry`, whose prior keeps a response without a lost or won
comparison finite). Comparisons between near equals say most about the ranking, so that fewer of them rank k responses
as well as random ones would.

All prompts advance round by round together: judges get full batches. A prompt with k responses has floor(k / 2)
comparisons a round, and rounds until it has `per_prompt` of them, the last one cut to its closest ones; or until every
two responses that differ have met.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from itertools import count
from pathlib import Path

import numpy as np
import pyarrow as pa

from judges.aggregation.bradley_terry import fit
from judges.aggregation.mean import soft_preferences
from judges.pairs import Contest, Pair, contests, pairs_from_table, pairs_to_table
from store.hashing import short_id
from store.schemas import PAIRS
from store.tables import read_table, write_table

Match = tuple[int, int]
"""Two players, the smaller number first."""


def play(
    rollouts: pa.Table,
    prompts: pa.Table,
    ask: Callable[[list[Pair]], pa.Table],
    *,
    per_prompt: int,
    seed: int,
    folder: Path | None = None,
) -> pa.Table:
    """Play all rounds; returns the PAIRS that were compared, sorted by prompt_id and pair_id.

    `ask`: gives the VOTES on a round's pairs. With `folder` each round's pairs are written there before they are
    judged: a killed run then goes on with the pairs that were asked about already, even where a vote that failed
    succeeds in the second run. The result depends on rows, votes and seed alone.

    Raises UsageError for a rollout of a prompt that is not in `prompts`.
    """
    fields = [_Field(contest, per_prompt, seed) for contest in contests(rollouts, prompts)]
    preferred: dict[str, float] = {}
    played: list[Pair] = []
    for number in count(1):
        saved = folder / f"{number:06d}.parquet" if folder else None
        if saved is not None and saved.exists():
            pairs = pairs_from_table(read_table(saved, PAIRS))
        else:
            ratings = _rate(fields, played, preferred)
            pairs = [pair for field in fields for pair in field.draw(ratings)]
            if not pairs:
                break
            if saved is not None:
                write_table(saved, PAIRS, pairs_to_table(pairs))
        by_prompt: dict[str, list[Pair]] = {}
        for pair in pairs:
            by_prompt.setdefault(pair.prompt_id, []).append(pair)
        for field in fields:
            field.note(by_prompt.get(field.prompt_id, []))
        preferred |= soft_preferences(ask(pairs))
        played += pairs
    return pairs_to_table(sorted(played, key=lambda pair: (pair.prompt_id, pair.pair_id)))


class _Field:
    """A prompt's responses in play: who may still meet whom, and who sat out how often."""

    def __init__(self, contest: Contest, per_prompt: int, seed: int) -> None:
        self.prompt_id = contest.prompt_id
        self.players = [str(row["rollout_id"]) for row in contest.rollouts]
        self._contest, self._left, self._seed = contest, per_prompt, seed
        self._open = set(contest.different())
        self._byes: Counter[int] = Counter()
        self._round = 1

    def draw(self, ratings: dict[str, float]) -> list[Pair]:
        """The next round's pairs, sorted by pair_id; none where the prompt is through."""
        if not self._left or not self._open:
            return []
        chance = random.Random(short_id("swiss", self._seed, self.prompt_id, self._round))  # noqa: S311  reproducible
        standing = list(range(len(self.players)))
        # Equals stay in drawn order. Ratings that differ in the last bits only are equal.
        chance.shuffle(standing)
        rating = [round(ratings.get(player, 0.0), 6) for player in self.players]
        standing.sort(key=lambda player: -rating[player])
        matches = match(standing, self._open, self._byes)
        matches.sort(key=lambda pair: abs(rating[pair[0]] - rating[pair[1]]))
        pairs = [self._contest.pair(one, two, chance) for one, two in matches[: self._left]]
        return sorted(pairs, key=lambda pair: pair.pair_id)

    def note(self, pairs: Sequence[Pair]) -> None:
        """What was drawn for this round."""
        if not pairs:
            return
        playing: set[int] = set()
        for pair in pairs:
            one, two = sorted(self.players.index(rollout) for rollout in (pair.rollout_a, pair.rollout_b))
            self._open.discard((one, two))
            playing |= {one, two}
        self._left -= len(pairs)
        self._byes.update(set(range(len(self.players))) - playing)
        self._round += 1


def match(standing: Sequence[int], allowed: Collection[Match], byes: Counter[int]) -> list[Match]:
    """Pair neighbours. `standing`: the players, best first; `allowed`: who may meet; `byes`: how often each sat out.

    Pairs are made from the top down, then one at a time is broken up for two who are left over. That leaves nobody
    alone while each has met fewer than half of the others (Dirac's condition); later a round may be short of a pair,
    and one more round makes up for it. At least one pair comes of it if any is allowed.
    """
    if len(standing) % 2 == 0:
        return _match_all(standing, allowed)
    best: list[Match] = []
    lowest_first = list(reversed(standing))
    for bye in sorted(lowest_first, key=lambda player: byes[player]):
        found = _match_all([player for player in standing if player != bye], allowed)
        if len(found) > len(best):
            best = found
        if len(best) == len(standing) // 2:
            break
    return best


def _match_all(standing: Sequence[int], allowed: Collection[Match]) -> list[Match]:
    found: list[Match] = []
    waiting = list(standing)
    alone: list[int] = []
    while waiting:
        player = waiting.pop(0)
        partner = next((other for other in waiting if _match(player, other) in allowed), None)
        if partner is None:
            alone.append(player)
        else:
            waiting.remove(partner)
            found.append(_match(player, partner))
    place = {player: at for at, player in enumerate(standing)}
    return _break_up(found, alone, allowed, place)


def _break_up(found: list[Match], alone: list[int], allowed: Collection[Match], place: dict[int, int]) -> list[Match]:
    """Two who may not meet take one each of a pair that others form: the one that keeps neighbours closest."""

    def distance(pair: Match) -> int:
        return abs(place[pair[0]] - place[pair[1]])

    while True:
        choices = [
            (distance(new[0]) + distance(new[1]), old, new, (x, y))
            for at, x in enumerate(alone)
            for y in alone[at + 1 :]
            for old in found
            for new in ((_match(x, old[0]), _match(y, old[1])), (_match(x, old[1]), _match(y, old[0])))
            if new[0] in allowed and new[1] in allowed
        ]
        if not choices:
            return found
        _, old, new, both = min(choices)
        found = [pair for pair in found if pair != old] + list(new)
        alone = [player for player in alone if player not in both]


def _match(one: int, two: int) -> Match:
    return (one, two) if one < two else (two, one)


def _rate(fields: Sequence[_Field], played: Sequence[Pair], preferred: dict[str, float]) -> dict[str, float]:
    """rollout_id -> rating; 0 for all before the first vote."""
    known = [pair for pair in played if pair.pair_id in preferred]
    if not known:
        return {}
    players = [player for field in fields for player in field.players]
    index = {player: at for at, player in enumerate(players)}
    a = np.array([index[pair.rollout_a] for pair in known], dtype=np.int64)
    b = np.array([index[pair.rollout_b] for pair in known], dtype=np.int64)
    p = np.array([preferred[pair.pair_id] for pair in known])
    prompt = np.repeat(np.arange(len(fields)), [len(field.players) for field in fields])
    rating, _ = fit(a, b, p, prompt.astype(np.int64))
    return dict(zip(players, rating.tolist(), strict=True))

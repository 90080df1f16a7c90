"""Ratings: what judges of single responses say about each rollout, and the votes on pairs that follow from them.

Each rollout is rated once, whatever the number of pairs that it is in; that is what is paid for. The votes on a pair,

    p_a = 1 / (1 + exp(-(score_a - score_b) / scale)),

cost nothing more, are the same in both orders, and are none where a rating is none: nothing is imputed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from judges.asking import Inquiry
from judges.backends.base import Reply, Subject
from judges.collect import Ask, Limits
from judges.journal import SHARD_ROWS
from judges.judge import Judge
from judges.modes import Finding, Kind
from judges.modes.program import logistic
from judges.pairs import Pair
from judges.reports import Figures
from judges.reports.accounting import account, mean, spending, split_by_judge
from judges.reports.proportions import share
from judges.requests import ORDERS
from judges.settings import LanguageModelSettings
from judges.votes import paid, table_of, vote_row
from store.errors import UsageError
from store.hashing import short_id
from store.schemas import RATINGS, VOTES, Status
from store.stage import Progress, silent

_VALID = (Status.SCORED, Status.TIE)
_WORST = (Status.ERROR, Status.PARSE_FAILURE, Status.ABSTAIN)
"""What a vote becomes where a rating says nothing: the first of these that one of the two ratings has."""


@dataclass(frozen=True)
class Rollout:
    """A response to rate; `group` and `reference` are the prompt's."""

    rollout_id: str
    prompt_id: str
    prompt: str
    response: str
    group: str = ""
    reference: str | None = None

    @cached_property
    def key(self) -> str:
        """Of this text under this id: ids such as policy and reference stand for many texts."""
        return short_id(self.rollout_id, self.prompt, self.response)


def is_pointwise(judge: Judge) -> bool:
    """Whether the judge rates single responses. A cascade does not, whatever its members do."""
    return not judge.members and judge.mode.kind == Kind.SINGLE


def rollouts_of(rollouts: pa.Table, prompts: pa.Table) -> list[Rollout]:
    """The rows of a ROLLOUTS table, in its order. Raises UsageError for one whose prompt `prompts` lacks."""
    about = {row["prompt_id"]: row for row in prompts.select(["prompt_id", "group", "reference"]).to_pylist()}
    found = []
    for row in rollouts.select(["rollout_id", "prompt_id", "prompt", "response"]).to_pylist():
        if row["prompt_id"] not in about:
            raise UsageError(
                f"Rollout {row['rollout_id']} is of the prompt {row['prompt_id']}, which the prompts table lacks: give "
                f"the prompts that were sampled from."
            )
        prompt = about[row["prompt_id"]]
        found.append(Rollout(**row, group=prompt["group"], reference=prompt["reference"]))
    return found


def rollouts_in(pairs: Iterable[Pair]) -> Iterator[Rollout]:
    """Both rollouts of each pair; a rollout of several pairs comes several times."""
    for pair in pairs:
        for rollout, response in ((pair.rollout_a, pair.response_a), (pair.rollout_b, pair.response_b)):
            yield Rollout(rollout, pair.prompt_id, pair.prompt, response, pair.group, pair.reference)


def unique(rollouts: Iterable[Rollout]) -> list[Rollout]:
    """Each rollout once, in the order of first appearance."""
    by_key: dict[str, Rollout] = {}
    for rollout in rollouts:
        by_key.setdefault(rollout.key, rollout)
    return list(by_key.values())


def rating_id(rollout: Rollout, fingerprint: str) -> str:
    return short_id(rollout.key, fingerprint)


def inquiry_about_rollouts(judge: Judge, rollouts: Sequence[Rollout]) -> Inquiry[Rollout]:
    """All that a judge of kind SINGLE is asked; each rollout is given once. See `scored` for what flaws add up to."""
    return Inquiry(judge, RATINGS, lambda: _asks(judge, rollouts), _rating)


def rate_rollouts(
    judges: Sequence[Judge],
    rollouts: Iterable[Rollout],
    *,
    seed: int,
    progress: Progress = silent,
    shards: Path | None = None,
    shard_rows: int = SHARD_ROWS,
    limits: Limits | None = None,
) -> pa.Table:
    """Let every pointwise judge among `judges` rate every rollout once; a RATINGS table by rollout_id and judge.

    Journalled under `shards` and resumed as votes are; see `judges.panel.judge_pairs`. Raises UsageError where two
    judges have one fingerprint, RlaifError where a judge passes its limits.
    """
    pointwise = [judge for judge in judges if is_pointwise(judge)]
    fingerprint, count = next(iter(Counter(judge.fingerprint for judge in pointwise).most_common(1)), ("", 0))
    if count > 1:
        raise UsageError(f"{count} judges have the fingerprint {fingerprint}: give each once.")
    rated = unique(rollouts) if pointwise else []
    tables = []
    for judge in pointwise:
        answers = inquiry_about_rollouts(judge, rated).run(
            seed=seed, progress=progress, shards=shards, shard_rows=shard_rows, limits=limits
        )
        tables.append(scored(judge, answers))
    return sorted_ratings(tables)


def sorted_ratings(tables: Sequence[pa.Table]) -> pa.Table:
    """The rows of all tables, a rating that several have once: the last one, which was asked for again."""
    joined = pa.concat_tables([RATINGS.schema.empty_table(), *tables]).combine_chunks()
    last = {rating: at for at, rating in enumerate(joined["rating_id"].to_pylist())}
    if len(last) < joined.num_rows:
        joined = joined.take(pa.array(last.values(), pa.int64()))
    return joined.sort_by([("rollout_id", "ascending"), ("judge", "ascending"), ("rating_id", "ascending")])


def scored(judge: Judge, ratings: pa.Table) -> pa.Table:
    """The judge's ratings with the scores that its weights of today give to its answers about flaws.

    Answers outlive weights, which are not part of the fingerprint: scores of flaws are never taken from a journal.
    """
    settings = judge.settings
    if not isinstance(settings, LanguageModelSettings) or settings.mode != "flaws":
        return ratings
    # Here and not above: what fits weights takes half a second and 60 MB to import, and most judges have none.
    from judges.quality import quality

    scores = [
        quality(dict(flaws), settings.questions) if status == Status.SCORED else None
        for flaws, status in zip(ratings["flaws"].to_pylist(), ratings["status"].to_pylist(), strict=True)
    ]
    at = RATINGS.schema.get_field_index("score")
    return ratings.set_column(at, RATINGS.schema.field(at), pa.array(scores, pa.float64()))


def votes_from_ratings(judge: Judge, pairs: Sequence[Pair], ratings: pa.Table) -> pa.Table:
    """VOTES of a pointwise judge, two for each pair, from its rows of `ratings`.

    A tie is equality of the scores. Where a rating says nothing, the votes say why: error, parse_failure or abstain,
    the first of them that one of the two has. Tokens, cost, latency and attempts are 0: they are in the ratings.
    Raises UsageError for a rollout that was not rated.
    """
    settings = judge.settings
    if not isinstance(settings, LanguageModelSettings):
        raise TypeError(f"Judge {judge.name} rates no single responses.")
    own = scored(judge, ratings.filter(pc.equal(ratings["fingerprint"], judge.fingerprint)))
    columns = ["rating_id", "status", "score", "mass", "rationale", "error"]
    found = {row["rating_id"]: row for row in own.select(columns).to_pylist()}

    def rows() -> Iterator[dict[str, Any]]:
        for pair in pairs:
            one, two = rollouts_in([pair])
            a, b = (found.get(rating_id(rollout, judge.fingerprint)) for rollout in (one, two))
            if a is None or b is None:
                raise UsageError(
                    f"Judge {judge.name} has no rating of the rollout {(two if a else one).rollout_id}: rate all "
                    f"rollouts of the pairs."
                )
            for order in ORDERS:
                status, p_a = _compared(a, b, settings.scale)
                yield vote_row(judge, pair, order, status, p_a) | _derived(a, b)

    return table_of(rows(), VOTES)


def rating_report(ratings: pa.Table) -> dict[str, Figures]:
    """judge -> accounting of its ratings, what they took, and what they say; None where nothing is known.

    `mean_score`: of the valid ones. `up_share`: of the thumbs. `flaws`: question -> `yes`, its share of the yes and no
    answers, and `unsure`, its share of all answers.
    """
    return {name: _of_one_judge(own) for name, own in split_by_judge(ratings).items()}


def _of_one_judge(ratings: pa.Table) -> Figures:
    thumbs = Counter(thumb for thumb in ratings["thumb"].to_pylist() if thumb)
    answers: dict[str, Counter[str]] = {}
    for flaws in ratings["flaws"].to_pylist():
        for question, answer in flaws or ():
            answers.setdefault(question, Counter())[answer] += 1
    return {
        **account(ratings),
        "mean_score": mean(ratings["score"]),
        "up_share": share(thumbs["up"], thumbs.total()),
        "flaws": {
            question: {
                "yes": share(found["yes"], found["yes"] + found["no"]),
                "unsure": share(found["unsure"], found.total()),
            }
            for question, found in sorted(answers.items())
        },
        "mean_mass": mean(ratings["mass"]),
        **spending(ratings),
    }


def _asks(judge: Judge, rollouts: Sequence[Rollout]) -> Iterator[Ask[Rollout]]:
    for rollout in rollouts:
        subject = Subject(rollout.prompt, (rollout.response,), rollout.reference, rollout.group)
        yield Ask(rating_id(rollout, judge.fingerprint), subject, rollout.rollout_id, rollout)


def _rating(judge: Judge, ask: Ask[Rollout], reply: Reply, finding: Finding) -> dict[str, Any]:
    return {
        "rating_id": ask.id,
        "rollout_id": ask.what.rollout_id,
        "prompt_id": ask.what.prompt_id,
        "judge": judge.name,
        "fingerprint": judge.fingerprint,
        "status": str(finding.status),
        "score": finding.score,
        "thumb": finding.thumb,
        "overall": finding.overall,
        "flaws": None if finding.flaws is None else dict(finding.flaws),
        "mass": finding.mass,
        "rationale": finding.rationale,
        **paid(judge, reply),
    }


def _compared(a: dict[str, Any], b: dict[str, Any], scale: float) -> tuple[Status, float | None]:
    """Status of the votes on a pair with these two ratings, and its p_a."""
    statuses = {a["status"], b["status"]}
    if not statuses <= set(_VALID):
        return next(status for status in _WORST if status in statuses), None
    # Sums of the same weights in another order differ in the last bits: that is no preference.
    p_a = logistic(round(a["score"] - b["score"], 9) / scale)
    return (Status.TIE if p_a == 0.5 else Status.SCORED), p_a


def _derived(a: dict[str, Any], b: dict[str, Any]) -> dict[str, Any]:
    """The columns of a vote that does not stem from a call of its own."""
    masses = [rating["mass"] for rating in (a, b) if rating["mass"] is not None]
    return {
        "mass": min(masses, default=None),
        "rationale": "\n".join(f"{side}: {_said(rating)}" for side, rating in (("a", a), ("b", b))),
        "raw": None,
        "error": next((rating["error"] for rating in (a, b) if rating["error"]), None),
        "tokens_in": 0,
        "tokens_out": 0,
        "cost": 0.0,
        "latency_s": 0.0,
        "attempts": 0,
    }


def _said(rating: dict[str, Any]) -> str:
    found = rating["status"] if rating["score"] is None else f"{rating['score']:.3f}"
    return f"{found}, {rating['rationale']}" if rating["rationale"] else str(found)

"""Check: real calls of one judge on pairs with known winners, and what they say about it, in one report.

Pairs are asked in both orders; then canaries (`judges.canaries`) are planted into responses that lost. Nothing is
stored. The report says in one sentence why a judge cannot be used, where that is so, by the limits that the judge stage
has by default.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

import pyarrow as pa
import pyarrow.compute as pc

from judges.canaries import Attack, Corpus, canary_report, plan, read_corpus
from judges.cascade import savings, total_cost
from judges.config import JudgeStageConfig
from judges.judge import Judge
from judges.metrics import account, causes, judge_accuracy, judge_report, spending
from judges.pairs import pairs_from_table
from judges.panel import Judged, Limits, Panel
from judges.ratings import is_pointwise
from judges.reports import Figures
from judges.reports.proportions import share
from judges.settings import OpenAISettings
from store.errors import RlaifError
from store.hashing import short_id
from store.schemas import Status
from store.stage import Progress, silent

HOPELESS = Limits(max_error_rate=0.5, after=20)
"""Ends a check early: most calls fail, and the rest of them would too."""


PATIENCE_S = 15.0
"""A check does not wait as long as a stage does for a server that is away."""


@dataclass(frozen=True)
class Checked:
    """`figures`: see `check_judge`. `problem`: why the judge cannot be used, in one sentence; None where it can."""

    figures: Figures
    problem: str | None


def check_judge(
    judge: Judge, gold: pa.Table, *, per_canary: int = 4, seed: int = 0, progress: Progress = silent
) -> Checked:
    """Ask `judge` about the pairs of `gold` (GOLD), and about `per_canary` attacks for each canary (0: none).

    figures: `judge` (what it is), `pairs`, `votes` (the five outcomes; `ratings` likewise, of a judge that rates single
    responses), `causes` (of votes without an answer), `parse_rate` (readable answers of those that came back),
    `seconds` and `pairs_per_second` on the clock, `latency_s` (median, p95, mean of calls), `biases`, `accuracy`,
    `cost` and `cost_per_1000_pairs`, `tokens_per_pair`, `cascade` (its savings), `canaries`, `notes`.

    Raises RlaifError where the judge cannot be loaded, or most of its calls fail.
    """
    pairs, corpus = pairs_from_table(gold), read_corpus()
    try:
        with Panel([_impatient(judge)], seed=seed, limits=HOPELESS) as panel:
            start = time.monotonic()
            judged = panel.ask(pairs, progress)
            seconds = time.monotonic() - start
            votes = judged.votes
            attacks = plan(judge, votes, pairs, corpus, per_canary=per_canary, seed=seed)
            again = panel.ask([attack.pair for attack in attacks], progress)
    except RlaifError as error:
        # Whatever is missing (a package, a key, a server): no wrong use of the check, but its finding.
        said = str(error)
        named = said.startswith(f"Judge {judge.name} ")
        raise RlaifError(said if named else f"Judge {judge.name} cannot be used: {said}") from error
    (report,) = judge_report(votes, gold).values()
    (accuracy,) = judge_accuracy(votes, gold).values()
    spent, cost, on_canaries = spending(calls_of(judge, judged)), _cost(judged), _cost(again)
    figures: Figures = {
        "judge": identity(judge),
        "pairs": len(pairs),
        "seed": seed,
        "votes": account(votes),
        "ratings": account(judged.ratings) if is_pointwise(judge) else None,
        "causes": [asdict(cause) for cause in causes(votes)],
        "parse_rate": _parse_rate(votes),
        "seconds": seconds,
        "pairs_per_second": len(pairs) / seconds if seconds else None,
        "latency_s": {key: spent[f"{key}_latency_s"] for key in ("median", "p95", "mean")},
        "cost": {"pairs": cost, "canaries": on_canaries, "all": cost + on_canaries},
        "cost_per_1000_pairs": share(1000 * cost, len(pairs)),
        "tokens_per_pair": share(spent["tokens_in"] + spent["tokens_out"], len(pairs)),
        "biases": report,
        "accuracy": accuracy,
        "cascade": savings([judge], votes, judged.member_votes, judged.ratings).get(judge.name),
        "canaries": None,
    }
    if per_canary:
        figures["canaries"] = canaries_of(corpus, attacks, again.votes)
    return Checked({**figures, "notes": _notes(figures, per_canary)}, _problem(judge, votes))


def canaries_of(corpus: Corpus, attacks: Sequence[Attack], votes: pa.Table) -> Figures:
    return {"corpus": corpus.digest, "votes": account(votes), **canary_report(attacks, votes)}


def draw(gold: pa.Table, limit: int | None, seed: int) -> pa.Table:
    """`limit` rows drawn by `seed` and pair_id, in the table's order; all where there are no more."""
    if limit is None or gold.num_rows <= limit:
        return gold
    ids = gold["pair_id"].to_pylist()
    drawn = sorted(range(len(ids)), key=lambda at: short_id("draw", seed, ids[at]))[:limit]
    return gold.take(pa.array(sorted(drawn)))


def identity(judge: Judge) -> Figures:
    """What a judge is, in a few values."""
    return {
        "name": judge.name,
        "backend": judge.settings.backend,
        "mode": judge.settings.mode,
        "model": getattr(judge.settings, "model", None),
        "family": getattr(judge.settings, "family", None),
        "fingerprint": judge.fingerprint,
        "members": [identity(member) for member in judge.members],
    }


def _parse_rate(votes: pa.Table) -> float | None:
    counts = account(votes)
    back = counts["attempted"] - counts[Status.ERROR]
    return share(back - counts[Status.PARSE_FAILURE], back)


def _impatient(judge: Judge) -> Judge:
    """The same judge, whose fingerprint knows nothing of this."""
    settings = judge.settings
    if isinstance(settings, OpenAISettings) and settings.outage_patience_s > PATIENCE_S:
        settings = settings.model_copy(update={"outage_patience_s": PATIENCE_S})
    return replace(judge, settings=settings, members=tuple(_impatient(member) for member in judge.members))


def calls_of(judge: Judge, judged: Judged) -> pa.Table:
    """The rows that say what the judge's calls took: ratings of a judge that rates single responses, else votes."""
    rows = judged.ratings if is_pointwise(judge) else judged.votes
    # One call of a judge that ranks lists makes many votes; what it took is on the first of them.
    return rows.filter(pc.greater(rows["attempts"], 0))


def _cost(judged: Judged) -> float:
    return total_cost(judged.votes, judged.member_votes, judged.ratings)


def _notes(figures: Figures, per_canary: int) -> list[str]:
    """What a reader should not overlook in a judge that works."""
    notes = []
    accuracy, biases = figures["accuracy"], figures["biases"]
    if accuracy["low"] is not None and accuracy["low"] <= 0.5:
        notes.append("The accuracy's interval reaches down to chance.")
    if biases["first_slot_low"] is not None and not biases["first_slot_low"] <= 0.5 <= biases["first_slot_high"]:
        slot = "first" if biases["first_slot_rate"] > 0.5 else "second"
        notes.append(f"It leans to the response shown {slot}: keep both orders.")
    found = figures["canaries"]
    if per_canary and found and not found["all"]["attempted"]:
        notes.append("No canary was planted: no pair has the same winner in both orders.")
    control = (found or {}).get("by_kind", {}).get("control")
    for kind, row in (found or {}).get("by_kind", {}).items():
        if control and control["high"] is not None and row["low"] is not None and row["low"] > control["high"]:
            notes.append(f"Canaries of the kind {kind} win more often than harmless text: do not trust it with them.")
    return notes


def _problem(judge: Judge, votes: pa.Table) -> str | None:
    counts, limits = account(votes), JudgeStageConfig()
    n = counts["attempted"]
    if not counts[Status.SCORED] and not counts[Status.TIE]:
        found = ", ".join(f"{counts[one]} {one}" for one in _WITHOUT if counts[one])
        return f"Judge {judge.name} cannot be used: none of its {n} votes has an answer ({found}{_example(votes)})."
    for status, limit in (
        (Status.ERROR, limits.max_error_rate),
        (Status.PARSE_FAILURE, limits.max_parse_failure_rate),
    ):
        if counts[status] / n > limit:
            return (
                f"Judge {judge.name} cannot be used: {counts[status]} of its {n} votes are {status.replace('_', ' ')}s "
                f"({counts[status] / n:.0%}, a stage allows {limit:.0%}{_example(votes)})."
            )
    return None


_WITHOUT: Sequence[Status] = (Status.ABSTAIN, Status.PARSE_FAILURE, Status.ERROR)


def _example(votes: pa.Table) -> str:
    """An example: an error, or a text that could not be read."""
    for column, status in (("error", Status.ERROR), ("raw", Status.PARSE_FAILURE)):
        rows = votes.filter(pc.and_(pc.equal(votes["status"], str(status)), pc.is_valid(votes[column])))
        if rows.num_rows:
            text = " ".join(str(rows[column][-1].as_py()).split())
            return f"; for example: {text[:120]!a}" if column == "raw" else f"; for example: {text[:200]}"
    return ""

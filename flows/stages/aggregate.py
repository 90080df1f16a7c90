"""Stage aggregate: votes and people's verdicts become labels, preferences and ratings.

Writes labels.parquet, preferences.parquet (a folder of part files with `part_rows`) and ratings.parquet, and with
verdicts quarantine.parquet: the auditors, and who of them is set aside. Everything is made without these: labels, what
the method is fitted on, ratings.

It works on anybody's votes, without a workspace. A votes table names prompts and rollouts but holds no text, so without
a pairs table there are labels and ratings, to be joined with the texts wherever these are, and no preferences.

Before anything is written the judges must pass the gate (`judges.gate`). It is here and not in the judge stage because
its limits, and a person's decision to go on past one, must not cost the votes: they are the dear part, and are kept.
"""

from __future__ import annotations

from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from audit.quarantine import QUARANTINE
from flows.stages.tables import read_joined
from flows.stages.verdicts import read_verdicts
from judges.aggregation.bradley_terry import rate_rollouts
from judges.aggregation.gold import anchors
from judges.aggregation.labels import BARE_VOTES, LABELS, checked_votes, of_judges
from judges.aggregation.lengths import with_lengths
from judges.aggregation.methods import method_of
from judges.aggregation.verdicts import override, read_people
from judges.config import AggregateConfig
from judges.gate import check_gate, decide, gold_agreement, label_entropy
from judges.metrics import account, agreement, split_by_judge
from judges.preferences import Preferences, make_preferences
from judges.preferences.contamination import HeldOut
from judges.preferences.lineage import metadata
from judges.preferences.sides import check_sides, sides_of
from store.errors import RlaifError, UsageError
from store.files import read_json
from store.schemas import GOLD, PAIRS, PREFERENCES, PROMPTS, ROLLOUT_RATINGS
from store.stage import Job, Metrics
from store.tables import read_table, write_table


def run(job: Job[AggregateConfig]) -> Metrics:
    """See the module. metrics: `pairs`, `preferences`, `human`, `dropped` by reason, `mean_confidence`, `gate`, and
    more; what is about preferences only with a pairs table.

    Raises UsageError for input that does not fit, GateError where the judges do not pass, RlaifError where no
    preference is left.
    """
    config = job.config
    given = read_joined(job, "votes", BARE_VOTES).select(BARE_VOTES.schema.names)
    texts = read_joined(job, "pairs", PAIRS) if job.given("pairs") else None
    pairs = sides_of(given) if texts is None else texts
    known, excluded = checked_votes(given, pairs)
    check_sides(known, pairs)
    votes = of_judges(known, config.judges)
    excluded["unknown_judge"] = known.num_rows - votes.num_rows
    if config.lengths and texts is not None:
        votes = with_lengths(votes, texts)
    gold = read_gold(job)
    heard = read_verdicts(job, gold.pairs if gold else None, config.auditor_limits)
    read = read_people(heard[0], pairs, heard[1].reliability) if heard else None
    known_votes, answers = anchors(
        votes, read.p_a if read else {}, gold.pairs if gold else None, gold.votes if gold else None
    )
    method = method_of(config.method).fit(known_votes, answers)
    judged = method.predict(votes)
    gate = _gate(job, votes, judged, texts, gold, (known_votes, answers))
    labels, people = judged, Metrics()
    if read and heard:
        labels, disagreements = override(judged, read)
        people = {"verdicts": read.counts, "people_against_judges": disagreements, "auditors": heard[1].to_json()}
        write_table(job.out / "quarantine.parquet", QUARANTINE, heard[1].table())
    inputs = {"votes": votes, "gold": answers}
    inputs |= {"verdicts": heard[0]} if heard else {}
    inputs |= {"pairs": texts} if texts is not None else {}
    tags = metadata(config.method, votes, inputs)
    made = None if texts is None else _preferences(job, texts, labels)
    if made is not None:
        write_table(job.out / "preferences.parquet", PREFERENCES, made.table, tags, config.part_rows)
    write_table(job.out / "labels.parquet", LABELS, _traced(labels, judged, pairs, made), tags)
    ratings = rate_rollouts(pairs, labels)
    write_table(job.out / "ratings.parquet", ROLLOUT_RATINGS, ratings.table)
    return {
        "pairs": pairs.num_rows,
        "labels": labels.num_rows,
        **_figures(made),
        "votes": account(votes),
        "votes_excluded": excluded,
        "pairs_in_one_order": _in_one_order(votes),
        "gold_pairs": answers.num_rows,
        **_gold_figures(votes, known_votes, answers, gold),
        "judge_weights": _by_name(votes, getattr(method, "weights", {})),
        "length_weight": getattr(method, "length_weight", None),
        "agreement": agreement(votes),
        "label_entropy": label_entropy(judged),
        "rated_rollouts": ratings.table.num_rows,
        "prompts_not_strongly_connected": ratings.not_strongly_connected,
        "ratings_warning": ratings.warning,
        "gate": gate,
        **people,
    }


class Gold(NamedTuple):
    """Pairs with known winners, and the judges' votes on them. `given`: votes in the file, before any was left out."""

    pairs: pa.Table
    votes: pa.Table
    given: int


def read_gold(job: Job[AggregateConfig]) -> Gold | None:
    """None where no gold is given.

    Raises UsageError where only one of the two is given, a winner is not a, b or tie, or no gold pair has a vote.
    """
    if not job.given("gold") and not job.given("gold_votes"):
        return None
    gold = read_table(job.path("gold"), GOLD)
    odd = pc.filter(gold["winner"], pc.invert(pc.is_in(gold["winner"], pa.array(["a", "b", "tie"]))))
    if len(odd):
        raise UsageError(f"{job.path('gold')} has the winner {odd[0].as_py()!r}: it must be a, b or tie.")
    given = read_table(job.path("gold_votes"), BARE_VOTES).select(BARE_VOTES.schema.names)
    votes, _ = checked_votes(given, gold)
    check_sides(votes, gold)
    votes = of_judges(votes, job.config.judges, needed=False)
    if not votes.num_rows:
        raise UsageError(
            f"None of the {gold.num_rows} gold pairs in {job.path('gold')} has a vote of these judges in "
            f"{job.path('gold_votes')}: give their votes on these pairs, or no gold."
        )
    return Gold(gold, with_lengths(votes, gold) if job.config.lengths else votes, given.num_rows)


def _gate(
    job: Job[AggregateConfig],
    votes: pa.Table,
    labels: pa.Table,
    texts: pa.Table | None,
    gold: Gold | None,
    fitted_on: tuple[pa.Table, pa.Table],
) -> dict[str, Any]:
    config = job.config
    agreed = None
    if gold is not None:
        # Fitted on people's answers too, as the labels are, but measured on gold alone: people are asked where judges
        # are in doubt, which says little about the rest.
        all_votes, answers = fitted_on
        known = pc.is_in(answers["pair_id"], value_set=gold.pairs["pair_id"].combine_chunks())
        others = answers.filter(pc.invert(known))
        agreed = gold_agreement(lambda: method_of(config.method), all_votes, gold.pairs, others)
    canaries = dict(one for value in job.values("checks") for one in _canaries(value))
    return decide(
        check_gate(votes, labels, texts, config.gate, agreement=agreed, canaries=canaries), config.gate.override
    )


def _canaries(path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Fingerprint and canary figures of a report by `rlaif judges check --json`, or of each of the judge stage's list
    of such. Raises UsageError for another file."""
    found = read_json(Path(path))
    for report in found if isinstance(found, list) else [found]:
        match report:
            case {
                "judge": {"fingerprint": str(fingerprint)},
                "canaries": {"all": {"flipped": int(), "attempted": int()} as all_},
            }:
                yield fingerprint, all_
            case _:
                raise UsageError(
                    f"{path} is no report on canaries: make it with rlaif judges check NAME --canaries 4 --json."
                )


def _preferences(job: Job[AggregateConfig], pairs: pa.Table, labels: pa.Table) -> Preferences:
    config = job.config
    made = make_preferences(
        pairs,
        labels,
        min_confidence=config.min_confidence,
        keep_ties=config.keep_ties,
        human_weight=config.human_weight,
        validation_fraction=config.validation_fraction,
        max_similarity=config.max_similarity,
        max_pairs_per_prompt=config.max_pairs_per_prompt,
        max_group_ratio=config.max_group_ratio,
        held_out=_held_out(job),
    )
    if made.table.num_rows == 0:
        reasons = ", ".join(f"{reason} {count}" for reason, count in made.dropped.items() if count)
        raise RlaifError(f"None of the {pairs.num_rows} pairs became a preference ({reasons}): look at the votes.")
    return made


def _held_out(job: Job[AggregateConfig]) -> HeldOut | None:
    """The prompts of held-out splits; None where the prompts are not given."""
    if not job.given("prompts"):
        return None
    config = job.config
    rows = read_table(job.path("prompts"), PROMPTS).select(["prompt_id", "prompt", "split"]).to_pylist()
    held = [row for row in rows if any(fnmatchcase(row["split"], pattern) for pattern in config.held_out)]
    return HeldOut(
        [row["prompt"] for row in held],
        n=config.contamination_ngram,
        share=config.contamination_share,
        ids=[row["prompt_id"] for row in held],
    )


def _traced(labels: pa.Table, judged: pa.Table, pairs: pa.Table, made: Preferences | None) -> pa.Table:
    """LABELS with `prompt_id`, `rollout_a`, `rollout_b`, `p_a_judges` (what judges alone say, null where they say
    nothing) and `dropped` (why the pair is no preference, null where it is one)."""
    sides = pairs.take(pc.index_in(labels["pair_id"], value_set=pairs["pair_id"].combine_chunks()))
    for name in ("prompt_id", "rollout_a", "rollout_b"):
        labels = labels.append_column(name, sides[name])
    at = pc.index_in(labels["pair_id"], value_set=judged["pair_id"].combine_chunks())
    labels = labels.append_column("p_a_judges", judged["p_a"].take(at))
    if made is None:
        return labels
    reasons = [made.reason_of.get(pair_id) for pair_id in labels["pair_id"].to_pylist()]
    return labels.append_column("dropped", pa.array(reasons, pa.string()))


def _figures(made: Preferences | None) -> Metrics:
    if made is None:
        return {"preferences": None, "no_preferences": "no pairs table was given, so there are no texts"}
    table = made.table
    return {
        "preferences": table.num_rows,
        "human": _count(table, "source", "human"),
        "ties": int(pc.sum(pc.equal(table["p_chosen"], 0.5)).as_py()),
        "dropped": made.dropped,
        "mean_confidence": pc.mean(table["p_chosen"]).as_py(),
        "mean_agreement": pc.mean(table["agreement"]).as_py(),
        "splits": {split: _count(table, "split", split) for split in ("train", "test")},
        "by_group": made.by_group,
    }


def _gold_figures(votes: pa.Table, known_votes: pa.Table, answers: pa.Table, gold: Gold | None) -> Metrics:
    """What of the gold could not be used, and judges that the gold says nothing about."""
    on_answers = known_votes.filter(pc.is_in(known_votes["pair_id"], value_set=answers["pair_id"].combine_chunks()))
    seen = set(pc.unique(on_answers["fingerprint"]).to_pylist())
    names = [name for name, own in split_by_judge(votes).items() if own["fingerprint"][0].as_py() not in seen]
    figures: Metrics = {"judges_without_gold": names if answers.num_rows else []}
    if gold is not None:
        unjudged = pc.invert(pc.is_in(gold.pairs["pair_id"], value_set=pc.unique(gold.votes["pair_id"])))
        figures["gold_pairs_without_votes"] = int(pc.sum(unjudged).as_py())
        figures["gold_votes_excluded"] = gold.given - gold.votes.num_rows
    return figures


def _by_name(votes: pa.Table, weights: dict[str, float]) -> dict[str, float]:
    """By the judge's name, with its fingerprint where two have the same."""
    names = {own["fingerprint"][0].as_py(): name for name, own in split_by_judge(votes).items()}
    return {names[fingerprint]: weight for fingerprint, weight in weights.items() if fingerprint in names}


def _in_one_order(votes: pa.Table) -> int:
    """Pairs that some judge saw in one order only: its slot preference is not averaged out of them."""
    orders = votes.group_by(["pair_id", "fingerprint"]).aggregate([([], "count_all")])
    return len(pc.unique(orders.filter(pc.less(orders["count_all"], 2))["pair_id"]))


def _count(table: pa.Table, column: str, value: str) -> int:
    return int(pc.sum(pc.equal(table[column], value)).as_py() or 0)

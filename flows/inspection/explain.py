"""One preference back to where it comes from: label, weights, votes, prompts of the judges, verdicts, rollouts, policy.

Everything is read from the files of the round that judged the pair. A judge's prompt is rendered again from its folder,
and only where that folder still is what the round used: what it was then is told by its digest in the manifest.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from flows.workspace import Round, Workspace
from judges.backends.base import Subject
from judges.config import load_judge
from judges.judge import Judge
from judges.modes import Kind
from judges.pairs import Pair, pairs_from_table
from judges.prompts import WELL_KNOWN_SPECIALS
from judges.requests import ORDERS, Request
from store.errors import RlaifError, UsageError
from store.manifest import Manifest, read_manifest
from store.schemas import PAIRS, PREFERENCES, ROLLOUTS, VERDICTS, VOTES, Table
from store.tables import read_table

Figures = dict[str, Any]

SHORTEST = 4
"""Characters of an id that may stand for it, where no other begins with them."""


@dataclass(frozen=True)
class _Found:
    round_: Round
    pair: Pair
    late: bool


def explain(space: Workspace, pair_id: str, number: int | None = None) -> Figures:
    """All that is known about a pair, as JSON; None where a stage has not run. `number`: round, else the last one that
    judged it. `pair_id`: an id, or the beginning of one.

    Raises UsageError for a pair that no round judged, or a beginning of several ids.
    """
    found = _find(space, pair_id, number)
    round_, pair = found.round_, found.pair
    judge, aggregate, sample = (read_manifest(round_.stage(name)) for name in ("judge", "aggregate", "sample"))
    votes = _votes(round_, pair, found.late)
    return {
        "pair_id": pair.pair_id,
        "round": round_.number,
        "late": found.late,
        "pair": {name: getattr(pair, name) for name in _ABOUT},
        "preference": _row(round_, "aggregate", "preferences", PREFERENCES, pair.pair_id),
        "label": _label(round_, pair.pair_id),
        "aggregation": _aggregation(aggregate),
        "votes": votes,
        "prompts": _prompts(judge, pair, {vote["judge"] for vote in votes}),
        "verdicts": _verdicts(round_, pair.pair_id),
        "rollouts": _rollouts(round_, (pair.rollout_a, pair.rollout_b)),
        "policy": None if sample is None else {**sample.inputs["policy"][0], "seed": sample.seed},
    }


_ABOUT = (
    "prompt_id",
    "prompt",
    "rollout_a",
    "response_a",
    "rollout_b",
    "response_b",
    "group",
    "split",
    "reference",
)


def _find(space: Workspace, name: str, number: int | None) -> _Found:
    rounds = [round_ for round_ in space.rounds() if number in (None, round_.number)]
    if not rounds:
        known = ", ".join(str(round_.number) for round_ in space.rounds()) or "none"
        raise UsageError(f"There is no round {number} in {space.root}, it has {known}: name one of them.")
    for round_ in reversed(rounds):
        for path, late in (("judge/pairs.parquet", False), ("audit/late_pairs.parquet", True)):
            file = round_.folder / path
            if read_manifest(file.parent) is None or not file.exists():
                continue
            table = read_table(file, PAIRS, allow_empty=True)
            which = pc.equal(table["pair_id"], name)
            if not pc.any(which).as_py() and len(name) >= SHORTEST:
                which = pc.starts_with(table["pair_id"], name)
            rows = table.filter(which)
            if rows.num_rows > 1:
                ids = ", ".join(rows["pair_id"].to_pylist()[:5])
                raise UsageError(
                    f"{rows.num_rows} pairs of round {round_.number} begin with {name!r} ({ids}): add more."
                )
            if rows.num_rows:
                return _Found(round_, pairs_from_table(rows)[0], late)
    where = f"round {number}" if number is not None else "any round"
    raise UsageError(
        f"No pair {name!r} was judged in {where} of {space.root}: take an id from a preferences.parquet, or the first "
        f"{SHORTEST} characters of one at least."
    )


def _votes(round_: Round, pair: Pair, late: bool) -> list[Figures]:
    file = round_.folder / ("audit/late_votes.parquet" if late else "judge/votes.parquet")
    columns = ("judge", "fingerprint", "order", "status", "winner", "p_a", "mass", "rationale", "raw", "error")
    more = ("answered_by", "tokens_in", "tokens_out", "cost", "latency_s", "attempts")
    return _of(file, VOTES, pair.pair_id, [*columns, *more])


def _prompts(manifest: Manifest | None, pair: Pair, names: set[str]) -> list[Figures]:
    """What each judge was shown: {"judge", "order", "prompt", "problem"}; order None for one that sees one response at
    a time, or all of a prompt."""
    shown: list[Figures] = []
    for source in [] if manifest is None else manifest.inputs.get("judge", []):
        try:
            judge = load_judge(source["value"])
            same = judge.digest == source["identity"]
        except RlaifError as error:
            shown.append(_lost(Path(source["value"]).name, f"its folder cannot be read any more: {error}"))
            continue
        if not same:
            shown.append(_lost(judge.name, f"{source['value']} was changed since, so its prompt of then is not known"))
            continue
        for one in judge.asked if judge.name in names else []:
            shown += _rendered(one, pair)
    return shown


def _rendered(judge: Judge, pair: Pair) -> list[Figures]:
    if judge.template is None:
        return [_lost(judge.name, "it is a program, which scores each response by its rules")]
    if judge.mode.kind == Kind.LIST:
        return [_lost(judge.name, "it ranks all responses of a prompt at once, not this pair")]
    if judge.mode.kind == Kind.SINGLE:
        texts = {pair.rollout_a: pair.response_a, pair.rollout_b: pair.response_b}
        subjects = [
            (None, rollout, Subject(pair.prompt, (text,), pair.reference, pair.group))
            for rollout, text in texts.items()
        ]
        return [_shown(judge, order, subject, about) for order, about, subject in subjects]
    return [_shown(judge, order, Request(pair, order).subject, pair.pair_id) for order in ORDERS]


def _shown(judge: Judge, order: str | None, subject: Subject, about: str) -> Figures:
    prompt = judge.render(subject, about, WELL_KNOWN_SPECIALS)
    return {"judge": judge.name, "order": order, "prompt": prompt, "problem": None}


def _lost(judge: str, problem: str) -> Figures:
    return {"judge": judge, "order": None, "prompt": None, "problem": problem}


def _label(round_: Round, pair_id: str) -> Figures | None:
    """The row of labels.parquet: p_a, p_a_judges, counts of votes, and why the pair was dropped."""
    file = round_.stage("aggregate") / "labels.parquet"
    if read_manifest(file.parent) is None or not file.exists():
        return None
    from judges.aggregation.labels import LABELS

    rows = _of(file, LABELS, pair_id)
    return rows[0] if rows else None


def _aggregation(manifest: Manifest | None) -> Figures | None:
    if manifest is None:
        return None
    metrics = manifest.metrics
    return {
        "method": manifest.config.get("method"),
        "weights": metrics.get("judge_weights", {}),
        "length_weight": metrics.get("length_weight"),
        "gold_pairs": metrics.get("gold_pairs"),
        "gate_override": (metrics.get("gate") or {}).get("override"),
    }


def _verdicts(round_: Round, pair_id: str) -> list[Figures]:
    """With `superseded`, and `quarantined`: whether the auditor's verdicts do not count."""
    aside = _quarantined(round_)
    rows: list[Figures] = []
    for name in ("verdicts", "late_verdicts"):
        rows += _of(round_.stage("audit") / f"{name}.parquet", VERDICTS, pair_id)
    replaced = {row["supersedes"] for row in rows}
    return [
        {
            **row,
            # A file from elsewhere may not say how long it took; JSON has no word for not a number.
            "seconds": row["seconds"] if math.isfinite(row["seconds"]) else None,
            "created_at": row["created_at"].isoformat(),
            "superseded": row["verdict_id"] in replaced,
            "quarantined": row["auditor"] in aside,
        }
        for row in rows
    ]


def _quarantined(round_: Round) -> set[str]:
    manifest = read_manifest(round_.stage("aggregate"))
    auditors = (manifest.metrics.get("auditors") or {}) if manifest else {}
    return set(auditors.get("quarantined") or {})


def _rollouts(round_: Round, ids: tuple[str, str]) -> list[Figures]:
    file = round_.stage("sample") / "rollouts.parquet"
    if read_manifest(file.parent) is None:
        return []
    table = read_table(file, ROLLOUTS)
    rows = table.filter(pc.is_in(table["rollout_id"], pa.array(list(ids)))).to_pylist()
    kept = ("rollout_id", "policy", "sample", "seed", "finish_reason", "n_tokens", "logprob")
    return [{name: row[name] for name in kept} for row in rows]


def _row(round_: Round, stage: str, name: str, table: Table, pair_id: str) -> Figures | None:
    file = round_.stage(stage) / f"{name}.parquet"
    if read_manifest(file.parent) is None or not file.exists():
        return None
    rows = _of(file, table, pair_id)
    return rows[0] if rows else None


def _of(file: Path, table: Table, pair_id: str, columns: list[str] | None = None) -> list[Figures]:
    """The rows of a pair; none where there is no such file."""
    if read_manifest(file.parent) is None or not file.exists():
        return []
    data = read_table(file, table, allow_empty=True)
    rows = data.filter(pc.equal(data["pair_id"], pair_id))
    found: list[Figures] = (rows.select(columns) if columns else rows).to_pylist()
    return found

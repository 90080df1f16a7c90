"""Drift of the judges, looked for in each round: their answers on the frozen anchor pairs against earlier ones.

After the judge stage, and beside it: no stage's inputs or outputs depend on this. Where a judge answers the same
question the same way whatever else it is asked, its votes on the calibration pairs, of which the anchors are some,
stand for an asking (`judges.drift` says why that is honest). The others are asked by a stage of their own, `anchors`,
where they are not what they were. Askings are kept in the workspace's folder `anchors`; each remembers the stage whose
votes it holds, so that a round that goes on after a kill keeps none twice. The result is in the round's journal, as
events `drift`; `drift_events` reads them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from flows.config import AnchorsConfig
from flows.plan import Planned, Step
from flows.workspace import Round
from judges.config import load_judge
from judges.drift import SEED, Anchors, Asking, Drift, anchors_of, drift, repeatable
from judges.pairs import pairs_from_table
from store.journal import Journal
from store.manifest import Manifest, need_manifest, read_manifest
from store.reasons import part_changes
from store.resources import resolve
from store.schemas import GOLD, VOTES
from store.tables import read_table


def keep_and_plan(round_: Round) -> Step | None:
    """Keep the judge stage's votes on the anchors as askings; the step that asks the judges for which that does not do.

    The first time the anchors are frozen. Without calibration pairs, and with `drift.enabled` off, nothing is done.
    """
    config, manifest = round_.config, read_manifest(round_.stage("judge"))
    if not config.drift.enabled or manifest is None:
        return None
    anchors = anchors_of_round(round_)
    gold = read_table(Path(resolve(config.calibration)), GOLD) if config.calibration else None
    if not anchors.frozen:
        if gold is None or not anchors_of(gold, 1).num_rows:
            return None
        anchors.freeze(gold, config.drift.anchors)
    votes = _on_all(anchors.pairs, gold, round_)
    source, left = _source(round_, manifest), []
    for name, entry in zip(config.judges, manifest.inputs["judge"], strict=True):
        judge, digest = load_judge(name), entry["identity"]
        own = votes.filter(pc.equal(votes["judge"], judge.name))
        if own.num_rows and repeatable(judge):
            _keep(anchors, judge.name, digest, own, source, manifest)
        elif anchors.needs(judge.name, digest):
            left.append(name)
    limits = config.judge.model_dump(include=set(AnchorsConfig.model_fields))
    inputs = {"judge": left, "anchors": [str(anchors.path)]}
    return Step("anchors", inputs, AnchorsConfig(**limits), SEED, round_.stage("anchors")) if left else None


def judges_to_ask(round_: Planned) -> tuple[list[str], int]:
    """The judges that the step of `keep_and_plan` would ask if the judge stage were made now, and about how many
    anchors at most; nothing is written."""
    config, anchors = round_.config, anchors_of_round(round_)
    if not config.drift.enabled or not (anchors.frozen or config.calibration):
        return [], 0
    gold = read_table(Path(resolve(config.calibration)), GOLD) if config.calibration else None
    held = not anchors.frozen or _holds(gold, anchors.pairs)
    loaded = {name: load_judge(name) for name in config.judges}
    names = [
        name
        for name, judge in loaded.items()
        if not (held and repeatable(judge)) and anchors.needs(judge.name, judge.digest)
    ]
    return names, anchors.pairs.num_rows if anchors.frozen else config.drift.anchors


def keep_asked(round_: Round, step: Step) -> None:
    """Keep what the stage `anchors` was answered."""
    manifest, anchors = need_manifest(step.out), anchors_of_round(round_)
    votes = read_table(step.out / "votes.parquet", VOTES)
    for name, entry in zip(step.inputs["judge"], manifest.inputs["judge"], strict=True):
        judge = load_judge(name)
        own = votes.filter(pc.equal(votes["judge"], judge.name))
        _keep(anchors, judge.name, entry["identity"], own, _source(round_, manifest), manifest)


def compare(round_: Round) -> dict[str, Drift | None]:
    """Name -> drift between this round's asking of a judge and the one before, None for a first one; told to the
    journal once. A judge that this round did not ask is not in it."""
    if not round_.config.drift.enabled:
        return {}
    anchors, told = anchors_of_round(round_), {(one["judge"], one["number"]) for one in drift_events(round_.journal)}
    result: dict[str, Drift | None] = {}
    for name in round_.config.judges if anchors.frozen else []:
        judge = load_judge(name).name
        known = anchors.askings(judge)
        own = [at for at, one in enumerate(known) if one.source.startswith(f"round {round_.number} ")]
        if not own:
            continue
        now, earlier = known[own[-1]], known[: own[-1]]
        result[judge] = drift(earlier[-1], now, anchors.pairs) if earlier else None
        if (judge, now.number) not in told:
            first = drift(earlier[0], now, anchors.pairs) if len(earlier) > 1 else None
            _tell(round_.journal, now, earlier[-1] if earlier else None, result[judge], first)
    return result


def drift_events(journal: Journal) -> list[dict[str, Any]]:
    """The events `drift`, the last of each judge: `judge`, `number` of the asking, `fingerprint`, `asked_at`; where
    there was an earlier one `changed` (parts of the fingerprint, in words), `previous` and `first`, each a `Drift`."""
    events = [
        event for event in journal.events() if event.get("event") == "drift" and {"judge", "number"} <= event.keys()
    ]
    return list({event["judge"]: event for event in events}.values())


def anchors_of_round(round_: Planned) -> Anchors:
    return Anchors(round_.folder.parent.parent / "anchors")


def _on_all(anchors: pa.Table, gold: pa.Table | None, round_: Round) -> pa.Table:
    """The judge stage's votes on the anchors; none where the calibration pairs do not hold each of them as it was."""
    path = round_.stage("judge") / "calibration_votes.parquet"
    if not path.exists() or not _holds(gold, anchors):
        return VOTES.schema.empty_table()
    votes = read_table(path, VOTES)
    return votes.filter(pc.is_in(votes["pair_id"], value_set=anchors["pair_id"].combine_chunks()))


def _holds(gold: pa.Table | None, anchors: pa.Table) -> bool:
    """Whether each anchor is among the calibration pairs as it was."""
    known = {pair.pair_id: pair for pair in pairs_from_table(gold)} if gold is not None else {}
    return all(known.get(pair.pair_id) == pair for pair in pairs_from_table(anchors))


def _source(round_: Round, manifest: Manifest) -> str:
    return f"round {round_.number} {manifest.stage} {manifest.key[:12]} {manifest.started_at}"


def _keep(anchors: Anchors, judge: str, digest: str, votes: pa.Table, source: str, manifest: Manifest) -> None:
    if not any(one.source == source for one in anchors.askings(judge)):
        anchors.keep(judge, digest, votes, manifest.started_at, source, manifest.parts.get(digest))


def _tell(journal: Journal, now: Asking, before: Asking | None, previous: Drift | None, first: Drift | None) -> None:
    details: dict[str, Any] = {"number": now.number, "fingerprint": now.fingerprint, "asked_at": now.asked_at}
    if before is not None and previous is not None:
        known = before.parts and now.parts  # of an asking by an earlier version they are not
        details["changed"] = part_changes(before.parts, now.parts) if known else []
        details["previous"] = previous.to_json()
        details["first"] = first.to_json() if first is not None else None
    journal.write("drift", judge=now.judge, **details)

"""`rlaif run --dry-run`: what a run would do, why, and what it would cost. Nothing is written, no model is loaded.

Times are those of the same stage in this round, else in an earlier one; costs are today's prices for the tokens that a
call took then. What has no measure yet is unknown (None), not guessed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from flows.anchors import judges_to_ask
from flows.config import RoundConfig
from flows.launch.calls import Calls, count_about_anchors, count_calls
from flows.launch.redo import reason, stages_from
from flows.plan import Step, plan_round, resolve_inputs
from flows.telemetry.costs import spent_by
from flows.workspace import Start, Workspace
from store.errors import UsageError
from store.manifest import Manifest, read_manifest
from store.reasons import differences, why_not_done
from store.recipe import Recipe


@dataclass(frozen=True)
class Draft:
    """A round that has no folder yet, or whose config on disk is another one."""

    number: int
    folder: Path
    config: RoundConfig
    start: Start

    def stage(self, name: str) -> Path:
        return self.folder / name


@dataclass(frozen=True)
class Forecast:
    """`run`: whether the stage would run, for these `reasons`. `calls`: of judges, judge -> figures; `cost` in the
    judges' currency and `seconds` are None where nothing is known to tell them from; 0 for a stage that is reused."""

    stage: str
    run: bool
    reasons: list[str]
    calls: list[Calls] = field(default_factory=list)
    cost: float | None = 0.0
    seconds: float | None = 0.0

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def draft(space: Workspace, config: RoundConfig, redo_from: str | None) -> Draft:
    """The round that a run with `config` would work on: the unfinished one, else the next; with `redo_from` the last.

    Raises UsageError where there is no round to go back in.
    """
    last = space.last_round()
    if last is not None and (redo_from is not None or not last.finished):
        return Draft(last.number, last.folder, config, last.start)
    if redo_from is not None:
        raise UsageError(f"--from {redo_from}: {space.root} has no round yet: leave --from out.")
    number, start = space.next_start(config)
    return Draft(number, space.root / "rounds" / f"{number:03d}", config, space.start_of(start))


def forecast(space: Workspace, round_: Draft, redo_from: str | None = None) -> list[Forecast]:
    """One for each stage of the plan, in order, and one for the anchors where judges are asked about them apart.

    A stage that would run makes what depends on it run too: whether its outputs come out as they were shows only then.
    Raises UsageError for a stage that is not in the plan, an input that is missing, or a newer manifest.
    """
    steps = plan_round(round_)
    redone = stages_from(round_, redo_from) if redo_from else []
    pending: dict[Path, Step] = {}
    found = []
    for step in steps:
        reasons = [reason(redo_from)] if redo_from and step.stage in redone else _reasons(step, pending)
        if not reasons:
            found.append(Forecast(step.stage, False, []))
            continue
        found.append(_estimate(space, round_, step, reasons, pending, fresh=step.stage in redone))
        pending[step.out] = step
        if step.stage == "judge":
            found += _look_for_drift(space, round_)
    return found


def _look_for_drift(space: Workspace, round_: Draft) -> list[Forecast]:
    """The anchors, where the judge stage's votes will not tell whether a judge drifts."""
    names, pairs = judges_to_ask(round_)
    if not names:
        return []
    calls, earlier = count_about_anchors(names, pairs), _earlier(space, round_, "anchors")
    reasons = [f"{name} was not asked about the anchors as it is now" for name in names]
    return [Forecast("anchors", True, reasons, calls, _cost(calls, earlier), _seconds(calls, earlier))]


def _reasons(step: Step, pending: dict[Path, Step]) -> list[str]:
    unmade = {
        name: [maker.stage for value in values for out, maker in pending.items() if Path(value).is_relative_to(out)]
        for name, values in step.inputs.items()
    }
    makers = [maker for found in unmade.values() for maker in found]
    names = {name for name, found in unmade.items() if found}
    recipe = _recipe(step, names)
    if not names:
        return why_not_done(step.out, recipe)
    manifest = read_manifest(step.out)
    others = differences(manifest, recipe, unmade=names) if manifest else []
    return [*(f"{maker} would run" for maker in dict.fromkeys(makers)), *others]


def _recipe(step: Step, without: Sequence[str] | set[str] = ()) -> Recipe:
    given = {name: values for name, values in step.inputs.items() if name not in without}
    return Recipe(step.stage, step.spec.version, resolve_inputs(step.spec, given), step.config, step.seed)


def _estimate(
    space: Workspace, round_: Draft, step: Step, reasons: list[str], pending: dict[Path, Step], fresh: bool
) -> Forecast:
    """`fresh`: what an earlier try has left will not be used."""
    waits = any(
        Path(value).is_relative_to(out) for values in step.inputs.values() for value in values for out in pending
    )
    key = None if waits or fresh else _recipe(step).key
    earlier = _earlier(space, round_, step.stage)
    calls = count_calls(step, round_.config, key, waits)
    return Forecast(step.stage, True, reasons, calls, _cost(calls, earlier), _seconds(calls, earlier))


def _earlier(space: Workspace, round_: Draft, stage: str) -> Manifest | None:
    """The manifest of the stage in this round, else in the latest one that has it."""
    folders = [round_.stage(stage), *(other.stage(stage) for other in reversed(space.rounds()))]
    return next((manifest for folder in folders if (manifest := read_manifest(folder))), None)


def _cost(calls: list[Calls], earlier: Manifest | None) -> float | None:
    known = spent_by(earlier)
    costs = [one.cost(known.get(one.judge)) for one in calls]
    return None if None in costs else sum(cost for cost in costs if cost is not None)


def _seconds(calls: list[Calls], earlier: Manifest | None) -> float | None:
    """As long as last time, less what is answered already."""
    if earlier is None:
        return None
    total = sum(one.calls for one in calls)
    left = sum(one.calls - one.answered for one in calls)
    return earlier.seconds * (left / total if total else 1.0)

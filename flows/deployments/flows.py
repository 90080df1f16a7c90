"""The flows that deployments run. Each is thin: it takes typed parameters, calls what the command line calls, and shows
the result in the Prefect UI."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from contextlib import nullcontext
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

from prefect import flow, get_run_logger
from prefect.client.schemas.objects import State
from prefect.runtime import flow_run
from prefect.states import Completed
from pydantic import Field

from flows.deployments.hooks import tell_people
from flows.deployments.logs import RunLog
from flows.deployments.parameters import JudgeName, Setting, StageRequest, WorkspacePath
from flows.inspection.drift import drift_of_workspace
from flows.inspection.monitor import look, looks
from flows.launch.begin import choose_config, choose_round, override_gate
from flows.plan import Step
from flows.processes.execute import run_step
from flows.processes.memory import PeakMemory
from flows.retention import Retention, apply, removals
from flows.round import ProgressArtifact, walk
from flows.specs import STAGES
from flows.telemetry.artifacts import publish_drift, publish_looks, publish_removals, publish_stage
from flows.telemetry.logs import json_log
from flows.telemetry.watch import Both, watcher
from flows.workspace import Workspace
from store.errors import RlaifError

_HOOKS: dict[str, Any] = {"on_failure": [tell_people], "on_crashed": [tell_people], "persist_result": False}


def _run_name(kind: str) -> Any:
    """Names a run after its workspace. The function is called inside the run."""

    def name() -> str:
        parameters = flow_run.get_parameters()
        return f"{kind} of {Path(parameters.get('workspace', '')).name} {datetime.now(UTC):%Y-%m-%d %H:%M}"

    return name


@flow(name="round", flow_run_name=_run_name("round"), **_HOOKS)
def scheduled_round(
    workspace: WorkspacePath,
    config: str | None = None,
    judges: list[JudgeName] | None = None,
    evaluation_judges: list[JudgeName] | None = None,
    settings: list[Setting] | None = None,
    unfinished_only: bool = False,
) -> str | State[str]:
    """Run a round: go on with the workspace's unfinished one, else start the next from the champion.

    It is what `rlaif run` does. A round that waits for people ends in the state Waiting and leaves no process behind:
    the next run goes on with it, at the latest that of the schedule, at once that of the audit's quota.

    Args:
        workspace: folder of rounds and registry
        config: YAML file or shipped name; without it that of the last round
        judges: in place of the config's training judges
        evaluation_judges: in place of the config's evaluation judges
        settings: KEY=VALUE, as rlaif run --set has them
        unfinished_only: do nothing where no round is unfinished
    """
    lines = json_log()
    watcher.set(Both(lines, RunLog()) if lines else RunLog())
    last = Workspace(Path(workspace)).last_round()
    if unfinished_only and (last is None or last.finished):
        return Completed(name="Skipped", message=f"No round of {workspace} is unfinished, so there is nothing to do.")
    changes = [*(settings or []), *_named("judges", judges), *_named("evaluation_judges", evaluation_judges)]
    chosen = override_gate(choose_config(last, config, changes), last, None)
    space = Workspace.create(Path(workspace))
    started = time.monotonic()
    with space.locked(), PeakMemory() as memory:
        round_ = choose_round(space, chosen)
        get_run_logger().info("round %d in %s", round_.number, space.root)
        end = walk(space, round_)
        if not isinstance(end, State):
            seconds = round(time.monotonic() - started, 1)
            round_.journal.write("round_finished", seconds=seconds, peak_rss_mb=memory.peak_mb)
    return end


def _named(key: str, judges: Sequence[str] | None) -> list[str]:
    return [f"{key}={json.dumps(list(judges))}"] if judges else []


@flow(name="stage", flow_run_name="{request.stage}", **_HOOKS)
def stage(request: StageRequest) -> str:
    """Run one stage on files, as `rlaif stage` does. Done again, it is left as it is.

    Args:
        request: the stage, its inputs, its config, its seed and the folder it writes
    """
    given: dict[str, Any] = dict(request)
    name, out = given["stage"], Path(given["out"])
    inputs = {item.name: _listed(given[item.name]) for item in STAGES[name].inputs}
    step = Step(name, inputs, given["config"], given["seed"], out.absolute())
    outcome = run_step(step, step.out.parent / "logs", ProgressArtifact(name))
    publish_stage(outcome)
    return str(outcome.folder)


def _listed(value: str | list[str] | None) -> list[str]:
    return [] if value is None else [value] if isinstance(value, str) else list(value)


@flow(name="sample", flow_run_name=_run_name("sample"), **_HOOKS)
def sample(
    workspace: WorkspacePath,
    prompts: Annotated[int, Field(ge=1)] = 32,
    judges: list[JudgeName] | None = None,
) -> str | State[str]:
    """Look at the champion: sample a few responses to held-out prompts and let the panel judge them.

    Args:
        workspace: folder of rounds and registry
        prompts: how many are drawn; two responses each
        judges: without them the last round's training judges
    """
    space = Workspace.opened(Path(workspace))
    folder = look(space, datetime.now(UTC), prompts, judges or (), ProgressArtifact)
    if folder is None:
        return Completed(name="Skipped", message=f"{workspace} has no champion yet, so there is nothing to look at.")
    publish_looks(looks(space))
    return str(folder)


@flow(name="drift", flow_run_name=_run_name("drift"), **_HOOKS)
def drift(
    workspace: WorkspacePath,
    judges: list[JudgeName] | None = None,
    max_flip_rate: Annotated[float, Field(ge=0, le=1)] = 0.05,
) -> dict[str, float | None]:
    """Ask the judges about the frozen anchor pairs again and compare with their first answers. Fails where one drifted:
    where the 95 % interval of its share of flipped answers lies above `max_flip_rate`.

    Args:
        workspace: folder of rounds and registry
        judges: without them the last round's training judges
        max_flip_rate: largest share of answers that may have changed
    """
    space = Workspace.opened(Path(workspace))
    with space.adding():
        found = drift_of_workspace(
            space, datetime.now(UTC), judges or (), force=True, since_first=True, progress=ProgressArtifact("drift")
        )
    publish_drift(found, max_flip_rate)
    moved = [one for one in found.values() if one and one.flip_low is not None and one.flip_low > max_flip_rate]
    if moved:
        said = "; ".join(f"{one.judge} answers {one.flips} of {one.pairs} anchors otherwise" for one in moved)
        raise RlaifError(f"Judges drifted: {said}. See rlaif labels drift, and judge again before training on them.")
    return {name: one.flip_rate if one else None for name, one in found.items()}


@flow(name="retain", flow_run_name=_run_name("retain"), **_HOOKS)
def retain(workspace: WorkspacePath, policy: Retention = Retention(), dry_run: bool = False) -> float:  # noqa: B008
    """Remove the weights of old rounds. Votes, verdicts, preferences, manifests and every champion stay.

    Args:
        workspace: folder of rounds and registry
        policy: what is kept
        dry_run: only show what would go
    """
    space = Workspace.opened(Path(workspace))
    with nullcontext() if dry_run else space.locked(start=False):
        found = removals(space, policy, datetime.now(UTC))
        publish_removals(found, dry_run)
        if not dry_run:
            apply(space, found)
    mb = sum(one.mb for one in found)
    get_run_logger().info("%s %d outputs, %.1f MiB", "would remove" if dry_run else "removed", len(found), mb)
    return mb

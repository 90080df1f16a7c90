"""The round as a Prefect flow: a task a stage, with retries and artifacts. It holds no logic of the stages.

What is done is told by the workspace's manifests. Prefect's rows are for people: they say when and how often.
"""

from __future__ import annotations

import time
from datetime import datetime
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

from prefect import flow, task
from prefect.artifacts import create_progress_artifact, update_progress_artifact
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun
from prefect.flow_runs import suspend_flow_run
from prefect.runtime import deployment, flow_run
from prefect.states import Completed
from prefect.tasks import Task, exponential_backoff

from audit.config import AuditConfig
from flows.anchors import compare, keep_and_plan, keep_asked
from flows.config import RetryConfig
from flows.plan import Step, plan_round
from flows.processes.execute import run_step
from flows.processes.watchdog import Limits
from flows.report import build_report
from flows.telemetry.artifacts import publish_audit_page, publish_details, publish_drift, publish_report, publish_stage
from flows.telemetry.progress import Recorded
from flows.telemetry.watch import watching
from flows.workspace import Round, Workspace
from store.errors import RlaifError, TransientError, WaitingError
from store.files import read_json

_SLACK_S = 24 * 3600


def _may_pass(task: Task[..., Any], run: TaskRun, state: State[Any]) -> bool:
    """Retry what may pass by itself. A wrong key or a bad config is as wrong the second time."""
    try:
        state.result(raise_on_failure=True)
    except TransientError:
        return True
    except Exception:  # noqa: BLE001 - whatever else it is, it is not worth a retry
        return False
    return False


def _limits(round_: Round) -> Limits:
    retry = round_.config.retry
    return Limits(retry.timeout_s, retry.silence_s)


class ProgressArtifact:
    """Shows a stage's progress in the Prefect UI, updated every few seconds."""

    def __init__(self, stage: str, interval_s: float = 3.0) -> None:
        self.stage, self.interval_s, self.last = stage, interval_s, 0.0
        self.artifact: UUID | None = None

    def __call__(self, what: str, done: int, total: int, note: str = "") -> None:
        watching().progress(self.stage, what, done, total, note)
        now = time.monotonic()
        if now - self.last < self.interval_s:
            return
        self.last = now
        try:
            self._show(what, done, total, note)
        except Exception:  # noqa: BLE001 - a server that went must not end a stage, which needs none
            self.interval_s = float("inf")

    def _show(self, what: str, done: int, total: int, note: str) -> None:
        percent, text = 100.0 * done / max(total, 1), f"{what}: {done} of {total} {note}".strip()
        if self.artifact is None:
            self.artifact = create_progress_artifact(percent, key=f"{self.stage}-progress", description=text)  # type: ignore[assignment]
        else:
            update_progress_artifact(self.artifact, percent, description=text)


@task(cache_policy=NO_CACHE, persist_result=False)
def stage_task(step: Step, round_: Round) -> dict[str, str] | None:
    """One stage. Each attempt, its end and its reason go into the round's journal. Gives None for a stage that is
    complete, and `said`, `until` (a time) for one that waits for people, which is no failure."""
    journal = round_.journal
    attempt = journal.attempts(step.stage) + 1
    watching().started(step.stage, attempt)
    journal.write("started", stage=step.stage, attempt=attempt)
    if isinstance(step.config, AuditConfig) and step.config.mode == "people" and step.config.url:
        publish_audit_page(step.config.url)
    progress = Recorded(ProgressArtifact(step.stage), round_.folder, step.stage)
    try:
        outcome = run_step(step, round_.folder / "logs", progress, _limits(round_))
    except WaitingError as error:
        waiting = {"said": str(error), "until": error.until.isoformat()}
        journal.write("waiting", stage=step.stage, attempt=attempt, **waiting)
        watching().waiting(step.stage, error)
        return waiting
    except RlaifError as error:
        more = {"details": error.details.splitlines()} if error.details else {}
        journal.write("failed", stage=step.stage, attempt=attempt, error=str(error), **more)
        if more:
            publish_details(step.stage, str(error), error.details)
        watching().failed(step.stage, str(error))
        raise
    except BaseException as error:
        journal.write("interrupted", stage=step.stage, attempt=attempt, error=type(error).__name__)
        raise
    event = "reused" if outcome.reused else "finished"
    seconds = outcome.manifest.seconds
    journal.write(event, stage=step.stage, attempt=attempt, seconds=seconds, reasons=outcome.reasons)
    publish_stage(outcome)
    watching().finished(step.stage, outcome)
    return None


@task(cache_policy=NO_CACHE, persist_result=False)
def report_task(round_: Round, decision: dict[str, Any]) -> None:
    publish_report(build_report(round_.folder), decision["promoted"], decision["reason"])


def _options(stage: str, retry: RetryConfig) -> dict[str, Any]:
    return {
        "name": stage,
        "task_run_name": stage,
        "retries": retry.attempts - 1,
        "retry_delay_seconds": exponential_backoff(backoff_factor=retry.delay_s),
        "retry_jitter_factor": retry.jitter,
        "retry_condition_fn": _may_pass,
    }


def _suspend(until: datetime) -> None:
    """End this process; Prefect runs the flow again when it is resumed. Does not return.

    A key is good for one suspension, so each has its own. Prefect fails a run that stays suspended beyond its time: it
    gets a day more than people have, in which whoever resumes it at the deadline may be late.
    """
    left = max(0.0, (until - datetime.now(until.tzinfo)).total_seconds())
    suspend_flow_run(timeout=int(left) + _SLACK_S, key=uuid4().hex)


@flow(name="round", flow_run_name="round-{number}", validate_parameters=False, persist_result=False)
def round_flow(workspace: str, number: int, wait: bool = False) -> str | State[str]:
    """Run, or go on with, round `number` of a workspace. Returns the flow run's id.

    A round that waits for people ends here without `wait`: a run of a deployment suspends itself, which leaves no
    process behind, and begins anew when it is resumed; any other ends in the state Waiting, and the next one goes on.
    """
    space = Workspace.existing(Path(workspace))
    round_ = next(candidate for candidate in space.rounds() if candidate.number == number)
    return walk(space, round_, wait, suspend=bool(deployment.get_id()))


def walk(space: Workspace, round_: Round, wait: bool = False, suspend: bool = False) -> str | State[str]:
    """Bring every step of the round to completion, inside a flow run. Returns the flow run's id, or the state Waiting
    where the round waits for people."""
    retry = round_.config.retry
    for step in plan_round(round_, wait):
        waiting = stage_task.with_options(**_options(step.stage, retry))(step, round_)
        if waiting is not None and suspend:
            _suspend(datetime.fromisoformat(waiting["until"]))
        if waiting is not None:
            return Completed(name="Waiting", message=waiting["said"], data=str(flow_run.get_id()))
        if step.stage == "judge":
            _look_for_drift(round_)
    decision = read_json(round_.stage("promote") / "decision.json")
    space.record_decision(round_.number, round_.stage("ppo") / "policy", decision)
    report_task.with_options(name="report", task_run_name="report")(round_, decision)
    return str(flow_run.get_id())


def _look_for_drift(round_: Round) -> None:
    """What the judges say of the anchors against what they said before; asks them only where nothing else tells."""
    if (step := keep_and_plan(round_)) is not None:
        stage_task.with_options(**_options(step.stage, round_.config.retry))(step, round_)
        keep_asked(round_, step)
    if found := compare(round_):
        publish_drift(found, round_.config.drift.max_flip_rate, since="the ones before")

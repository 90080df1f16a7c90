"""The round as a Prefect flow: a task a stage, with retries and artifacts. It holds no logic of the stages.

What is done is told by the workspace's manifests. Prefect's rows are for people: they say when and how often.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any
from uuid import UUID

from prefect import flow, task
from prefect.artifacts import create_progress_artifact, update_progress_artifact
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun
from prefect.runtime import flow_run
from prefect.tasks import Task, exponential_backoff

from flows.artifacts import publish_report, publish_stage
from flows.config import RetryConfig
from flows.execute import run_step
from flows.plan import Step, plan_round
from flows.report import build_report
from flows.watch import watcher
from flows.workspace import Round, Workspace
from store.errors import RlaifError, TransientError
from store.files import read_json


def _may_pass(task: Task[..., Any], run: TaskRun, state: State[Any]) -> bool:
    """Retry what may pass by itself. A wrong key or a bad config is as wrong the second time."""
    try:
        state.result(raise_on_failure=True)
    except TransientError:
        return True
    except Exception:  # noqa: BLE001 - whatever else it is, it is not worth a retry
        return False
    return False


class _ProgressArtifact:
    """Shows a stage's progress in the Prefect UI, updated every few seconds."""

    def __init__(self, stage: str, interval_s: float = 3.0) -> None:
        self.stage, self.interval_s, self.last = stage, interval_s, 0.0
        self.artifact: UUID | None = None

    def __call__(self, what: str, done: int, total: int, note: str = "") -> None:
        watcher.get().progress(self.stage, what, done, total, note)
        now = time.monotonic()
        if now - self.last < self.interval_s:
            return
        self.last = now
        percent, text = 100.0 * done / max(total, 1), f"{what}: {done} of {total} {note}".strip()
        if self.artifact is None:
            self.artifact = create_progress_artifact(percent, key=f"{self.stage}-progress", description=text)  # type: ignore[assignment]
        else:
            update_progress_artifact(self.artifact, percent, description=text)


@task(cache_policy=NO_CACHE, persist_result=False)
def stage_task(step: Step, round_: Round) -> None:
    """One stage. Each attempt, its end and its reason go into the round's journal."""
    journal = round_.journal
    attempt = journal.attempts(step.stage) + 1
    watcher.get().started(step.stage, attempt)
    journal.write("started", stage=step.stage, attempt=attempt)
    try:
        outcome = run_step(step, round_.folder / "logs", _ProgressArtifact(step.stage))
    except RlaifError as error:
        journal.write("failed", stage=step.stage, attempt=attempt, error=str(error))
        watcher.get().failed(step.stage, str(error))
        raise
    except BaseException as error:
        journal.write("interrupted", stage=step.stage, attempt=attempt, error=type(error).__name__)
        raise
    event = "reused" if outcome.reused else "finished"
    seconds = outcome.manifest.seconds
    journal.write(event, stage=step.stage, attempt=attempt, seconds=seconds, reasons=outcome.reasons)
    publish_stage(outcome)
    watcher.get().finished(step.stage, outcome)


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


@flow(name="round", flow_run_name="round-{number}", validate_parameters=False, persist_result=False)
def round_flow(workspace: str, number: int) -> str:
    """Run, or go on with, round `number` of a workspace. Returns the flow run's id."""
    space = Workspace.existing(Path(workspace))
    round_ = next(candidate for candidate in space.rounds() if candidate.number == number)
    retry = round_.config.retry
    for step in plan_round(round_):
        stage_task.with_options(**_options(step.stage, retry))(step, round_)
    decision = read_json(round_.stage("promote") / "decision.json")
    space.record_decision(number, round_.stage("ppo") / "policy", decision)
    report_task.with_options(name="report", task_run_name="report")(round_, decision)
    return str(flow_run.get_id())

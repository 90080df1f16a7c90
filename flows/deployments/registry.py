"""Every deployment of a workspace, in one list: what `rlaif deploy` registers and `rlaif serve` runs."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from prefect.client.schemas.objects import ConcurrencyLimitConfig, ConcurrencyLimitStrategy
from prefect.deployments.runner import RunnerDeployment
from prefect.events import DeploymentEventTrigger
from prefect.schedules import Cron, Interval, Schedule
from prefect.types.entrypoint import EntrypointType

from flows.deployments import flows
from flows.deployments.automation import HEARTBEAT
from flows.deployments.parameters import offering
from flows.launch.quota import QUOTA_REACHED, RESOURCE

JUST_ONE = ConcurrencyLimitConfig(limit=1, collision_strategy=ConcurrencyLimitStrategy.ENQUEUE)


@dataclass(frozen=True)
class Plan:
    """What is to be registered. `workspace`: absolute. `cron`, `drift_cron`, `retain_cron`: None leaves it to people to
    start; `sample_every`: likewise. `judges`: folders that runs may name beside the shipped ones. `pool`: None for runs
    that `rlaif serve` starts itself."""

    workspace: Path
    config: str | None = None
    settings: tuple[str, ...] = ()
    name: str | None = None
    cron: str | None = "0 2 * * *"
    drift_cron: str | None = "0 6 * * *"
    retain_cron: str | None = "0 5 * * 0"
    sample_every: timedelta | None = timedelta(hours=1)
    timezone: str = "UTC"
    on_quota: bool = True
    judges: tuple[str, ...] = ()
    pool: str | None = None


def deployments(plan: Plan) -> list[RunnerDeployment]:
    """Deployments named after the workspace: round/NAME, sample/NAME, drift/NAME, retain/NAME and stage/NAME.

    One run of each at a time; another waits for it. Registered again, they are brought up to date.
    """
    where = {"workspace": str(plan.workspace)}
    what = {"config": plan.config, "settings": list(plan.settings) or None}
    with offering(plan.judges):
        return [
            _deployment(
                plan,
                flows.scheduled_round,
                {**where, **{key: value for key, value in what.items() if value is not None}},
                _cron(plan.cron, plan),
                triggers=[quota_trigger()] if plan.on_quota else [],
            ),
            _deployment(plan, flows.sample, where, Interval(plan.sample_every) if plan.sample_every else None),
            _deployment(plan, flows.drift, where, _cron(plan.drift_cron, plan)),
            _deployment(plan, flows.retain, where, _cron(plan.retain_cron, plan)),
            _deployment(plan, flows.stage, {}, None),
        ]


def _deployment(
    plan: Plan, flow: Any, parameters: dict[str, Any], schedule: Schedule | None, **more: Any
) -> RunnerDeployment:
    return RunnerDeployment.from_flow(
        flow,
        name=plan.name or plan.workspace.name,
        parameters=parameters,
        schedules=[schedule] if schedule else [],
        concurrency_limit=JUST_ONE,
        enforce_parameter_schema=True,
        # A module's name means the same in a checkout, in an installed wheel and on another machine.
        entrypoint_type=EntrypointType.MODULE_PATH,
        work_pool_name=plan.pool,
        job_variables={"env": HEARTBEAT} if plan.pool else None,
        tags=["rlaif"],
        **more,
    )


def _cron(cron: str | None, plan: Plan) -> Schedule | None:
    return Cron(cron, timezone=plan.timezone) if cron else None


def quota_trigger() -> DeploymentEventTrigger:
    """Go on with the unfinished round when people have answered enough. A round of another queue is not begun by it:
    a run that finds nothing unfinished, or people still at it, ends at once."""
    yes = {"__prefect_kind": "json", "value": {"__prefect_kind": "jinja", "template": "true"}}
    return DeploymentEventTrigger(
        name="rlaif: the audit's quota was reached",
        enabled=True,
        expect={QUOTA_REACHED},
        match={"prefect.resource.id": f"{RESOURCE}.*"},
        parameters={"unfinished_only": yes},
    )

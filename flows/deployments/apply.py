"""Puts the deployments of a plan on a server, and runs them from this process where no work pool does."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, cast

from prefect import serve
from prefect.client.orchestration import get_client
from prefect.exceptions import ObjectNotFound

from flows.deployments import automation
from flows.deployments.registry import Plan, deployments
from store.errors import UsageError


def register_all(plan: Plan) -> list[str]:
    """Give the server the deployments and the automation that marks dead runs; returns their names."""
    if plan.pool is not None:
        _check_pool(plan.pool)
    names = []
    for one in deployments(plan):
        cast(Any, one).apply()
        names.append(f"{one.flow_name}/{one.name}")
    automation.register()
    return names


def serve_all(plan: Plan, tell: Callable[[list[str]], None]) -> None:
    """Run whatever falls due, each run in a process of its own, until SIGINT or SIGTERM."""
    os.environ.update({name: os.environ.get(name, value) for name, value in automation.HEARTBEAT.items()})
    found = deployments(plan)
    automation.register()
    tell([f"{one.flow_name}/{one.name}" for one in found])
    # A pause would hold the schedule back after the next start, too: nights must not depend on how this one ended.
    serve(*found, pause_on_shutdown=False, print_starting_message=False)


def _check_pool(name: str) -> None:
    with get_client(sync_client=True) as client:
        try:
            client.read_work_pool(name)
        except ObjectNotFound as error:
            raise UsageError(
                f"The server has no work pool {name!r}: make it with prefect work-pool create --type process {name}."
            ) from error

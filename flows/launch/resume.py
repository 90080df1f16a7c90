"""Resume the rounds that suspended themselves to wait for people: for cron, or for whoever the queue's webhook calls.

A round that is resumed too early finds people still at it and suspends itself again, so resuming is always safe.
"""

from __future__ import annotations

from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import (
    FlowFilter,
    FlowFilterName,
    FlowRunFilter,
    FlowRunFilterState,
    FlowRunFilterStateName,
)

_FLOW = "round"


def resume_waiting() -> int:
    """Resume every suspended run of the round flow on the API that PREFECT_API_URL names; gives how many."""
    suspended = FlowRunFilter(state=FlowRunFilterState(name=FlowRunFilterStateName(any_=["Suspended"])))
    with get_client(sync_client=True) as client:
        runs = client.read_flow_runs(
            flow_filter=FlowFilter(name=FlowFilterName(any_=[_FLOW])), flow_run_filter=suspended
        )
        for run in runs:
            client.resume_flow_run(run.id)
    return len(runs)

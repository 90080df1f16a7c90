"""Runs whose process is gone are marked crashed.

A flow run sends a heartbeat every 30 s. Where a machine dies, nobody is left to say that the run ended: it would stay
Running for ever and keep its place in the concurrency limit. So the server itself watches: 90 s without any sign of
life after a heartbeat, and the run is crashed.
"""

from __future__ import annotations

from datetime import timedelta

from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import StateType
from prefect.events.actions import ChangeFlowRunState
from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture

NAME = "rlaif: a run without a heartbeat has crashed"
BEAT_S, WINDOW_S = 30, 90
HEARTBEAT = {"PREFECT_FLOWS_HEARTBEAT_FREQUENCY": str(BEAT_S)}
"""Variables that make a run send heartbeats."""
_ENDS = ("Completed", "Waiting", "Skipped", "Failed", "Cancelled", "Crashed", "Suspended", "Paused")


def dead_run_automation(window_s: int = WINDOW_S) -> AutomationCore:
    beat = "prefect.flow-run.heartbeat"
    return AutomationCore(
        name=NAME,
        description="Registered by rlaif deploy.",
        trigger=EventTrigger(
            after={beat},
            expect={beat, *(f"prefect.flow-run.{state}" for state in _ENDS)},
            match={"prefect.resource.id": "prefect.flow-run.*"},
            for_each={"prefect.resource.id"},
            posture=Posture.Proactive,
            threshold=1,
            within=timedelta(seconds=window_s),
        ),
        actions=[
            ChangeFlowRunState(
                state=StateType.CRASHED,
                message=f"No heartbeat for {window_s} s: its process or its machine is gone. The next run goes on.",
            )
        ],
    )


def register(window_s: int = WINDOW_S) -> None:
    """Make the automation on the server, or bring it up to date. Names are unique to us, not to the server."""
    wanted = dead_run_automation(window_s)
    with get_client(sync_client=True) as client:
        known = client.read_automations_by_name(NAME)
        for extra in known:
            client.delete_automation(extra.id)
        client.create_automation(wanted)

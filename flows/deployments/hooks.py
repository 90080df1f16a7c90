"""What happens when a flow run failed or crashed: people are told, where the config names a webhook."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from prefect.client.schemas.objects import FlowRun, State
from prefect.flows import Flow
from prefect.logging import get_logger
from prefect.settings import get_current_settings

from flows.config import NotifyConfig
from flows.load import find_config
from flows.telemetry.notify import notify
from flows.workspace import Workspace
from store.config import parse, read_yaml
from store.errors import RlaifError


def tell_people(flow: Flow[..., Any], flow_run: FlowRun, state: State[Any]) -> None:
    """A hook of `on_failure` and `on_crashed`, which call it with these names. What goes wrong here is a line in the
    log and nothing more."""
    log = get_logger("rlaif")
    try:
        variable = webhook_variable(flow_run.parameters)
        if variable is None:
            return
        _silence_request_lines()
        details = {
            "event": "flow_run_" + state.type.value.lower(),
            "flow": flow.name,
            "run": flow_run.name,
            "flow_run_id": str(flow_run.id),
            "workspace": flow_run.parameters.get("workspace"),
            "reason": state.message,
            "url": _page(flow_run),
        }
        notify(
            variable,
            f"{flow.name} {flow_run.name}: {state.name}. {state.message or ''} {details['url'] or ''}",
            details,
        )
    except RlaifError as error:
        log.warning("nobody was told of the failure: %s", error)


def webhook_variable(parameters: dict[str, Any]) -> str | None:
    """The name in `notify.webhook_env`: of the config that the run was given, else of the workspace's last round."""
    named = parameters.get("config")
    if isinstance(named, str):
        try:
            value = read_yaml(find_config(named)).get("notify")
            return parse(NotifyConfig, value or {}, source="notify").webhook_env
        except RlaifError:
            pass  # the failure to tell of may be just that
    workspace = parameters.get("workspace")
    last = Workspace(Path(workspace)).last_round() if isinstance(workspace, str) else None
    return last.config.notify.webhook_env if last else None


def _silence_request_lines() -> None:
    """httpx logs the address of every request, and this one is a secret."""
    logging.getLogger("httpx").setLevel(logging.WARNING)


def _page(run: FlowRun) -> str | None:
    ui = get_current_settings().ui_url
    return f"{ui.rstrip('/')}/runs/flow-run/{run.id}" if ui else None

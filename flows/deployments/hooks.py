"""What happens when a flow run failed or crashed: people are told, where the config names a webhook."""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Any

from prefect.client.schemas.objects import FlowRun, State
from prefect.flows import Flow
from prefect.logging import get_logger
from prefect.settings import get_current_settings

from flows.config import NotifyConfig
from flows.load import find_config
from flows.telemetry.notify import notify
from flows.workspace import Round, Workspace
from store.config import override, parse, read_yaml
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
    """The name in `notify.webhook_env` of the config and settings that the run was given, else of the workspace's last
    round; also where what was given cannot be read, for the failure to tell of may be just that."""
    workspace, named = parameters.get("workspace"), parameters.get("config")
    last = Workspace(Path(workspace)).last_round() if isinstance(workspace, str) else None
    settings = [one for one in parameters.get("settings") or () if re.match(r"notify\b", str(one))]
    if isinstance(named, str) or settings:
        try:
            given = read_yaml(find_config(named)).get("notify") if isinstance(named, str) else _notify_of(last)
            value = override({"notify": given or {}}, settings)["notify"]
            return parse(NotifyConfig, value, source="notify").webhook_env
        except RlaifError:
            pass
    found: str | None = _notify_of(last).get("webhook_env")
    return found


def _notify_of(round_: Round | None) -> dict[str, Any]:
    return round_.config.notify.model_dump() if round_ else {}


def _silence_request_lines() -> None:
    """httpx logs the address of every request, and this one is a secret."""
    logging.getLogger("httpx").setLevel(logging.WARNING)


def _page(run: FlowRun) -> str | None:
    ui = get_current_settings().ui_url
    return f"{ui.rstrip('/')}/runs/flow-run/{run.id}" if ui else None

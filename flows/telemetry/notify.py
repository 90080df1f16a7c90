"""Tells people that a run failed: one JSON message to a webhook whose address an environment variable holds.

The address of a chat's webhook is a secret, so that it is in no file and in no log: configs name the variable.
"""

from __future__ import annotations

import os
from typing import Any

import httpx

from store.errors import RlaifError, UsageError

_TIMEOUT_S = 10.0


def notify(webhook_env: str, text: str, details: dict[str, Any]) -> None:
    """Send `text` with `details`. The key `text` is what Slack, Mattermost and the like show.

    Raises UsageError where the variable is not set, RlaifError where the message was not taken; neither says the
    address.
    """
    url = os.environ.get(webhook_env)
    if not url:
        raise UsageError(f"notify.webhook_env names {webhook_env}, which is not set: export it where runs start.")
    try:
        answer = httpx.post(url, json={"text": text, **details}, timeout=_TIMEOUT_S)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise RlaifError(f"The webhook in {webhook_env} was not reached ({type(error).__name__}): check it.") from None
    if not answer.is_success:
        raise RlaifError(f"The webhook in {webhook_env} answered {answer.status_code}: check it.")

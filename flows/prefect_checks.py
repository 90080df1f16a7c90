"""Checks of the Prefect server that a team shares, for `rlaif doctor`: its defaults are open to whoever reaches it.

The server tells most of its settings to those who may ask (GET /admin/settings, secrets masked); what matters most is
tried: a request without credentials, and one from another web page.
"""

from __future__ import annotations

import base64
import importlib.metadata
import os
from collections.abc import Mapping
from typing import Any, NamedTuple

import httpx

_TIMEOUT_S = 5.0
_STRANGER = "https://elsewhere.example"
AUTH = "PREFECT_API_AUTH_STRING"


class Check(NamedTuple):
    """`level`: ok, warning or problem. `text` says what to set where, on the server unless it says otherwise."""

    level: str
    text: str


def check_scheduler(sqlalchemy: str) -> Check:
    """With SQLAlchemy 2.1 the scheduler of Prefect 3.7 fails, in the server's log alone: runs of a schedule never
    come."""
    if tuple(int(part) for part in sqlalchemy.split(".")[:2]) >= (2, 1):
        text = f"SQLAlchemy is {sqlalchemy}, with which schedules never start a run: pip install 'SQLAlchemy<2.1'"
        return Check("problem", text)
    return Check("ok", f"SQLAlchemy {sqlalchemy}, with which schedules work")


def check_server(url: str, environment: Mapping[str, str] = os.environ) -> list[Check]:
    """Checks of the API at `url`, the most important first. A server that does not answer gives one problem."""
    url = url.rstrip("/")
    auth = environment.get(AUTH)
    headers = {"Authorization": "Basic " + base64.b64encode(auth.encode()).decode()} if auth else {}
    try:
        health = httpx.get(f"{url}/health", timeout=_TIMEOUT_S)
        if health.status_code != 200:
            return [Check("problem", f"{url}/health answers with {health.status_code}")]
        with httpx.Client(base_url=url, timeout=_TIMEOUT_S) as stranger:
            return _checks(url, stranger, headers)
    except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
        return [Check("problem", f"{url}/health does not answer ({type(error).__name__})")]


def _checks(url: str, stranger: httpx.Client, headers: dict[str, str]) -> list[Check]:
    found = [Check("ok", f"{url} answers")]
    without = stranger.get("/admin/version")
    with_ = stranger.get("/admin/version", headers=headers)
    if with_.status_code in (401, 403):
        return [*found, Check("problem", f"the server wants credentials: export {AUTH}=user:password here")]
    if without.status_code in (401, 403):
        found.append(Check("ok", "it asks for credentials"))
    else:
        text = "whoever reaches it may start and read runs: set PREFECT_SERVER_API_AUTH_STRING=user:password"
        found.append(Check("warning", text))
    found.append(_version(with_.json()))
    origin = stranger.get("/health", headers={"Origin": _STRANGER}).headers.get("access-control-allow-origin")
    if origin in ("*", _STRANGER):
        text = "any web page may call it (CORS *): set PREFECT_SERVER_CORS_ALLOWED_ORIGINS to its own address"
        found.append(Check("warning", text))
    else:
        found.append(Check("ok", "other web pages may not call it (CORS)"))
    answer = stranger.get("/admin/settings", headers=headers)
    settings: dict[str, Any] = answer.json().get("server", {}) if answer.status_code == 200 else {}
    return [*found, _csrf(settings), _telemetry(settings), _database(settings)]


def _version(server: str) -> Check:
    ours = importlib.metadata.version("prefect")
    if server.split(".")[:2] != ours.split(".")[:2]:
        return Check("problem", f"it is Prefect {server}, here is {ours}: bring both to the same minor version")
    if server != ours:
        return Check("warning", f"it is Prefect {server}, here is {ours}: the server should not be the older one")
    return Check("ok", f"it is Prefect {server}, as here")


def _csrf(settings: Mapping[str, Any]) -> Check:
    if settings.get("api", {}).get("csrf_protection_enabled"):
        return Check("ok", "requests carry a token (CSRF)")
    return Check("warning", "no CSRF protection: set PREFECT_SERVER_CSRF_PROTECTION_ENABLED=true")


def _telemetry(settings: Mapping[str, Any]) -> Check:
    if settings.get("analytics_enabled") is False:
        return Check("ok", "it sends no telemetry")
    return Check("warning", "it sends telemetry: set PREFECT_SERVER_ANALYTICS_ENABLED=false")


def _database(settings: Mapping[str, Any]) -> Check:
    """The server masks a URL of its database, and names the driver only where it was given one by parts."""
    driver = settings.get("database", {}).get("driver") or ""
    if driver.startswith("postgresql"):
        return Check("ok", "its database is PostgreSQL")
    if driver:
        return Check("warning", "its database is SQLite, for one person: use PostgreSQL for a team")
    text = (
        "it does not tell its database; unless its URL says PostgreSQL it is SQLite, for one person: name PostgreSQL "
        "by PREFECT_SERVER_DATABASE_DRIVER, _HOST, _NAME, _USER and _PASSWORD"
    )
    return Check("warning", text)

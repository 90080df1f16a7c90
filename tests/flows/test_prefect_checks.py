"""`rlaif doctor` on a team's Prefect server: real ones, as they come and as they should be."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path

import pytest
from click.testing import CliRunner

from flows.cli.doctor import doctor
from flows.prefect_checks import AUTH, _version, check_scheduler, check_server
from tests.flows.prefect_server import prefect_server

CLOSED = {
    "PREFECT_SERVER_API_AUTH_STRING": "team:pass word",
    "PREFECT_SERVER_CSRF_PROTECTION_ENABLED": "true",
    "PREFECT_SERVER_CORS_ALLOWED_ORIGINS": "https://prefect.example.org",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
}


def warned(url: str, environment: dict[str, str]) -> list[str]:
    return [check.text for check in check_server(url, environment) if check.level == "warning"]


@pytest.mark.slow
def test_a_server_as_it_comes_is_open_and_said_to_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with prefect_server(tmp_path / "open", PREFECT_SERVER_ANALYTICS_ENABLED="true") as server:
        found = " | ".join(warned(server.api, {}))
        for what in (
            "PREFECT_SERVER_API_AUTH_STRING",
            "PREFECT_SERVER_CORS_ALLOWED_ORIGINS",
            "PREFECT_SERVER_CSRF_PROTECTION_ENABLED",
            "PREFECT_SERVER_ANALYTICS_ENABLED",
            "PREFECT_SERVER_DATABASE_DRIVER",
        ):
            assert what in found
        monkeypatch.setenv("PREFECT_API_URL", server.api)
        result = CliRunner().invoke(doctor)
        assert result.exit_code == 0, result.output
        assert "warning  prefect server" in result.output


@pytest.mark.slow
def test_a_closed_server_passes_and_wants_the_right_credentials(tmp_path: Path) -> None:
    settings = {**CLOSED, "PREFECT_SERVER_DATABASE_DRIVER": "sqlite+aiosqlite"}
    settings["PREFECT_SERVER_DATABASE_NAME"] = str(tmp_path / "prefect.db")
    with prefect_server(tmp_path / "closed", **settings) as server:
        known = {AUTH: CLOSED["PREFECT_SERVER_API_AUTH_STRING"]}
        assert warned(server.api, known) == ["its database is SQLite, for one person: use PostgreSQL for a team"]
        assert [check.level for check in check_server(server.api, known)].count("ok") == 6
        for environment in ({}, {AUTH: "team:wrong"}):
            last = check_server(server.api, environment)[-1]
            assert last.level == "problem"
            assert AUTH in last.text
            assert "pass word" not in last.text


def test_a_server_that_is_not_there_is_one_problem() -> None:
    for url in ("http://127.0.0.1:9/api", "nonsense", "http://[bad"):
        found = check_server(url, {})
        assert [check.level for check in found] == ["problem"]
        assert url in found[0].text


def test_a_scheduler_that_never_starts_anything_is_a_problem() -> None:
    assert check_scheduler("2.0.58").level == "ok"
    assert check_scheduler("2.1.9").level == "problem"


def test_versions_are_compared() -> None:
    ours = importlib.metadata.version("prefect")
    major, minor, patch = ours.split(".")[:3]
    assert _version(ours).level == "ok"
    assert _version(f"{major}.{minor}.{int(patch) + 1}").level == "warning"
    assert _version(f"{major}.{int(minor) + 1}.0").level == "problem"

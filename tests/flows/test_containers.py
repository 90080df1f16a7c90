"""The container files: parsed and held to what keeps a team safe. No container is run here."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

FOLDER = Path(__file__).resolve().parents[2] / "containers"
DOCKERFILES = sorted(FOLDER.glob("Dockerfile*"))


def instructions(path: Path) -> list[tuple[str, str]]:
    """(instruction, arguments), continued lines joined, comments left out."""
    lines = [line for line in path.read_text().splitlines() if not line.lstrip().startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ")
    return [
        (word.upper(), rest.strip()) for word, _, rest in (line.partition(" ") for line in joined.splitlines() if line)
    ]


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    value: dict[str, Any] = yaml.safe_load((FOLDER / "compose.yaml").read_text())
    return value


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_an_image_is_pinned_and_runs_as_nobody_special(path: Path) -> None:
    found = instructions(path)
    bases = [rest.split()[0] for word, rest in found if word == "FROM"]
    assert len(bases) == 2, "what builds stays out of what runs"
    for base in bases:
        assert re.search(r":\d+\.\d+", base), f"{base} names no version"
    last = len(found) - 1 - [word for word, _ in reversed(found)].index("FROM")
    users = [rest for word, rest in found[last:] if word == "USER"]
    assert users == ["10001"]
    assert any(word == "HEALTHCHECK" for word, _ in found[last:])
    assert ("ENTRYPOINT", '["rlaif"]') in found[last:]


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_an_image_holds_no_secret_and_sends_nothing(path: Path) -> None:
    text = path.read_text()
    assert not re.search(r"(?i)(ARG|ENV)[^\n]*(password|token|secret|api_key)", text)
    assert "PREFECT_SERVER_ANALYTICS_ENABLED=false" in text
    assert "DO_NOT_TRACK=1" in text


def test_what_an_image_copies_is_listed_by_name() -> None:
    rules = [line for line in (FOLDER.parent / ".dockerignore").read_text().splitlines() if line and line[0] != "#"]
    assert rules[0] == "*"
    for rule in rules[1:]:
        if rule.startswith("!"):
            assert (FOLDER.parent / rule[1:]).exists(), f"{rule} names nothing"
    packages = {"flows", "judges", "audit", "rlhf", "store"}
    assert {f"!{name}" for name in packages | {"configs", "datasets", "hatch_build.py"}} <= set(rules)


def test_every_service_is_watched_and_held_back(compose: dict[str, Any]) -> None:
    services = compose["services"]
    assert set(services) == {"postgres", "prefect", "audit", "worker", "deploy"}
    for name, service in services.items():
        if name != "deploy":
            assert "healthcheck" in service, name
            assert service["restart"] == "unless-stopped"
        for other in service.get("depends_on", {}):
            assert other in services
        for port in service.get("ports", []):
            assert port.startswith("127.0.0.1:"), f"{name} would listen to everybody"
        if service.get("image") == "rlaif":
            assert service["cap_drop"] == ["ALL"]
    assert "ports" not in services["postgres"]
    assert re.search(r":\d+\.\d+", services["postgres"]["image"])


def test_secrets_come_from_outside(compose: dict[str, Any]) -> None:
    for name, service in compose["services"].items():
        for key, value in service.get("environment", {}).items():
            if re.search(r"PASSWORD|AUTH|DATABASE$", key):
                assert re.search(r"\$\{\w+:\?", str(value)), f"{name} {key} has a value of its own"
    assert all(
        line.startswith("#") or line.endswith("=") for line in (FOLDER / ".env.example").read_text().splitlines()
    )
    assert ".env" in (FOLDER.parent / ".gitignore").read_text().splitlines()


def test_the_shared_server_is_closed(compose: dict[str, Any]) -> None:
    """What `rlaif doctor` asks of a team's server is set."""
    settings = compose["services"]["prefect"]["environment"]
    assert settings["PREFECT_SERVER_DATABASE_DRIVER"].startswith("postgresql")
    assert settings["PREFECT_SERVER_API_AUTH_STRING"]
    assert settings["PREFECT_SERVER_CSRF_PROTECTION_ENABLED"] == "true"
    assert settings["PREFECT_SERVER_CORS_ALLOWED_ORIGINS"] not in ("", "*")
    assert settings["PREFECT_SERVER_ANALYTICS_ENABLED"] == "false"

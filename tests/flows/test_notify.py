"""People are told of a failure at an address that nothing but the environment holds."""

from __future__ import annotations

from pathlib import Path

import pytest

from flows.deployments.hooks import webhook_variable
from flows.load import load_round
from flows.telemetry.notify import notify
from flows.workspace import Workspace
from store.errors import RlaifError, UsageError
from tests.flows.receiver import receiver


def test_the_message_arrives_with_its_details(monkeypatch: pytest.MonkeyPatch) -> None:
    with receiver() as hook:
        monkeypatch.setenv("HOOK", f"{hook.url}/services/S3CRET")
        notify("HOOK", "round failed", {"workspace": "w"})
        assert hook.bodies == [{"text": "round failed", "workspace": "w"}]
        hook.status = 410
        with pytest.raises(RlaifError, match="The webhook in HOOK answered 410") as caught:
            notify("HOOK", "again", {})
    assert "S3CRET" not in str(caught.value)


def test_an_address_that_is_not_there_or_not_reached_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HOOK", raising=False)
    with pytest.raises(UsageError, match="names HOOK, which is not set"):
        notify("HOOK", "x", {})
    for url in ("http://127.0.0.1:9/S3CRET", "no address at all S3CRET", "http://[S3CRET"):
        monkeypatch.setenv("HOOK", url)
        with pytest.raises(RlaifError, match="was not reached") as caught:
            notify("HOOK", "x", {})
        assert "S3CRET" not in str(caught.value)
        assert caught.value.__cause__ is None


def test_the_variable_is_found_in_the_config_or_in_the_last_round(tmp_path: Path) -> None:
    named = tmp_path / "named.yaml"
    named.write_text("policy: x\nnotify: {webhook_env: MINE}\n")
    assert webhook_variable({"config": str(named)}) == "MINE"
    assert webhook_variable({"config": "demo"}) is None
    # rlaif serve demo --set notify.webhook_env=SET
    settings = ["ppo.updates=3", "notify.webhook_env=SET"]
    assert webhook_variable({"config": "demo", "settings": settings}) == "SET"
    assert webhook_variable({"config": str(named), "settings": ["notify={webhook_env: null}"]}) is None
    assert webhook_variable({}) is None
    space = Workspace.create(tmp_path / "w")
    assert webhook_variable({"workspace": str(space.root)}) is None
    space.begin_round(load_round("demo", ["notify.webhook_env=LAST"]))
    assert webhook_variable({"workspace": str(space.root)}) == "LAST"
    assert webhook_variable({"workspace": str(space.root), "settings": settings}) == "SET"
    # A config that cannot be read is what there may be to tell of.
    assert webhook_variable({"config": "/nowhere.yaml", "workspace": str(space.root)}) == "LAST"


@pytest.mark.parametrize("value", ["https://hooks.example/S3CRET", "lower", "A B"])
def test_an_address_in_the_config_is_refused(value: str) -> None:
    with pytest.raises(UsageError, match="webhook_env"):
        load_round("demo", [f"notify.webhook_env={value!r}"])

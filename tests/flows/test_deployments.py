"""The deployments as data, without a server: names, schedules, parameters, and the same list as prefect.yaml's."""

from __future__ import annotations

import re
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import TypeAdapter, ValidationError

from flows import deployments as package
from flows.cli.deploy import _check_cron, _check_zone, _lasting
from flows.deployments.automation import BEAT_S, WINDOW_S, dead_run_automation
from flows.deployments.parameters import JudgeName, Setting, StageRequest, offered_judges, offering
from flows.deployments.registry import Plan, deployments
from flows.specs import STAGES
from store.errors import UsageError

SHIPPED = Path(package.__file__).parent / "prefect.yaml"


def plan(**changes: Any) -> Plan:
    return Plan(Path("/data/night"), **{"config": "demo", **changes})


def test_what_is_registered() -> None:
    found = {one.flow_name: one for one in deployments(plan(timezone="Europe/Berlin"))}
    assert set(found) == {"round", "sample", "drift", "retain", "stage"}
    for one in found.values():
        assert one.name == "night"
        assert one.enforce_parameter_schema is True
        assert one.concurrency_limit == 1
        assert one.entrypoint.startswith("flows.deployments.flows.")
    schedules = {name: [item.schedule for item in one.schedules or []] for name, one in found.items()}
    assert (schedules["round"][0].cron, schedules["round"][0].timezone) == ("0 2 * * *", "Europe/Berlin")
    assert schedules["sample"][0].interval == timedelta(hours=1)
    assert schedules["stage"] == []
    assert found["round"].parameters == {"workspace": "/data/night", "config": "demo"}


def test_never_leaves_it_to_people() -> None:
    quiet = plan(cron=None, drift_cron=None, retain_cron=None, sample_every=None, on_quota=False)
    for one in deployments(quiet):
        assert one.schedules == []
        assert one.triggers == []


def test_a_pool_gets_the_heartbeat_with_each_run() -> None:
    for one in deployments(plan(pool="gpus")):
        assert one.work_pool_name == "gpus"
        assert one.job_variables == {"env": {"PREFECT_FLOWS_HEARTBEAT_FREQUENCY": str(BEAT_S)}}
    assert WINDOW_S >= 3 * BEAT_S
    assert dead_run_automation().trigger.within == timedelta(seconds=WINDOW_S)


def test_the_shipped_file_registers_the_same() -> None:
    """`prefect deploy` reads it; both ways must not drift apart."""
    ours = {one.entrypoint: one for one in deployments(plan(pool="p"))}
    theirs = {one["entrypoint"]: one for one in yaml.safe_load(SHIPPED.read_text())["deployments"]}
    assert theirs.keys() == ours.keys()
    for entrypoint, one in ours.items():
        other = theirs[entrypoint]
        mine = [item.schedule for item in one.schedules or []]
        assert len(other["schedules"]) == len(mine)
        for given, schedule in zip(other["schedules"], mine, strict=True):
            if "cron" in given:
                assert (given["cron"], given["timezone"]) == (schedule.cron, schedule.timezone)
            else:
                assert timedelta(seconds=given["interval"]) == schedule.interval
        assert other["concurrency_limit"] == {"limit": 1, "collision_strategy": "ENQUEUE"}
        assert other["enforce_parameter_schema"] is True
        assert other["work_pool"]["job_variables"] == one.job_variables
        assert set(other.get("parameters") or {}) == set(one.parameters)
        assert [t["expect"] for t in other.get("triggers", [])] == [sorted(t.expect) for t in one.triggers]
        assert [t["parameters"] for t in other.get("triggers", [])] == [t.parameters for t in one.triggers]


def test_only_judges_that_are_there_are_offered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def offered() -> list[str]:
        schema = TypeAdapter(list[JudgeName]).json_schema()
        return list(schema["items"]["enum"])

    assert "tiny-good" in offered()
    with offering(["/judges/mine"]):
        assert "/judges/mine" in offered()
    assert "/judges/mine" not in offered()
    monkeypatch.setenv("RLAIF_JUDGES", "/judges/a:/judges/b")
    assert offered()[-2:] == offered_judges()[-2:] == ["/judges/a", "/judges/b"]
    round_ = next(one for one in deployments(plan(judges=("/judges/mine",))) if one.flow_name == "round")
    judges = round_._parameter_openapi_schema.properties["judges"]
    assert "/judges/mine" in judges["anyOf"][0]["items"]["enum"]
    with pytest.raises(ValidationError, match="tiny-god"):
        TypeAdapter(JudgeName).validate_python("tiny-god")


def test_a_stage_is_asked_for_with_its_own_inputs_and_config() -> None:
    adapter: TypeAdapter[Any] = TypeAdapter(StageRequest)
    request = adapter.validate_python(
        {"stage": "sample", "policy": "p", "prompts": "q", "out": "o", "config": {"responses": 2}}
    )
    assert (request.stage, request.config.responses, request.seed) == ("sample", 2, 17)
    wrong = [
        {"stage": "sample", "policy": "p", "out": "o"},
        {"stage": "sample", "policy": "p", "prompts": "q", "out": "o", "config": {"respones": 2}},
        {"stage": "judge", "rollouts": "r", "prompts": "q", "judge": ["nosuch"], "out": "o"},
        {"stage": "nosuch", "out": "o"},
    ]
    for value in wrong:
        with pytest.raises(ValidationError):
            adapter.validate_python(value)
    assert len(adapter.json_schema()["oneOf"]) == len(STAGES)


def test_settings_look_like_those_of_the_command_line() -> None:
    adapter = TypeAdapter(Setting)
    assert adapter.validate_python("ppo.updates=20") == "ppo.updates=20"
    for value in ("ppo.updates", "=3", "--set x=1"):
        with pytest.raises(ValidationError):
            adapter.validate_python(value)


def test_a_wrong_time_is_refused_before_a_server_hears_of_it() -> None:
    _check_cron("never", "--cron")
    _check_cron("*/5 1-3 * * mon", "--cron")
    with pytest.raises(UsageError, match=re.escape("--cron '61 * * * *' is no cron line")):
        _check_cron("61 * * * *", "--cron")
    _check_zone("Europe/Berlin")
    with pytest.raises(UsageError, match="no time zone"):
        _check_zone("Mars/Base")


def test_a_config_is_named_so_that_it_means_the_same_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine.yaml").write_text("policy: x\n")
    assert _lasting("mine.yaml") == str(tmp_path / "mine.yaml")
    assert _lasting("demo") == "demo"
    assert _lasting(None) is None

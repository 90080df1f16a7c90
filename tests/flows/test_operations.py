"""Rounds on a schedule, on a real Prefect server: they start by the clock, wait for each other, are cancelled, die."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import psutil
import pytest

from flows.workspace import Workspace
from store.manifest import read_manifest
from tests.flows.conftest import rlaif
from tests.flows.prefect_server import Server, background, clean_environment, prefect_server, until
from tests.flows.test_lifeline import gone

pytestmark = pytest.mark.slow


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    """Each test's own: one kills what talks to it, and the next must not meet what that left behind."""
    with prefect_server(tmp_path / "prefect") as running:
        yield running


def serving(server: Server, **more: str) -> dict[str, str]:
    return clean_environment(server.home, PREFECT_API_URL=server.api, PREFECT_RUNNER_POLL_FREQUENCY="2", **more)


@pytest.fixture
def workspace(finished: Path, tmp_path: Path) -> Path:
    """A finished round whose report is gone, so that the next run goes on with it and is done in seconds."""
    copy = Path(shutil.copytree(finished, tmp_path / "nightly"))
    (copy / "rounds" / "001" / "report.html").unlink()
    return copy


def deployment(server: Server, name: str) -> dict[str, Any] | None:
    try:
        found: dict[str, Any] = server.ask("GET", f"/deployments/name/{name}")
    except httpx.HTTPStatusError:
        return None
    return found


def deployed(server: Server, name: str) -> dict[str, Any]:
    return until(lambda: deployment(server, name), 60, f"the deployment {name}")


def start(server: Server, id_: str, **parameters: Any) -> str:
    body = {"parameters": parameters, "state": {"type": "SCHEDULED"}, "idempotency_key": uuid4().hex}
    return str(server.ask("POST", f"/deployments/{id_}/create_flow_run", body)["id"])


def state(server: Server, run: str) -> dict[str, Any]:
    value: dict[str, Any] = server.ask("GET", f"/flow_runs/{run}")["state"]
    return value


def ended(server: Server, run: str, seconds: float = 120) -> dict[str, Any]:
    final = ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")
    return until(lambda: s if (s := state(server, run))["type"] in final else None, seconds, f"the end of {run}")


def worker_of(stage: str, root: Path) -> psutil.Process | None:
    """The process of a stage of this workspace."""
    for process in psutil.process_iter():
        try:
            line = process.cmdline()
        except psutil.Error:
            continue
        if line[1:3] == ["-m", "flows.processes.worker"] and f'"stage": "{stage}"' in line[3] and str(root) in line[3]:
            return process
    return None


def test_a_round_runs_on_schedule_and_a_wrong_judge_is_refused_at_once(server: Server, workspace: Path) -> None:
    arguments = ["serve", "--workspace", str(workspace), "--cron", "* * * * *", "--sample-minutes", "0"]
    log = workspace / "serve.log"
    with background(arguments, log, serving(server, RLAIF_LOG="json")):
        ours = deployed(server, "round/nightly")
        assert [one["schedule"]["cron"] for one in ours["schedules"]] == ["* * * * *"]
        assert ours["global_concurrency_limit"]["limit"] == 1

        wrong = httpx.post(
            f"{server.api}/deployments/{ours['id']}/create_flow_run", json={"parameters": {"judges": ["tiny-god"]}}
        )
        assert wrong.status_code == 409
        assert "'tiny-god' is not one of ['flaw-questions'" in wrong.json()["detail"]

        body = {
            "deployments": {"id": {"any_": [ours["id"]]}},
            "flow_runs": {"state": {"type": {"any_": ["COMPLETED", "FAILED", "CRASHED"]}}},
            "sort": "START_TIME_ASC",
        }
        first = until(lambda: server.ask("POST", "/flow_runs/filter", body), 120, "a scheduled round")[0]
        server.ask("PATCH", f"/deployments/{ours['id']}", {"paused": True})
        assert first["auto_scheduled"] is True
        assert first["state"]["type"] == "COMPLETED", (first["state"], log.read_text()[-3000:])
        assert Workspace.existing(workspace).rounds()[0].finished

        wanted = {"artifacts": {"flow_run_id": {"any_": [first["id"]]}}, "limit": 200}
        artifacts = {one["key"]: one["type"] for one in server.ask("POST", "/artifacts/filter", wanted)}
        tables = {"judges": "table", "gate": "table", "win-rates": "table", "judge-costs": "table"}
        assert tables.items() <= artifacts.items()
        assert artifacts["round-report"] == "markdown"
        assert artifacts["ppo-plot-1"] == "image"
        lines = server.ask("POST", "/logs/filter", {"logs": {"flow_run_id": {"any_": [first["id"]]}}, "limit": 200})
        assert any(line["message"] == "ppo was complete already" for line in lines)
    events = [json.loads(line) for line in log.read_text().splitlines() if line.startswith("{")]
    assert {"event": "finished", "stage": "ppo", "reused": True}.items() <= _one(events, "finished", "ppo").items()


def _one(events: list[dict[str, Any]], event: str, stage: str) -> dict[str, Any]:
    return next(one for one in events if one["event"] == event and one["stage"] == stage)


def test_one_round_at_a_time_a_cancelled_one_stops_whole_and_the_next_goes_on(server: Server, workspace: Path) -> None:
    shutil.rmtree(workspace / "rounds" / "001" / "ppo")
    arguments = ["serve", "--workspace", str(workspace), "--name", "twice", "--cron", "never", "--sample-minutes", "0"]
    with background(arguments, workspace / "serve.log", serving(server)):
        ours = deployed(server, "round/twice")
        first = start(server, ours["id"], unfinished_only=True)
        stage = until(lambda: worker_of("ppo", workspace), 90, "the stage")
        second = start(server, ours["id"], unfinished_only=True)
        until(lambda: state(server, second)["name"] == "AwaitingConcurrencySlot", 60, "the second's wait")
        assert state(server, first)["name"] == "Running"

        server.ask("POST", f"/flow_runs/{first}/set_state", {"state": {"type": "CANCELLING", "name": "Cancelling"}})
        assert ended(server, first)["name"] == "Cancelled"
        assert gone(stage.pid)
        assert read_manifest(workspace / "rounds" / "001" / "ppo") is None

        assert ended(server, second, 200)["name"] == "Completed"
        assert Workspace.existing(workspace).rounds()[0].finished
        third = start(server, ours["id"], unfinished_only=True)
        last = ended(server, third)
        assert (last["type"], last["name"]) == ("COMPLETED", "Skipped")
        assert "is unfinished, so there is nothing to do" in last["message"]


def test_a_round_beside_one_by_hand_fails_with_one_clear_line(server: Server, workspace: Path) -> None:
    """And people are told, at an address that is in no log."""
    from tests.flows.receiver import receiver

    config = workspace / "told.yaml"
    config.write_text((workspace / "rounds" / "001" / "round.yaml").read_text())
    arguments = ["serve", str(config), "--workspace", str(workspace), "--name", "hand", "--cron", "never"]
    arguments += ["--sample-minutes", "0", "--set", "notify.webhook_env=ROUND_HOOK"]
    config.write_text(config.read_text().replace("webhook_env: null", "webhook_env: ROUND_HOOK"))
    with receiver() as hook:
        secret = f"{hook.url}/services/S3CRET"
        log = workspace / "serve.log"
        with background(arguments, log, serving(server, ROUND_HOOK=secret)):
            ours = deployed(server, "round/hand")
            with Workspace.existing(workspace).locked():
                run = start(server, ours["id"])
                assert ended(server, run)["type"] == "FAILED"
            said = state(server, run)["message"]
            assert "Another rlaif run works on" in said
            body = until(lambda: hook.bodies[-1] if hook.bodies else None, 60, "the message")
        assert body["event"] == "flow_run_failed"
        assert body["flow_run_id"] == run
        assert "Another rlaif run works on" in body["text"]
        lines = server.ask("POST", "/logs/filter", {"logs": {"flow_run_id": {"any_": [run]}}, "limit": 200})
        for text in (log.read_text(), json.dumps(lines), config.read_text()):
            assert "S3CRET" not in text


def test_the_audits_quota_starts_the_round_that_waits(server: Server, workspace: Path) -> None:
    """The queue's server posts an event; the trigger's parameters arrive as what they are, a boolean."""
    from audit.queue.model import BatchProgress

    arguments = ["serve", "--workspace", str(workspace), "--name", "quota", "--cron", "never", "--sample-minutes", "0"]
    with background(arguments, workspace / "serve.log", serving(server)):
        ours = deployed(server, "round/quota")
        fields = dict.fromkeys(BatchProgress.__dataclass_fields__, 1)
        program = (
            "import sys, json\nfrom audit.queue.model import BatchProgress\nfrom flows.launch.quota import announce\n"
            "announce(BatchProgress(**json.loads(sys.argv[1])))\n"
        )
        given = json.dumps({**fields, "batch_id": "b1", "name": "batch"})
        until(lambda: _triggers(server, ours["id"]), 60, "the trigger")
        subprocess.run([sys.executable, "-c", program, given], env=serving(server), check=True, timeout=120)
        body = {"deployments": {"id": {"any_": [ours["id"]]}}}
        run = until(lambda: server.ask("POST", "/flow_runs/filter", body), 60, "the triggered round")[0]
        assert run["parameters"]["unfinished_only"] is True
        assert ended(server, run["id"])["name"] == "Completed"
    assert Workspace.existing(workspace).rounds()[0].finished


def _triggers(server: Server, id_: str) -> Any:
    return server.ask("GET", f"/automations/related-to/prefect.deployment.{id_}")


def test_a_dead_machine_is_noticed_and_the_round_goes_on(server: Server, workspace: Path) -> None:
    """Runner, flow and stage are killed together: nobody is left to say so but the server."""
    shutil.rmtree(workspace / "rounds" / "001" / "ppo")
    arguments = ["serve", "--workspace", str(workspace), "--name", "dies", "--cron", "never", "--sample-minutes", "0"]
    environment = serving(server)
    with background(arguments, workspace / "serve.log", environment) as runner:
        ours = deployed(server, "round/dies")
        run = start(server, ours["id"], unfinished_only=True)
        stage = until(lambda: worker_of("ppo", workspace), 90, "the stage")
        beat = {"filter": {"event": {"name": ["prefect.flow-run.heartbeat"]}}, "limit": 50}
        until(lambda: _beats(server, beat, run), 60, "a heartbeat")
        for process in [*psutil.Process(runner.pid).children(recursive=True), psutil.Process(runner.pid)]:
            process.send_signal(signal.SIGKILL)
        assert gone(stage.pid)
    last = ended(server, run, 150)
    assert last["type"] == "CRASHED"
    assert "No heartbeat for 90 s" in last["message"]
    with background(arguments, workspace / "serve.log", environment):
        again = start(server, deployed(server, "round/dies")["id"], unfinished_only=True)
        assert ended(server, again, 200)["name"] == "Completed"
    assert Workspace.existing(workspace).rounds()[0].finished


def _beats(server: Server, body: dict[str, Any], run: str) -> bool:
    events = server.ask("POST", "/events/filter", body)["events"]
    return any(event["resource"]["prefect.resource.id"] == f"prefect.flow-run.{run}" for event in events)


def test_a_server_that_goes_in_the_middle_loses_nothing(workspace: Path, tmp_path: Path) -> None:
    folder = workspace / "rounds" / "001"
    shutil.rmtree(folder / "reward")
    with prefect_server(tmp_path / "prefect") as server:
        environment = {"PREFECT_API_URL": server.api, "PREFECT_HOME": str(tmp_path / "prefect")}
        environment |= {"PREFECT_CLIENT_MAX_RETRIES": "1", "DO_NOT_TRACK": "1"}
        process = subprocess.Popen(
            [sys.executable, "-m", "flows", "run", "--workspace", str(workspace)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            env={**clean_environment(tmp_path / "prefect"), **environment},
        )
        until(lambda: worker_of("reward", workspace), 90, "the stage")
        server.kill()
        said = process.communicate(timeout=1800)[1]
    assert process.returncode == 1, said
    assert f"rlaif: The Prefect API {server.api} stopped answering" in said
    assert "Traceback" not in said
    assert read_manifest(folder / "reward") is not None, "the stage went on to its end"
    done = rlaif("run", "--workspace", str(workspace))
    assert done.returncode == 0, done.stderr
    with sqlite3.connect(workspace / "prefect" / "prefect.db") as database:
        assert database.execute("select count(*) from flow_run where state_type = 'COMPLETED'").fetchone() >= (1,)
    os.stat(folder / "report.html")

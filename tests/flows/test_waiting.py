"""A round that waits for people: it ends and says so, or as a deployment's run suspends itself; then it goes on."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from itertools import cycle, repeat
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from audit.loop import open_queue
from audit.queue.model import Answer, Role
from audit.queue.people import People
from flows.inspection.audited import judges_against_people
from flows.load import change
from flows.prefect_api import prefect_api
from flows.workspace import Workspace
from store.manifest import need_manifest
from tests.flows.conftest import rlaif

pytestmark = pytest.mark.slow


@pytest.fixture
def workspace(finished: Path, tmp_path: Path) -> Path:
    """A finished round whose report is gone, so that the next run goes on with it."""
    copy = Path(shutil.copytree(finished, tmp_path / "workspace"))
    (copy / "rounds" / "001" / "report.html").unlink()
    return copy


def answer_all(workspace: Path, sides: Iterator[str], name: str = "ann") -> int:
    """As people would, in the workspace's queue, until either side has an end; gives the number of answers."""
    count = 0
    with open_queue(str(workspace / "audit.db"), lambda: datetime.now(UTC)) as queue:
        user = People(queue.database, lambda: datetime.now(UTC)).add(name, Role.AUDITOR).id
        while (side := next(sides, None)) and (claim := queue.claim(user)):
            queue.submit(user, claim.item.item_id, claim.token, Answer(side), str(claim.token))
            count += 1
    return count


def test_a_run_ends_while_people_work_and_the_next_goes_on(workspace: Path) -> None:
    settings = ["--set", "audit.mode=people", "--set", "audit.url=http://localhost:8321"]
    settings += ["--set", "audit.auditor_limits.quarantined=[bob]"]
    done = rlaif("run", "--workspace", str(workspace), *settings)
    assert done.returncode == 75, done.stderr
    assert "Waiting for people: 0 of" in done.stderr
    assert "run again to go on" in done.stderr
    assert "Traceback" not in done.stderr
    state = json.loads(rlaif("status", "--json", "--workspace", str(workspace)).stdout)
    assert state["stages"]["audit"]["state"] == "waiting"
    with sqlite3.connect(workspace / "prefect" / "prefect.db") as database:
        (last,) = database.execute("select state_name, state_type from flow_run order by created desc limit 1")
        (page,) = database.execute("select data from artifact where key = 'audit-page'")
    assert last == ("Waiting", "COMPLETED"), "nothing failed"
    assert "http://localhost:8321" in page[0]
    assert [row.audited for row in judges_against_people(workspace)] == [0, 0, 0, 0]

    assert answer_all(workspace, repeat("left", 4), "bob") == 4
    assert judges_against_people(workspace)[0].audited == 0, "who is set aside is so here too"
    assert answer_all(workspace, cycle(("left", "right"))) > 0
    assert judges_against_people(workspace)[0].audited > 0, "the page shows it at once"
    done = rlaif("run", "--workspace", str(workspace))
    assert done.returncode == 0, done.stderr
    manifest = need_manifest(workspace / "rounds" / "001" / "audit")
    assert manifest.metrics["gate"] == "quota"
    assert set(manifest.metrics["auditors"]) == {"ann", "bob"}
    assert sum(manifest.metrics["auditors"].values()) == manifest.metrics["drawn"]


@contextmanager
def deployment(home: Path) -> Iterator[str]:
    """The round flow served as a deployment, as `serve` does it; gives the deployment's id."""
    with prefect_api(home) as url:
        program = "from flows.round import round_flow; round_flow.serve(name='rounds', pause_on_shutdown=False)"
        environment = {
            **os.environ,
            "PREFECT_API_URL": url,
            "PREFECT_HOME": str(home),
            "PREFECT_RUNNER_POLL_FREQUENCY": "1",
        }
        log = (home / "runner.log").open("w")
        runner = subprocess.Popen(
            [sys.executable, "-c", program], stdout=log, stderr=log, env=environment, start_new_session=True
        )
        try:
            yield _until(lambda: _deployment_id(url), 120, "the deployment")
        finally:
            os.killpg(runner.pid, signal.SIGTERM)
            runner.wait(60)
            log.close()


def _deployment_id(url: str) -> str | None:
    response = httpx.get(f"{url}/deployments/name/round/rounds", timeout=30)
    return str(response.json()["id"]) if response.status_code == 200 else None


def _until(look: Any, seconds: float, what: str) -> Any:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if found := look():
            return found
        time.sleep(0.5)
    raise AssertionError(f"{what} did not come within {seconds} s")


def test_a_deployments_run_suspends_itself_and_is_resumed(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("PREFECT_")]:
        monkeypatch.delenv(name)
    round_ = Workspace.existing(workspace).rounds()[0]
    round_.set_config(change(round_.config, ["audit.mode=people"]))
    home = workspace / "prefect-server"
    home.mkdir()
    with deployment(home) as name, httpx.Client(base_url=os.environ["PREFECT_API_URL"], timeout=60) as api:
        body = {"parameters": {"workspace": str(workspace), "number": 1}, "state": {"type": "SCHEDULED"}}
        run = _ask(api, "POST", f"/deployments/{name}/create_flow_run", body)["id"]

        def state(wanted: str) -> bool:
            found = _ask(api, "GET", f"/flow_runs/{run}")["state"]
            assert found["name"] not in ("Failed", "Crashed"), found
            return bool(found["name"] == wanted)

        _until(lambda: state("Suspended"), 180, "the suspension")
        _until(lambda: not _processes(run), 60, "the end of its process")
        _ask(api, "POST", f"/flow_runs/{run}/resume", {})
        _until(lambda: _events(workspace).count("waiting") == 2 and state("Suspended"), 180, "the second suspension")
        assert answer_all(workspace, cycle(("left", "right"))) > 0
        done = rlaif("audit", "resume", PREFECT_API_URL=os.environ["PREFECT_API_URL"])
        assert done.stdout == "Resumed rounds: 1\n", done.stderr
        _until(lambda: state("Completed"), 240, "the end")
    assert need_manifest(workspace / "rounds" / "001" / "audit").metrics["gate"] == "quota"
    assert round_.finished


def _ask(api: httpx.Client, method: str, path: str, body: Any = None) -> Any:
    """As Prefect's own clients: a server that says it is busy is asked again."""

    def once() -> httpx.Response | None:
        response = api.request(method, path, json=body)
        return None if response.status_code == 503 else response.raise_for_status()

    return _until(once, 60, f"an answer to {path}").json()


def _processes(flow_run: str) -> list[int]:
    """Those that Prefect's runner started for a flow run: it names the run in their environment."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("PREFECT__FLOW_RUN_ID") == flow_run:
                found.append(process.pid)
        except psutil.Error:
            continue
    return found


def _events(workspace: Path) -> list[str]:
    lines = (workspace / "rounds" / "001" / "journal.jsonl").read_text().splitlines()
    return [json.loads(line)["event"] for line in lines]

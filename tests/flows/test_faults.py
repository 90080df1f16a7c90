"""Faults of a round, each with one clear line, nothing half-written, and a next run that goes on where it was.

Others have their tests where they belong:

- the Prefect server goes in the middle, its machine dies: test_operations; its database is locked: here
- the audit queue's database is locked: tests/audit/queue/test_database, tests/audit/web/test_serve
- a clock jumps: tests/store/test_stage; a lease by the server's clock: tests/store/test_remote
- a disk is full: here, tests/store/test_files, test_cli
- a bucket is denied or gone: tests/store/test_remote, test_bucket
- two rounds at once: here, test_round, test_operations (one of them scheduled), test_bucket (on two machines)
- a worker is killed: test_round, test_ranks, test_lifeline; of a Ray or Dask cluster: tests/shards/test_clusters
- a run is killed at any instant: tests/store/test_kills, test_round
- a config changes in the middle, a judge's server is away, tables and manifests are damaged or of a newer version: here
"""

from __future__ import annotations

import json
import resource
import shutil
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from flows.cli import rlaif
from flows.launch.begin import choose_round
from flows.load import change
from flows.plan import Step, plan_round
from flows.processes.worker import execute
from flows.specs import ROUND
from flows.workspace import Round, Workspace
from store.errors import RlaifError, TransientError, UsageError
from store.schemas import PAIRS, VOTES
from store.stage import Outcome
from store.tables import read_table
from tests.flows.conftest import rlaif as run_command
from tests.flows.fake_round import WIN_RATE, begin, finished, run_all, run_fake
from tests.judges.fault_server import GOOD, FaultServer

PROMPT = "Compare.\n{{ prompt }}\n{{ first }}\n{{ second }}\nAnswer with 1 or 2."
CONCURRENCY = 4


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return finished(tmp_path_factory.mktemp("faults") / "w")[0].root


@pytest.fixture
def space(original: Path, tmp_path: Path) -> Workspace:
    return Workspace.existing(Path(shutil.copytree(original, tmp_path / "w")))


def steps(round_: Round) -> dict[str, Step]:
    return {step.stage: step for step in plan_round(round_)}


def command(space: Workspace, *arguments: str) -> BaseException | None:
    return CliRunner().invoke(rlaif, [*arguments, "--workspace", str(space.root)]).exception


def test_a_config_changed_in_the_middle_reruns_what_depends_on_it(tmp_path: Path) -> None:
    space, round_ = begin(tmp_path / "w")
    for name in ("sft", "sample", "judge", "audit", "aggregate", "reward"):
        run_fake(steps(round_)[name], WIN_RATE)
    again = choose_round(space, change(round_.config, ["reward.epochs=7"]))
    assert again.number == round_.number
    assert [event["event"] for event in again.journal.events()][-1] == "config_changed"
    outcomes = run_all(space, again)
    assert [name for name, outcome in outcomes.items() if outcome.reused] == list(ROUND)[:5]
    assert outcomes["reward"].reasons == ["config reward.epochs 3.0 -> 7.0"]
    assert outcomes["ppo"].reasons == ["it has not run yet"]


@pytest.mark.parametrize("stage", ROUND)
def test_a_deleted_stage_is_rebuilt_and_nothing_else(space: Workspace, stage: str) -> None:
    """What it makes is the same, byte for byte, so nothing that depends on it has to run."""
    round_ = space.rounds()[0]
    shutil.rmtree(round_.stage(stage))
    assert [name for name, outcome in run_all(space, round_).items() if not outcome.reused] == [stage]


def test_a_corrupted_table_is_rebuilt_before_anything_reads_it(space: Workspace) -> None:
    round_ = space.rounds()[0]
    path = round_.stage("judge") / "votes.parquet"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    whole = path.read_bytes()
    path.write_bytes(data)
    outcomes = run_all(space, round_)
    assert outcomes["judge"].reasons[0].startswith("output votes.parquet is damaged: its sha256 is")
    assert [name for name, outcome in outcomes.items() if not outcome.reused] == ["judge"]
    assert path.read_bytes() == whole


def test_a_users_corrupted_table_is_named(tmp_path: Path) -> None:
    (tmp_path / "prompts.parquet").write_bytes(b"PAR1 and then nothing of the kind")
    arguments = ["--policy", "shipped:tiny/models/base", "--prompts", str(tmp_path / "prompts.parquet")]
    done = CliRunner().invoke(rlaif, ["stage", "sample", *arguments, "--out", str(tmp_path / "out")])
    assert isinstance(done.exception, UsageError)
    assert "prompts.parquet cannot be read as parquet" in str(done.exception)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("arguments", [["run"], ["run", "--dry-run"], ["status"]])
def test_a_manifest_of_a_newer_version_stops_at_once(space: Workspace, arguments: list[str]) -> None:
    path = space.rounds()[0].stage("promote") / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "manifest_version": 99}))
    error = command(space, *arguments)
    assert isinstance(error, UsageError)
    assert "has manifest version 99, this version reads up to" in str(error)
    assert "upgrade rlaif" in str(error)


def test_a_second_run_is_told_at_once(space: Workspace) -> None:
    before = len(space.rounds())
    with space.locked():
        error = command(space, "run")
    assert isinstance(error, RlaifError)
    assert "Another rlaif run works on" in str(error)
    assert len(space.rounds()) == before


@contextmanager
def failing_api(status: int) -> Iterator[str]:
    """What answers as a Prefect server that is healthy and cannot use its database, or wants a password."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if self.path == "/api/health" else status)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            self.do_GET()

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/api"
    finally:
        server.shutdown()
        server.server_close()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("status", "code", "said"),
    [
        (503, 1, "answers with 503, also when asked again (its log says why; most often its database is locked)"),
        (401, 2, "refuses this user (401): set PREFECT_API_AUTH_STRING"),
    ],
)
def test_a_prefect_server_that_fails_is_one_line(space: Workspace, status: int, code: int, said: str) -> None:
    (space.rounds()[0].folder / "report.html").unlink()
    with failing_api(status) as url:
        settings = {"PREFECT_API_URL": url, "PREFECT_CLIENT_MAX_RETRIES": "1", "PREFECT_HOME": str(space.root / "p")}
        done = run_command("run", "--workspace", str(space.root), **settings)
    assert done.returncode == code, done.stderr
    assert f"rlaif: The Prefect API {url} {said}" in done.stderr
    assert "Traceback" not in done.stderr


@contextmanager
def disk_of(size: int) -> Iterator[None]:
    """No file may grow beyond `size` bytes: what a full disk does, to this process alone."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("stage", ["sample", "evaluate"])
def test_a_full_disk_is_said_and_the_next_run_goes_on(space: Workspace, stage: str) -> None:
    round_ = space.rounds()[0]
    shutil.rmtree(round_.stage(stage))
    step = steps(round_)[stage]
    with disk_of(200), pytest.raises(RlaifError, match="No space left on the disk while writing") as caught:
        run_fake(step, WIN_RATE)
    assert "free some and run again" in str(caught.value)
    assert not step.out.exists()
    assert not run_fake(step, WIN_RATE).reused


def test_a_full_disk_cuts_no_record_of_the_registry(space: Workspace) -> None:
    size = space.registry.history.stat().st_size
    with disk_of(size + 20), pytest.raises(RlaifError, match="No space left"):
        space.registry.rollback(None, "while the disk is full", None)
    champion = space.champion()
    assert champion is not None
    assert champion["round"] == 1
    space.registry.rollback(None, "now there is room", None)
    assert space.champion() is None


@pytest.fixture
def judged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., tuple[Step, FaultServer]]]:
    """A round whose judge is behind a real server, up to the judge stage."""
    monkeypatch.setattr("judges.backends.limits.FIRST_DELAY_S", 0.01)
    monkeypatch.setattr("judges.backends.limits.MAX_DELAY_S", 0.1)
    servers: list[FaultServer] = []

    def start(**settings: Any) -> tuple[Step, FaultServer]:
        servers.append(FaultServer(lambda number, body: GOOD))
        folder = tmp_path / "judge"
        folder.mkdir()
        (folder / "prompt.jinja").write_text(PROMPT)
        own = {"name": "far", "backend": "openai", "model": "big", "base_url": servers[0].url}
        values = {**own, "concurrency": CONCURRENCY, "outage_after": 2, **settings}
        (folder / "judge.yaml").write_text("\n".join(f"{name}: {value}" for name, value in values.items()))
        config = (f"judges=[{folder}]", "calibration=null", "sample.max_prompts=20")
        _, round_ = begin(tmp_path / "w", *config)
        for name in ("sft", "sample"):
            run_fake(steps(round_)[name], WIN_RATE)
        return steps(round_)["judge"], servers[0]

    yield start
    for server in servers:
        server.close()


def run_for_real(step: Step) -> Outcome:
    return execute(step.stage, dict(step.inputs), step.config.model_dump(mode="json"), step.seed, step.out)


def check_votes(step: Step, bodies: list[dict[str, Any]], most_repeated: int) -> None:
    """Every vote once, scored, and no call made twice beyond those in flight."""
    votes = read_table(step.out / "votes.parquet", VOTES)
    pairs = read_table(step.out / "pairs.parquet", PAIRS).num_rows
    assert votes.num_rows == 2 * pairs
    assert set(votes["status"].to_pylist()) == {"scored"}
    calls = Counter(json.dumps(body["messages"]) for body in bodies)
    assert sum(calls.values()) - len(calls) <= most_repeated


def test_a_judge_that_was_away_and_comes_back_costs_no_vote(judged: Callable[..., tuple[Step, FaultServer]]) -> None:
    step, server = judged(outage_patience_s=60)
    later: list[FaultServer] = []

    def away() -> None:
        while len(server.bodies) < 20:
            time.sleep(0.001)
        server.close()
        time.sleep(1.0)
        later.append(FaultServer(lambda number, body: GOOD, port=server.port))

    thread = threading.Thread(target=away)
    thread.start()
    try:
        run_for_real(step)
        thread.join()
        check_votes(step, [*server.bodies, *later[0].bodies], most_repeated=CONCURRENCY)
        assert later[0].bodies
    finally:
        thread.join()
        later[0].close()


def test_a_judge_that_stays_away_ends_the_stage_which_goes_on_later(
    judged: Callable[..., tuple[Step, FaultServer]],
) -> None:
    step, server = judged(outage_patience_s=0.5, max_attempts=100)

    def away() -> None:
        while len(server.bodies) < 20:
            time.sleep(0.001)
        server.close()

    thread = threading.Thread(target=away)
    thread.start()
    with pytest.raises(TransientError) as caught:
        run_for_real(step)
    thread.join()
    assert "\n" not in str(caught.value)
    assert "far" in str(caught.value)
    assert not step.out.exists()
    before = list(server.bodies)
    back = FaultServer(lambda number, body: GOOD, port=server.port)
    try:
        run_for_real(step)
        check_votes(step, [*before, *back.bodies], most_repeated=CONCURRENCY)
        assert len(back.bodies) < read_table(step.out / "votes.parquet", VOTES).num_rows
    finally:
        back.close()


def test_a_round_killed_before_its_decision_was_recorded_is_not_finished(tmp_path: Path) -> None:
    """Not even with a report, which rlaif report writes of an unfinished round too: a champion would be lost."""
    space, round_ = begin(tmp_path / "w")
    for step in plan_round(round_):
        run_fake(step, WIN_RATE)
    (round_.folder / "report.html").write_text("<!doctype html>")
    assert not round_.finished
    assert choose_round(space, round_.config).number == 1
    run_all(space, round_)
    assert round_.finished
    assert space.champion() is not None

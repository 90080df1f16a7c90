"""Figures for Prometheus, read back with its own parser; and the live view of a round."""

from __future__ import annotations

import json
import shutil
import urllib.request
from datetime import datetime
from pathlib import Path

import pytest
from click.testing import CliRunner
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from flows.cli import rlaif
from flows.cli.status import view
from flows.telemetry.metrics import registry, serve, write_textfile
from flows.telemetry.progress import Recorded, read_progress
from flows.telemetry.status import round_status
from flows.workspace import LOCK, Workspace
from store.errors import UsageError
from store.locks import exclusive, is_held
from store.manifest import need_manifest
from store.schemas import VOTES
from store.tables import read_table
from tests.flows.fake_round import WIN_RATE, finished, next_round, run_all

Labels = frozenset[tuple[str, str]]


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return finished(tmp_path_factory.mktemp("metrics") / "w")[0].root


@pytest.fixture
def space(original: Path, tmp_path: Path) -> Workspace:
    return Workspace.existing(Path(shutil.copytree(original, tmp_path / "w")))


def parsed(text: str) -> dict[tuple[str, Labels], float]:
    families = text_string_to_metric_families(text)
    return {(s.name, frozenset(s.labels.items())): s.value for family in families for s in family.samples}


def told(root: Path) -> dict[tuple[str, Labels], float]:
    return parsed(generate_latest(registry(root)).decode())


def key(name: str, **labels: str) -> tuple[str, Labels]:
    return f"rlaif_{name}", frozenset(labels.items())


def test_the_figures_are_those_of_manifests_tables_and_registry(space: Workspace) -> None:
    found = told(space.root)
    judge = space.rounds()[0].stage("judge")
    manifest = need_manifest(judge)
    assert found[key("round")] == 1
    assert found[key("round_finished", round="1")] == 1
    assert found[key("stage_seconds", round="1", stage="judge")] == manifest.seconds
    started = datetime.fromisoformat(manifest.started_at).timestamp()
    assert found[key("stage_last_success_timestamp_seconds", round="1", stage="judge")] == started
    assert found[key("stage_state", round="1", stage="judge", state="done")] == 1
    votes = read_table(judge / "votes.parquet", VOTES).to_pylist()
    for name in ("tiny-good", "tiny-middling", "tiny-biased"):
        own = [vote for vote in votes if vote["judge"] == name]
        for status in ("scored", "tie", "abstain", "parse_failure", "error"):
            expected = sum(vote["status"] == status for vote in own)
            assert found[key("votes", round="1", stage="judge", judge=name, status=status)] == expected
        assert found[key("judge_cost", round="1", stage="judge", judge=name)] == sum(vote["cost"] for vote in own)
        tokens = sum(vote["tokens_in"] for vote in own)
        assert found[key("tokens", round="1", stage="judge", judge=name, direction="in")] == tokens
    assert found[key("round_cost", round="1")] == sum(vote["cost"] for vote in votes)
    assert found[key("champion_round")] == 1
    assert found[key("champion_win_rate_low")] == WIN_RATE["low"]
    assert found[key("win_rate_low", round="1")] == WIN_RATE["low"]
    assert found[key("run_alive")] == 0
    finish = space.rounds()[0].journal.events()[-1]
    assert found[key("last_success_timestamp_seconds")] == datetime.fromisoformat(finish["time"]).timestamp()


def test_what_is_not_known_is_not_told(tmp_path: Path) -> None:
    space = Workspace.create(tmp_path / "w")
    assert told(space.root) == {key("champion_round"): 0}


def test_failures_and_waits_are_told(space: Workspace) -> None:
    round_ = space.rounds()[0]
    round_.journal.write("started", stage="judge", attempt=2)
    round_.journal.write("failed", stage="judge", attempt=2, error="a server was away")
    round_.journal.write("started", stage="audit", attempt=2)
    until = "2030-01-01T00:00:00+00:00"
    round_.journal.write("waiting", stage="audit", attempt=2, said="8 pairs are open", until=until)
    found = told(space.root)
    assert found[key("stage_failures", round="1", stage="judge")] == 1
    assert found[key("stage_attempts", round="1", stage="judge")] == 2
    assert found[key("stage_state", round="1", stage="judge", state="failed")] == 1
    assert found[key("waiting_until_timestamp_seconds", round="1")] == datetime.fromisoformat(until).timestamp()


def test_only_the_last_rounds_are_told(space: Workspace) -> None:
    for _ in range(3):
        next_round(space)
    found = told(space.root)
    rounds = {dict(labels)["round"] for name, labels in found if name == "rlaif_stage_seconds"}
    assert rounds == {"2", "3", "4"}


def test_the_endpoint_reads_the_workspace_at_each_scrape(space: Workspace) -> None:
    server, thread = serve(space.root, 0, "127.0.0.1")

    def scrape() -> dict[tuple[str, Labels], float]:
        with urllib.request.urlopen(f"http://127.0.0.1:{server.server_port}/metrics", timeout=30) as answer:
            return parsed(answer.read().decode())

    try:
        assert scrape()[key("champion_round")] == 1
        space.registry.rollback(None, "to see it", None)
        assert scrape()[key("champion_round")] == 0
        with pytest.raises(UsageError, match=r"Cannot listen on 127\.0\.0\.1:"):
            serve(space.root, server.server_port, "127.0.0.1")
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def test_the_textfile_is_replaced_as_a_whole(space: Workspace, tmp_path: Path) -> None:
    path = tmp_path / "textfiles" / "rlaif.prom"
    for _ in range(2):
        write_textfile(space.root, path)
    assert parsed(path.read_text())[key("round")] == 1
    assert [file.name for file in path.parent.iterdir()] == ["rlaif.prom"]
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="is in the way"):
        write_textfile(space.root, tmp_path / "file" / "rlaif.prom")


def test_the_command_prints_or_refuses(space: Workspace, tmp_path: Path) -> None:
    done = CliRunner().invoke(rlaif, ["metrics", "--workspace", str(space.root)])
    assert parsed(done.stdout)[key("round")] == 1
    both = ["--port", "0", "--textfile", str(tmp_path / "x")]
    done = CliRunner().invoke(rlaif, ["metrics", "--workspace", str(space.root), *both])
    assert isinstance(done.exception, UsageError)
    done = CliRunner().invoke(rlaif, ["metrics", "--workspace", str(tmp_path / "none")])
    assert isinstance(done.exception, UsageError)
    assert "is no workspace" in str(done.exception)


def test_a_running_stage_shows_progress_and_a_killed_one_does_not(space: Workspace) -> None:
    round_ = space.rounds()[0]
    round_.journal.write("started", stage="judge", attempt=2)
    seen = []
    progress = Recorded(lambda *given: seen.append(given), round_.folder, "judge", interval_s=0)
    progress("judge tiny-good", 0, 10)
    progress("judge tiny-good", 5, 10, "half")
    assert seen[-1] == ("judge tiny-good", 5, 10, "half")
    killed = round_status(round_)
    assert (killed["stages"]["judge"]["state"], killed["alive"], killed["eta_s"]) == ("killed", False, None)
    with exclusive(space.root / LOCK, "taken"):
        assert is_held(space.root / LOCK)
        value = round_status(round_)
        shown = str(view_text(value | {"champion": None}))
    stage = value["stages"]["judge"]
    assert (stage["state"], value["alive"]) == ("running", True)
    assert (stage["progress"]["done"], stage["progress"]["total"]) == (5, 10)
    assert stage["progress"]["seconds_left"] >= 0
    assert value["eta_s"] == pytest.approx(stage["progress"]["seconds_left"])
    assert "judge tiny-good 5/10 half" in shown
    assert read_progress(round_.folder, "reward") is None


def view_text(value: dict[str, object]) -> str:
    from rich.console import Console

    console = Console(width=160)
    with console.capture() as capture:
        console.print(view(value))
    return capture.get()


def test_progress_that_cannot_be_written_stops_nothing(tmp_path: Path) -> None:
    (tmp_path / "logs").write_text("in the way")
    Recorded(lambda *_: None, tmp_path, "judge")("x", 1, 2)


def test_cost_counts_votes_of_an_unfinished_stage(space: Workspace) -> None:
    round_ = space.rounds()[0]
    before = round_status(round_)["cost"]
    shard = round_.folder / ".judge.partial" / ".shards" / "abc" / "000000.jsonl"
    shard.parent.mkdir(parents=True)
    shard.write_text(json.dumps({"cost": 1.5}) + "\n" + json.dumps({"cost": 2.0}) + "\n{torn")
    assert round_status(round_)["cost"] == pytest.approx(before + 3.5)


def test_watching_ends_with_the_round(space: Workspace) -> None:
    done = CliRunner().invoke(rlaif, ["status", "--workspace", str(space.root), "--watch", "--interval", "0.1"])
    assert done.exit_code == 0, done.exception
    assert done.stdout.startswith("round 1: promote done; finished; cost of judges so far")
    done = CliRunner().invoke(rlaif, ["status", "--workspace", str(space.root), "--watch", "--json"])
    assert json.loads(done.stdout)["finished"]


def test_a_round_goes_on_from_what_status_calls_killed(space: Workspace) -> None:
    round_ = space.rounds()[0]
    round_.journal.write("started", stage="judge", attempt=2)
    run_all(space, round_)
    assert round_status(round_)["stages"]["judge"]["state"] == "done"

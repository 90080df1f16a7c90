"""Rounds in a workspace in a bucket: the same bytes as in a folder, and machines that come and go."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from flows.bucket import fetched_path
from flows.config import RoundConfig
from flows.load import load_round
from flows.plan import plan_round
from flows.processes.execute import run_step
from flows.workspace import Workspace
from store.errors import RlaifError, UsageError
from store.files import read_lines, write_json
from store.hashing import hash_path
from store.manifest import MANIFEST, need_manifest
from store.remote.bucket import Bucket
from store.stage import redo

from ..judges.answering import Answering
from ..s3 import S3, as_machine
from .conftest import rlaif, small_settings

_numbers = iter(range(1000))


@pytest.fixture
def url(s3: S3) -> str:
    return s3.make_bucket(f"team{next(_numbers)}") + "/rlaif"


PROMPT = "{{ prompt }} {{ first }} {{ second }} 1 or 2?"


@pytest.fixture
def config(tmp_path: Path) -> RoundConfig:
    return load_round("demo", small_settings()[1::2])


def objects(s3: S3, url: str) -> set[str]:
    place = url.removeprefix("s3://").split("/")[0]
    text = httpx.get(f"{s3.url}/{place}?list-type=2&max-keys=1000", timeout=30).text
    return {part.split("</Key>")[0] for part in text.split("<Key>")[1:]}


def test_records_go_both_ways(
    s3: S3, url: str, config: RoundConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two machines take turns: each sees what the other did, and no line of a journal is lost."""
    with as_machine(s3, tmp_path / "one", monkeypatch):
        space = Workspace.create(Path(url))
        assert space.root.is_relative_to(tmp_path / "one")
        with space.locked():
            space.begin_round(config).journal.write("on_one")
    with as_machine(s3, tmp_path / "two", monkeypatch):
        other = Workspace.create(Path(url))
        last = other.last_round()
        assert last is not None
        assert last.config == config
        with other.locked():
            last.journal.write("on_two")
    with as_machine(s3, tmp_path / "one", monkeypatch):
        again = Workspace(Path(url)).last_round()
        assert again is not None
        # As if killed before it was uploaded, while the other machine went on.
        assert [event["event"] for event in again.journal.events()] == ["round_started", "on_one", "on_two"]
        again.journal.write("not_uploaded")
    with as_machine(s3, tmp_path / "two", monkeypatch), (space := Workspace(Path(url))).locked():
        space.rounds()[-1].journal.write("later")
    with as_machine(s3, tmp_path / "one", monkeypatch), (space := Workspace(Path(url))).locked():
        found = space.rounds()[-1]
        kinds = [event["event"] for event in found.journal.events()]
        assert kinds == ["round_started", "on_one", "on_two", "later", "not_uploaded"]
    assert "rlaif/.lease.json" not in objects(s3, url)


def test_one_run_at_a_time_over_machines(
    s3: S3, url: str, config: RoundConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with as_machine(s3, tmp_path / "one", monkeypatch):
        one = Workspace.create(Path(url))
    with as_machine(s3, tmp_path / "two", monkeypatch):
        two = Workspace.create(Path(url))
    with (
        one.locked(),
        pytest.raises(RlaifError, match=r"Another rlaif run works on s3://.*its lease ends in \d+ s"),
        two.locked(),
    ):
        pass
    with two.locked():
        pass


def test_a_stage_without_a_lease_is_refused(
    s3: S3, url: str, config: RoundConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with as_machine(s3, tmp_path / "one", monkeypatch):
        space = Workspace.create(Path(url))
        with space.locked():
            round_ = space.begin_round(config)
        with pytest.raises(RlaifError, match="holds no lease"):
            run_step(plan_round(round_)[0], tmp_path)


def test_what_is_no_workspace_and_what_is_denied(
    s3: S3, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with as_machine(s3, tmp_path / "one", monkeypatch):
        with pytest.raises(UsageError, match=r"s3://team.* is no workspace"):
            Workspace.existing(Path(url))
        with pytest.raises(UsageError, match="is nothing of a round"):
            fetched_path(Path(url) / "registry")
        monkeypatch.setenv("RLAIF_LEASE_SECONDS", "soon")
        with pytest.raises(UsageError, match="'soon' is no number of seconds"), Workspace.create(Path(url)).locked():
            pass
    s3.check_rights()
    try:
        done = rlaif("status", "--workspace", url, **s3.env, RLAIF_CACHE=str(tmp_path / "two"))
    finally:
        s3.check_rights(-1)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert len(done.stderr.splitlines()) == 1, done.stderr


_RUN = """
import sys
from pathlib import Path
from flows.workspace import Workspace
from flows.plan import plan_round
from flows.processes.execute import run_step
space = Workspace.create(Path(sys.argv[1]))
with space.locked():
    round_ = space.last_round()
    for step in plan_round(round_):
        if step.stage in ("sample", "judge"):
            run_step(step, round_.folder / "logs")
"""


@pytest.mark.slow
def test_another_machine_goes_on_with_a_killed_stage(
    s3: S3, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A machine is killed while a judge answers. Another, with nothing of its own, asks only what was not mirrored."""

    def slowly(text: str) -> dict[str, float]:
        time.sleep(0.05)
        return {"1": 0.7, "2": 0.3}

    with Answering(slowly) as judge:
        folder = tmp_path / "judge"
        folder.mkdir()
        about = {"name": "served", "backend": "openai", "model": "m", "base_url": judge.url, "concurrency": 2}
        (folder / "judge.yaml").write_text(json.dumps(about))
        (folder / "prompt.jinja").write_text(PROMPT)
        settings = [*small_settings()[1::2], f"judges=[{folder}]", "sft.enabled=false", "calibration=null"]
        with as_machine(s3, tmp_path / "one", monkeypatch):
            first = Workspace.create(Path(url))
            with first.locked():
                first.begin_round(load_round("demo", [*settings, "judge.pairs_per_prompt=3"]))

        def start(cache: str) -> subprocess.Popen[bytes]:
            fast = {"RLAIF_MIRROR_SECONDS": "0.3", "RLAIF_LEASE_SECONDS": "3", "RLAIF_CACHE": str(tmp_path / cache)}
            env = {**os.environ, **s3.env, **fast}
            return subprocess.Popen([sys.executable, "-c", _RUN, url], env=env, start_new_session=True)

        one = start("one")
        deadline = time.monotonic() + 180
        while len(judge.shown) < 50 and time.monotonic() < deadline and one.poll() is None:
            time.sleep(0.02)
        os.killpg(one.pid, signal.SIGKILL)
        one.wait()
        time.sleep(0.3)
        asked = len(judge.shown)
        assert 50 <= asked < 120
        shutil.rmtree(tmp_path / "one")
        time.sleep(5)  # the lease of the dead machine ends
        assert start("two").wait(180) == 0
        with as_machine(s3, tmp_path / "two", monkeypatch):
            found = Workspace.existing(Path(url)).last_round()
        assert found is not None
        votes = need_manifest(found.stage("judge")).metrics["votes"]
        assert votes["scored"] == votes["attempted"]
        # In 0.3 s and the time of a snapshot two callers get some 20 answers.
        assert len(judge.shown) - votes["attempted"] < 35 < asked
        assert not [key for key in objects(s3, url) if "/.mirror/" in key]


@pytest.mark.slow
def test_a_round_in_a_bucket_is_the_round_in_a_folder(
    finished: Path, s3: S3, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same bytes; status on another machine without its tables; a damaged object is rebuilt, alone."""
    one = {**s3.env, "RLAIF_CACHE": str(tmp_path / "one")}
    two = {**s3.env, "RLAIF_CACHE": str(tmp_path / "two")}
    done = rlaif("run", "demo", "--workspace", url, *small_settings(), **one)
    assert done.returncode == 0, done.stderr
    (copy,) = (tmp_path / "one").glob("*/workspace/rounds/001")
    for name in ("aggregate/preferences.parquet", "reward/model", "ppo/policy"):
        assert hash_path(copy / name) == hash_path(finished / "rounds" / "001" / name), name
    done = rlaif("status", "--json", "--workspace", url, **two)
    assert done.returncode == 0, done.stderr
    value: dict[str, Any] = json.loads(done.stdout)
    assert value["finished"]
    assert value["metrics"]["win_rate"] is not None
    assert not list((tmp_path / "two").rglob("*.parquet"))
    assert not list((tmp_path / "two").rglob("*.safetensors"))

    done = rlaif("lineage", "--verify", f"{url}/rounds/001/ppo/policy", **two)
    assert done.returncode == 0, done.stderr + done.stdout
    assert "Every hash is as recorded" in done.stdout

    shutil.rmtree(tmp_path / "two")
    with as_machine(s3, tmp_path / "three", monkeypatch):
        bucket = Bucket(url)
        bucket.write("rounds/001/aggregate/preferences.parquet", b"damaged")
        bucket.delete(["rounds/001/report.html"])
    done = rlaif("run", "--workspace", url, **two)
    assert done.returncode == 0, done.stderr
    (other,) = (tmp_path / "two").glob("*/workspace/rounds/001")
    events = read_lines(other / "journal.jsonl")
    assert any(event["event"] == "damaged_in_bucket" for event in events)
    last = {event["stage"]: event["event"] for event in events if "stage" in event}
    assert last.pop("aggregate") == "finished"
    assert set(last.values()) == {"reused"}
    with as_machine(s3, tmp_path / "three", monkeypatch):
        stored = Bucket(url).read("rounds/001/aggregate/preferences.parquet")
    assert stored == (finished / "rounds" / "001" / "aggregate" / "preferences.parquet").read_bytes()


def test_a_stage_that_is_to_be_made_again_counts_no_longer_anywhere(
    s3: S3, url: str, config: RoundConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`rlaif run --from` on one machine, which then dies: another finds no result of the stage in the bucket."""
    with as_machine(s3, tmp_path / "one", monkeypatch):
        space = Workspace.create(Path(url))
        with space.locked():
            round_ = space.begin_round(config)
            step = next(step for step in plan_round(round_) if step.stage == "promote")
            evaluation = {"win_rate": {"low": 0.9}, "by_group": {}, "kl": {"mean": 1.0}}
            write_json(tmp_path / "evaluation.json", evaluation)
            policy = tmp_path / "policy"
            write_json(policy / "config.json", {})
            inputs = {"evaluation": [str(tmp_path / "evaluation.json")], "policy": [str(policy)]}
            step = replace(step, inputs=inputs)
            assert not run_step(step, tmp_path).reused
            assert run_step(step, tmp_path).reused
            place = f"rlaif/rounds/001/promote/{MANIFEST}"
            assert place in objects(s3, url)
            redo(step.out, "asked for")
            write_json(tmp_path / "evaluation.json", "broken")
            with pytest.raises(UsageError):
                run_step(step, tmp_path)
            assert place not in objects(s3, url)
            write_json(tmp_path / "evaluation.json", evaluation)
            assert run_step(step, tmp_path).reasons == ["asked for"]
            assert place in objects(s3, url)

"""Law 1: a stage is a function to a directory with a manifest; nothing half-written, nothing done twice."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import time
from pathlib import Path

import pytest

from store.config import Config
from store.errors import RlaifError, UsageError
from store.hashing import hash_path
from store.manifest import read_manifest
from store.stage import Job, Metrics, Source, redo, run_stage


class Knobs(Config):
    n: int = 3


def write_numbers(job: Job[Knobs]) -> Metrics:
    (job.out / "numbers.txt").write_text(" ".join(str(job.seed + i) for i in range(job.config.n)))
    return {"n": job.config.n}


def run(out: Path, function=write_numbers, n: int = 3, seed: int = 1, inputs=None, version: int = 1):
    return run_stage("numbers", function, inputs=inputs or {}, config=Knobs(n=n), seed=seed, out=out, version=version)


def test_a_finished_stage_is_left_alone(tmp_path: Path) -> None:
    first = run(tmp_path / "s")
    stamp = (tmp_path / "s" / "numbers.txt").stat().st_mtime_ns
    again = run(tmp_path / "s", function=lambda job: pytest.fail("ran again"))
    assert not first.reused
    assert again.reused
    assert (tmp_path / "s" / "numbers.txt").stat().st_mtime_ns == stamp
    assert again.manifest == first.manifest


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"n": 4}, "config numbers.n 3 -> 4"),
        ({"seed": 2}, "seed 1 -> 2"),
        ({"version": 2}, "code: stage version 1 -> 2"),
        ({"inputs": {"x": [Source("a/x", "hash")]}}, "input x: a/x is new"),
    ],
)
def test_whatever_makes_the_result_makes_the_key(tmp_path: Path, change: dict, reason: str) -> None:
    run(tmp_path / "s")
    again = run(tmp_path / "s", **change)
    assert not again.reused
    assert again.reasons == [reason]


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        ("delete", "output numbers.txt is missing"),
        ("change", "output numbers.txt is damaged: its sha256 is "),
        ("shorten", "output numbers.txt is damaged: it has 1 bytes instead of 5"),
        ("add", "output more.txt is not in the manifest"),
        ("manifest", "its manifest.json is damaged"),
        ("no manifest", "its manifest.json is missing"),
    ],
)
def test_a_damaged_output_is_rebuilt(tmp_path: Path, damage: str, reason: str) -> None:
    run(tmp_path / "s")
    file = tmp_path / "s" / "numbers.txt"
    if damage == "delete":
        file.unlink()
    elif damage == "change":
        file.write_text("9 9 9")
    elif damage == "shorten":
        file.write_text("9")
    elif damage == "manifest":
        (tmp_path / "s" / "manifest.json").write_text("{")
    elif damage == "no manifest":
        (tmp_path / "s" / "manifest.json").unlink()
    else:
        (tmp_path / "s" / "more.txt").write_text("?")
    again = run(tmp_path / "s")
    assert not again.reused
    assert len(again.reasons) == 1
    assert again.reasons[0].startswith(reason)
    assert [path.name for path in sorted((tmp_path / "s").iterdir())] == ["manifest.json", "numbers.txt"]
    assert file.read_text() == "1 2 3"


def test_a_failing_stage_leaves_what_was_there(tmp_path: Path) -> None:
    run(tmp_path / "s")

    def fail(job: Job[Knobs]) -> Metrics:
        (job.out / "numbers.txt").write_text("half")
        raise RlaifError("no")

    with pytest.raises(RlaifError, match="no"):
        run(tmp_path / "s", function=fail, n=5)
    assert (tmp_path / "s" / "numbers.txt").read_text() == "1 2 3"
    assert run(tmp_path / "s").reused


def test_working_state_survives_for_the_same_key_only(tmp_path: Path) -> None:
    seen: list[bool] = []

    def stumble(job: Job[Knobs]) -> Metrics:
        shard = job.out / ".shards" / "1"
        seen.append(shard.exists())
        shard.parent.mkdir(exist_ok=True)
        shard.write_text("done")
        if len(seen) < 3:
            raise RlaifError("stumbled")
        return write_numbers(job)

    for n in (3, 3):
        with pytest.raises(RlaifError, match="stumbled"):
            run(tmp_path / "s", function=stumble, n=n)
    run(tmp_path / "s", function=stumble, n=4)
    assert seen == [False, True, False]
    assert sorted(path.name for path in (tmp_path / "s").iterdir()) == ["manifest.json", "numbers.txt"]


def _slow(job: Job[Knobs]) -> Metrics:
    (job.out / "numbers.txt").write_text("half")
    (job.out.parent / "started").touch()
    time.sleep(60)
    return {}


def _run_slow(out: str) -> None:
    run(Path(out), function=_slow)


def test_a_kill_leaves_no_stage_and_no_lock(tmp_path: Path) -> None:
    process = multiprocessing.get_context("spawn").Process(target=_run_slow, args=(str(tmp_path / "s"),))
    process.start()
    deadline = time.monotonic() + 60
    while not (tmp_path / "started").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    with pytest.raises(RlaifError, match="Another process is working on"):
        run(tmp_path / "s")
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert not (tmp_path / "s").exists()
    assert not run(tmp_path / "s").reused


def test_a_kill_between_manifest_and_rename_costs_nothing(tmp_path: Path) -> None:
    run(tmp_path / "s")
    (tmp_path / "s").rename(tmp_path / ".s.partial")
    (tmp_path / ".s.partial" / ".shards").mkdir()
    run(tmp_path / "s", function=lambda job: pytest.fail("ran again"))
    assert (tmp_path / "s" / "numbers.txt").read_text() == "1 2 3"
    assert not (tmp_path / "s" / ".shards").exists()


def test_the_manifest_tells_where_it_came_from(tmp_path: Path) -> None:
    source = tmp_path / "in.txt"
    source.write_text("hello")
    run(tmp_path / "s", inputs={"text": [Source(str(source), hash_path(source))]})
    manifest = read_manifest(tmp_path / "s")
    assert manifest is not None
    assert manifest.inputs == {"text": [{"value": str(source), "identity": hash_path(source)}]}
    assert manifest.config == {"n": 3}
    assert manifest.outputs["numbers.txt"].sha256 == hash_path(tmp_path / "s" / "numbers.txt")
    assert manifest.peak_rss_mb > 1


def test_a_newer_manifest_is_named(tmp_path: Path) -> None:
    run(tmp_path / "s")
    path = tmp_path / "s" / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "manifest_version": 99}))
    with pytest.raises(UsageError, match="manifest version 99"):
        run(tmp_path / "s")


def test_an_unwritable_place_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UsageError, match="in the way"):
        run(tmp_path / "file" / "s")


def test_a_stage_set_aside_is_made_again_even_after_a_failure(tmp_path: Path) -> None:
    run(tmp_path / "s")
    redo(tmp_path / "s", "asked for")
    assert read_manifest(tmp_path / "s") is None

    def fail(job: Job[Knobs]) -> Metrics:
        raise RlaifError("no")

    with pytest.raises(RlaifError, match="no"):
        run(tmp_path / "s", function=fail)
    assert run(tmp_path / "s").reasons == ["asked for"]
    assert run(tmp_path / "s").reused


def test_to_set_aside_drops_work_of_earlier_tries(tmp_path: Path) -> None:
    def stumble(job: Job[Knobs]) -> Metrics:
        assert not (job.out / ".shard").exists()
        (job.out / ".shard").touch()
        raise RlaifError("stumbled")

    for _ in range(2):
        with pytest.raises(RlaifError, match="stumbled"):
            run(tmp_path / "s", function=stumble)
        redo(tmp_path / "s", "asked for")


def test_a_manifest_of_the_first_version_is_read(tmp_path: Path) -> None:
    run(tmp_path / "s")
    path = tmp_path / "s" / "manifest.json"
    value = json.loads(path.read_text())
    del value["parts"]
    path.write_text(json.dumps({**value, "manifest_version": 1}))
    assert run(tmp_path / "s").reused


@pytest.mark.parametrize("year", [1980, 2099])
def test_clocks_decide_nothing(tmp_path: Path, year: int) -> None:
    """A clock that jumped leaves files from the future or the past: content hashes alone say what is done."""
    source = tmp_path / "in.txt"
    source.write_text("hello")
    inputs = {"text": [Source(str(source), hash_path(source))]}
    run(tmp_path / "s", inputs=inputs)
    stamp = (year - 1970) * 365.25 * 86400
    for path in [source, *(tmp_path / "s").iterdir(), tmp_path / "s"]:
        os.utime(path, (stamp, stamp))
    assert run(tmp_path / "s", inputs=inputs).reused

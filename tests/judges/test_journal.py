"""The journal: no vote is lost, none is paid for twice, and the table is the same whatever happened on the way."""

from __future__ import annotations

import json
import random
import resource
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from judges.journal import Journal
from judges.judge import Judge
from judges.pairs import pairs_to_table
from judges.panel import judge_pairs
from store.errors import RlaifError
from store.schemas import PAIRS, VOTES
from store.tables import read_table, write_table

from .conftest import PROMPT, Folder, make_pair
from .recording_server import CONCURRENCY, IN_FLIGHT, RecordingServer, finish, kill_after, start
from .votes_builder import vote

MANY = [make_pair(number) for number in range(150)]
SOME = MANY[:20]


@pytest.fixture
def server() -> Iterator[RecordingServer]:
    running = RecordingServer()
    yield running
    running.close()


@pytest.fixture
def served(judge_folder: Folder, server: RecordingServer) -> Path:
    """The folder of a judge behind the recording server."""
    about: dict[str, Any] = {"backend": "openai", "model": "m", "base_url": server.url, "concurrency": CONCURRENCY}
    return judge_folder("served", PROMPT, **about)


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    return write_table(tmp_path / "pairs.parquet", PAIRS, pairs_to_table(MANY))


def content(votes: pa.Table | Path, tmp_path: Path) -> bytes:
    """The bytes of the votes as parquet, the clock's column set to 0."""
    table = read_table(votes, VOTES) if isinstance(votes, Path) else votes
    at = VOTES.schema.get_field_index("latency_s")
    table = table.set_column(at, VOTES.schema.field(at), pa.array([0.0] * table.num_rows))
    return write_table(tmp_path / "without-latency.parquet", VOTES, table).read_bytes()


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for path in sorted(folder.rglob("*.jsonl")) for line in path.read_text().splitlines()]


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
def test_kills_at_random_instants_cost_no_more_than_what_was_in_flight(
    served: Path, pairs: Path, server: RecordingServer, tmp_path: Path, seed: int
) -> None:
    chance = random.Random(seed)
    arguments = (served, pairs, tmp_path / "shards", 40, tmp_path / "votes.parquet")
    kills = 0
    while kills < 4:
        calls = server.calls.total() + chance.randint(1, 80)
        assert kill_after(start(*arguments), server, calls), "the run ended before it was to be killed"
        kills += 1
        kept = lines_of_whole_rows(tmp_path / "shards")
        assert len(server.calls) - len(kept) <= IN_FLIGHT, "an answer that arrived was not journalled"
    finish(start(*arguments))
    unique = 2 * len(MANY)
    assert len(server.calls) == unique
    print(f"{kills} kills: {server.calls.total() - unique} calls repeated, {IN_FLIGHT * kills} allowed")
    assert unique <= server.calls.total() <= unique + IN_FLIGHT * kills
    assert max(server.calls.values()) <= 1 + kills
    finish(start(served, pairs, tmp_path / "whole", 10**6, tmp_path / "whole.parquet"))
    assert content(tmp_path / "votes.parquet", tmp_path) == content(tmp_path / "whole.parquet", tmp_path)
    paid = server.calls.total()
    finish(start(*arguments))
    assert server.calls.total() == paid, "a finished journal is only read"


def lines_of_whole_rows(folder: Path) -> set[str]:
    found = set()
    for path in folder.rglob("*.jsonl"):
        for line in path.read_bytes().splitlines(keepends=True):
            if line.endswith(b"\n"):
                found.add(json.loads(line)["vote_id"])
    return found


@pytest.mark.slow
def test_two_processes_write_to_the_same_folder_at_once(
    served: Path, pairs: Path, server: RecordingServer, tmp_path: Path
) -> None:
    both = [start(served, pairs, tmp_path / "shards", 7, tmp_path / f"{name}.parquet") for name in ("one", "two")]
    for process in both:
        finish(process)
    shards = list((tmp_path / "shards").rglob("*.jsonl"))
    assert len(shards) >= 2 * len(MANY) / 7
    assert all(len(path.read_text().splitlines()) <= 7 for path in shards)
    finish(start(served, pairs, tmp_path / "alone", 7, tmp_path / "alone.parquet"))
    alone = content(tmp_path / "alone.parquet", tmp_path)
    assert content(tmp_path / "one.parquet", tmp_path) == content(tmp_path / "two.parquet", tmp_path) == alone


@pytest.mark.parametrize("shard_rows", [1, 7, 10**6])
def test_any_number_of_shards_makes_the_same_file(rubric_judge: Judge, tmp_path: Path, shard_rows: int) -> None:
    plain = judge_pairs([rubric_judge], SOME, seed=0)
    part = judge_pairs([rubric_judge], SOME[::3], seed=0, shards=tmp_path / "shards", shard_rows=shard_rows)
    assert part.num_rows == 14
    whole = judge_pairs([rubric_judge], SOME, seed=0, shards=tmp_path / "shards", shard_rows=shard_rows)
    assert content(whole, tmp_path) == content(plain, tmp_path)
    shards = sorted((tmp_path / "shards").rglob("*.jsonl"))
    assert len(shards) == {1: 40, 7: 2 + 4, 10**6: 2}[shard_rows]
    assert len(lines(tmp_path / "shards")) == 40


def damaged(folder: Path, row: dict[str, Any]) -> None:
    """What a journal's folder may hold beside rows."""
    whole = json.dumps(row)
    (folder / "000100.jsonl").touch()
    (folder / "000101.jsonl").write_text(whole[: len(whole) // 2])
    (folder / "000102.jsonl").write_text(whole[:30] + "\n" + '{"vote_id": "an older one"}\n' + whole[-30:] + "\n")
    foreign = ["[1, 2]", "3", "null", '"text"', "{}", '{"vote_id": [1]}', json.dumps({"vote_id": row["vote_id"]})]
    (folder / "foreign.jsonl").write_text("\n".join(foreign) + "\n\n")
    (folder / "binary.jsonl").write_bytes(bytes(range(256)) * 3)
    (folder / "notes.txt").write_text("mine")
    (folder / "folder.jsonl").mkdir()


def test_what_is_no_row_is_left_alone(rubric_judge: Judge, tmp_path: Path) -> None:
    plain = judge_pairs([rubric_judge], SOME, seed=0)
    folder = tmp_path / "shards" / rubric_judge.fingerprint
    judge_pairs([rubric_judge], SOME[:10], seed=0, shards=tmp_path / "shards")
    damaged(folder, {**lines(folder)[0], "pair_id": "x", "vote_id": plain["vote_id"][39].as_py()})
    before = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    again = judge_pairs([rubric_judge], SOME, seed=0, shards=tmp_path / "shards")
    assert content(again, tmp_path) == content(plain, tmp_path)
    assert {name: (folder / name).read_bytes() for name in before} == before, "no shard is written twice"


def test_a_torn_line_costs_its_own_vote_only(rubric_judge: Judge, tmp_path: Path) -> None:
    plain = judge_pairs([rubric_judge], SOME, seed=0, shards=tmp_path / "whole")
    (shard,) = (tmp_path / "whole").rglob("*.jsonl")
    data = shard.read_bytes()
    for at in random.Random(5).sample(range(len(data)), 12):
        folder = tmp_path / str(at) / rubric_judge.fingerprint
        folder.mkdir(parents=True)
        (folder / shard.name).write_bytes(data[:at])
        told: list[int] = []
        again = judge_pairs(
            [rubric_judge],
            SOME,
            seed=0,
            shards=folder.parent,
            progress=lambda what, done, total, note="", told=told: told.append(done),
        )
        # A row whose line end alone is missing is whole.
        assert told[0] in (data[:at].count(b"\n"), data[: at + 1].count(b"\n"))
        assert content(again, tmp_path) == content(plain, tmp_path)


@contextmanager
def small_files(size: int) -> Iterator[None]:
    """No file of this process may grow beyond `size` bytes: what a full disk does, in the middle of a row."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_file_that_cannot_grow_is_said_and_what_was_written_stays(rubric_judge: Judge, tmp_path: Path) -> None:
    told: list[int] = []
    about: dict[str, Any] = {
        "seed": 0,
        "shards": tmp_path / "shards",
        "progress": lambda what, done, total, note="": told.append(done),
    }
    with (
        pytest.raises(RlaifError, match=r"No space left on the disk while writing .*shards") as caught,
        small_files(6000),
    ):
        judge_pairs([rubric_judge], SOME, **about)
    assert rubric_judge.fingerprint in str(caught.value)
    (shard,) = (tmp_path / "shards").rglob("*.jsonl")
    kept = shard.read_bytes()
    assert len(kept) == 6000
    assert kept.count(b"\n") == told[-1] > 2
    before = told[-1]
    told.clear()
    # With room again: only what is missing is asked.
    again = judge_pairs([rubric_judge], SOME, **about)
    assert told[0] == before
    assert content(again, tmp_path) == content(judge_pairs([rubric_judge], SOME, seed=0), tmp_path)


@pytest.fixture
def full_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 16 KiB."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = shutil.which("mount")
    made = mount and subprocess.run(
        [mount, "-t", "tmpfs", "-o", "size=16k", "tmpfs", str(place)], capture_output=True, check=False
    )
    if not made or made.returncode:
        pytest.skip("only an administrator may mount a small file system")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_a_full_disk_is_said_and_nothing_is_lost(rubric_judge: Judge, full_disk: Path, tmp_path: Path) -> None:
    with pytest.raises(RlaifError, match="No space left on the disk while writing"):
        judge_pairs([rubric_judge], SOME, seed=0, shards=full_disk)
    (shard,) = full_disk.rglob("*.jsonl")
    kept = shard.read_bytes()
    assert kept.count(b"\n") > 2
    folder = tmp_path / "shards" / rubric_judge.fingerprint
    folder.mkdir(parents=True)
    shutil.copy(shard, folder)
    told: list[int] = []
    again = judge_pairs(
        [rubric_judge],
        SOME,
        seed=0,
        shards=tmp_path / "shards",
        progress=lambda what, done, total, note="": told.append(done),
    )
    assert told[0] == kept.count(b"\n")
    assert content(again, tmp_path) == content(judge_pairs([rubric_judge], SOME, seed=0), tmp_path)


def test_an_answer_counts_before_an_error_wherever_it_is(tmp_path: Path) -> None:
    answers = [vote("p", "j", "ab", 0.8), vote("q", "j", "ab", 0.7)]
    errors = [vote("p", "j", "ab", None, "error"), vote("q", "j", "ab", None, "error")]
    for name, rows in (("000000", [answers[0], errors[1]]), ("000001", [errors[0], answers[1]])):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    journal = Journal(tmp_path, VOTES, [row["vote_id"] for row in answers])
    assert journal.missing() == 0
    assert (journal.counts["scored"], journal.counts["error"]) == (2, 0)
    assert {row["pair_id"]: row["p_a"] for row in journal.table().to_pylist()} == {"p": 0.8, "q": 0.7}


def test_errors_are_asked_for_again(tmp_path: Path) -> None:
    error = vote("p", "j", "ab", None, "error")
    with Journal(tmp_path, VOTES, [error["vote_id"]]) as first:
        first.append(error, transient=True)
    assert first.table().to_pylist()[0]["status"] == "error"
    second = Journal(tmp_path, VOTES, [error["vote_id"]])
    assert (second.missing(), second.counts.total()) == (1, 0)
    with second:
        second.append(vote("p", "j", "ab", 0.8))
    assert second.table()["p_a"].to_pylist() == [0.8]

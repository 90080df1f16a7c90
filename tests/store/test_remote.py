"""Stage directories, the lease and the mirror against a real S3 server in process."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from store.config import Config
from store.errors import RlaifError, TransientError, UsageError
from store.manifest import MANIFEST, need_manifest
from store.remote import folders
from store.remote.bucket import Bucket, ConflictError, remote_url
from store.remote.lease import KEY, Lease
from store.remote.mirror import Mirror
from store.stage import Job, run_stage

from ..s3 import S3

_numbers = iter(range(1000))


@pytest.fixture
def bucket(s3: S3, monkeypatch: pytest.MonkeyPatch) -> Bucket:
    for name, value in s3.env.items():
        monkeypatch.setenv(name, value)
    return Bucket(s3.make_bucket(f"bucket{next(_numbers)}") + "/some/prefix")


def make(folder: Path, files: dict[str, str], seed: int = 0) -> Path:
    """A finished stage directory with these outputs."""

    def stage(job: Job[Any]) -> dict[str, Any]:
        for name, text in files.items():
            (job.out / name).parent.mkdir(parents=True, exist_ok=True)
            (job.out / name).write_text(text)
        return {}

    run_stage("test", stage, inputs={}, config=Config(), seed=seed, out=folder)
    return folder


FILES = {"a.txt": "one", "model/b.txt": "two", "empty": ""}


def test_objects(bucket: Bucket) -> None:
    bucket.check()
    assert bucket.keys() == {}
    assert bucket.read("no") is None
    etag = bucket.write("x/y", b"1", new=True)
    with pytest.raises(ConflictError):
        bucket.write("x/y", b"2", new=True)
    other = bucket.write("x/y", b"22", instead_of=etag)
    with pytest.raises(ConflictError):
        bucket.write("x/y", b"3", instead_of=etag)
    found = bucket.fetch("x/y")
    assert found is not None
    assert (found.data, found.etag) == (b"22", other)
    assert abs((found.now - found.modified).total_seconds()) < 30
    assert bucket.keys("x") == {"x/y": 2}
    bucket.delete(["x/y", "never there"])
    assert bucket.keys() == {}
    with pytest.raises(ConflictError):
        bucket.write("x/y", b"4", instead_of=other)


def test_addresses() -> None:
    assert remote_url(Path("s3://b/p/q")) == remote_url("s3://b/p/q/") == "s3://b/p/q"
    assert remote_url(Path("s3://b/p").resolve()) == "s3://b/p"
    assert remote_url(Path("work/s3")) is None
    with pytest.raises(UsageError, match="names no bucket"):
        remote_url("s3://")


def test_a_directory_comes_back_as_it_was(bucket: Bucket, tmp_path: Path) -> None:
    here = make(tmp_path / "here" / "stage", FILES)
    assert folders.push(bucket, "r/stage", here)
    assert not folders.push(bucket, "r/stage", here), "nothing is sent twice"
    there = tmp_path / "there" / "stage"
    assert folders.pull(bucket, "r/stage", there) == {}
    assert need_manifest(there) == need_manifest(here)
    assert {path.relative_to(there).as_posix() for path in there.rglob("*") if path.is_file()} == {*FILES, MANIFEST}
    (there / "a.txt").write_text("damaged here")
    folders.pull(bucket, "r/stage", there)
    assert (there / "a.txt").read_text() == "one"


def test_a_new_result_replaces_the_old_one_whole(bucket: Bucket, tmp_path: Path) -> None:
    folders.push(bucket, "r/stage", make(tmp_path / "one" / "stage", FILES))
    here = make(tmp_path / "two" / "stage", {"a.txt": "new"}, seed=1)
    folders.push(bucket, "r/stage", here)
    assert set(bucket.keys("r")) == {"r/stage/a.txt", f"r/stage/{MANIFEST}"}
    there = tmp_path / "one" / "stage"
    folders.pull(bucket, "r/stage", there)
    assert (there / "a.txt").read_text() == "new"
    assert not (there / "model").exists()


def test_a_damaged_or_lost_object_is_found_and_not_taken_over(bucket: Bucket, tmp_path: Path) -> None:
    here = make(tmp_path / "here" / "stage", FILES)
    folders.push(bucket, "r/stage", here)
    bucket.write("r/stage/a.txt", b"on3")
    bucket.delete(["r/stage/model/b.txt"])
    there = tmp_path / "there" / "stage"
    assert folders.pull(bucket, "r/stage", there) == {"a.txt": "damaged", "model/b.txt": "missing"}
    assert not there.exists()
    make(there, FILES)
    folders.withdraw(bucket, "r/stage")  # else a manifest with the same bytes would say that all is there
    folders.push(bucket, "r/stage", there)
    assert bucket.read("r/stage/a.txt") == b"one"
    bucket.write(f"r/stage/{MANIFEST}", b"{")
    assert folders.pull(bucket, "r/stage", tmp_path / "third") == {MANIFEST: "damaged"}


def test_what_was_retired_is_not_missed_until_it_is_made_again(bucket: Bucket, tmp_path: Path) -> None:
    files = {**FILES, "model-card.md": "three"}
    folders.push(bucket, "r/stage", make(tmp_path / "here" / "stage", files))
    folders.retire(bucket, "r/stage/model")
    folders.retire(bucket, "r/stage/model")
    folders.retire(bucket, "r/stage/empty")
    kept = {"r/stage/a.txt", "r/stage/model-card.md", f"r/stage/{MANIFEST}"}
    assert set(bucket.keys("r")) == {*kept, f"r/stage/{folders.RETIRED}"}
    there = tmp_path / "there" / "stage"
    assert folders.pull(bucket, "r/stage", there) == {}
    assert {path.name for path in there.rglob("*") if path.is_file()} == {"a.txt", "model-card.md", MANIFEST}
    folders.push(bucket, "r/stage", make(tmp_path / "again" / "stage", files, seed=1))
    assert set(bucket.keys("r")) == {*kept, "r/stage/model/b.txt", "r/stage/empty"}
    bucket.delete(["r/stage/model/b.txt"])
    assert folders.pull(bucket, "r/stage", there) == {"model/b.txt": "missing"}


def test_what_is_in_no_complete_directory_is_merely_deleted(bucket: Bucket) -> None:
    bucket.write("r/.mirror/judge/index.json", b"{}")

    def lost() -> None:
        raise RlaifError("lost")

    with pytest.raises(RlaifError, match="lost"):
        folders.retire(bucket, "r/.mirror", lost)
    assert len(bucket.keys()) == 1
    folders.retire(bucket, "r/.mirror")
    assert bucket.keys() == {}


def test_the_manifest_is_last_and_only_the_holder_writes_it(bucket: Bucket, tmp_path: Path) -> None:
    here = make(tmp_path / "stage", FILES)

    def lost() -> None:
        assert set(bucket.keys("r/stage")) == {f"r/stage/{name}" for name in FILES}
        raise RlaifError("lost")

    with pytest.raises(RlaifError, match="lost"):
        folders.push(bucket, "r/stage", here, lost)
    assert bucket.read(f"r/stage/{MANIFEST}") is None


_PUSH = """
import sys
from pathlib import Path
from store.remote.bucket import Bucket
from store.remote.folders import push
push(Bucket(sys.argv[1]), "r/stage", Path(sys.argv[2]))
"""


@pytest.mark.slow
def test_killed_in_the_middle_of_an_upload(bucket: Bucket, tmp_path: Path) -> None:
    """A SIGKILL while objects go up leaves no complete directory; the next run uploads it and all is there."""
    here = make(tmp_path / "stage", {f"part-{n:03d}": "x" * 20_000 for n in range(200)})
    process = subprocess.Popen([sys.executable, "-c", _PUSH, bucket.url, str(here)])
    deadline = time.monotonic() + 60
    while not bucket.keys("r") and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    sent = bucket.keys("r")
    assert 0 < len(sent) < 201
    assert f"r/stage/{MANIFEST}" not in sent
    assert folders.pull(bucket, "r/stage", tmp_path / "other") == {}
    assert not (tmp_path / "other").exists()
    folders.push(bucket, "r/stage", here)
    folders.pull(bucket, "r/stage", tmp_path / "other")
    assert need_manifest(tmp_path / "other") == need_manifest(here)


def test_a_directory_that_was_complete_is_not_while_another_is_uploaded(bucket: Bucket, tmp_path: Path) -> None:
    folders.push(bucket, "r/stage", make(tmp_path / "one" / "stage", FILES))
    uploads: list[Path] = []

    class Breaking(Bucket):
        def upload(self, path: Path, key: str) -> None:
            uploads.append(path)
            raise TransientError("away")

    with pytest.raises(TransientError):
        folders.push(Breaking(bucket.url), "r/stage", make(tmp_path / "two" / "stage", {"a.txt": "new"}, seed=1))
    assert uploads
    assert bucket.read(f"r/stage/{MANIFEST}") is None


def test_a_lease_is_for_one(bucket: Bucket) -> None:
    with Lease(bucket, "one", 60) as lease:
        lease.check()
        with pytest.raises(
            RlaifError, match=r"Another rlaif run works on .* process \d+.* its lease ends in [1-6]\d s"
        ):
            Lease(bucket, "two", 60).__enter__()
        with Lease(bucket, "one", 60):
            pass  # a run that was killed on this machine goes on at once
    assert bucket.read(KEY) is None
    with Lease(bucket, "two", 60):
        pass


@pytest.mark.slow
def test_a_lease_lives_while_it_is_renewed_and_ends_after_a_kill(bucket: Bucket) -> None:
    with Lease(bucket, "one", 1.5):
        time.sleep(4)
        with pytest.raises(RlaifError, match="Another rlaif run"):
            Lease(bucket, "two", 1.5).__enter__()
    bucket.write(KEY, json.dumps({"id": "killed", "host": "h", "user": "u", "ttl_s": 2}).encode())
    with pytest.raises(RlaifError, match="u on h"):
        Lease(bucket, "two", 60).__enter__()
    time.sleep(4)
    with Lease(bucket, "two", 60):
        pass


def test_who_lost_the_lease_writes_no_more(bucket: Bucket) -> None:
    with Lease(bucket, "one", 0.9) as lease:
        bucket.write(KEY, json.dumps({"id": "two", "ttl_s": 60}).encode())
        time.sleep(1.5)
        with pytest.raises(RlaifError, match="lost its lease"):
            lease.check()
    assert bucket.read(KEY) is not None, "it is the other's"


def test_a_lease_that_nobody_took_meanwhile_is_still_ours(bucket: Bucket) -> None:
    """A machine that was cut off for longer than the lease, and found it as it left it."""
    with Lease(bucket, "one", 600) as lease:
        lease._renewed -= 1000
        lease.check()
        lease._renewed -= 1000
        bucket.write(KEY, json.dumps({"id": "two", "ttl_s": 60}).encode())
        with pytest.raises(RlaifError, match=r"lost its lease .*another run took it"):
            lease.check()


def nothing() -> None: ...


def test_another_machine_goes_on_from_the_mirror(bucket: Bucket, tmp_path: Path) -> None:
    def mirror(name: str) -> Mirror:
        return Mirror(bucket, "r/.mirror/judge", tmp_path / name / ".judge.partial", name, 3600, nothing)

    folder = tmp_path / "one" / ".judge.partial"
    (folder / ".shards").mkdir(parents=True)
    (folder / ".key").write_text("k")
    (folder / ".shards" / "000000.jsonl").write_text("1\n2\n")
    (folder / ".checkpoints" / "update-000002").mkdir(parents=True)
    (folder / ".checkpoints" / "update-000002" / "policy").write_text("weights")
    with mirror("one") as first:
        assert first.snapshot()
        with (folder / ".shards" / "000000.jsonl").open("a") as file:
            file.write("3\n")
    assert len(bucket.keys("r")) == 4, "what is stale is deleted"
    assert not mirror("one").restore(), "its own copy is at least as far"
    second = mirror("two")
    assert second.restore()
    found = tmp_path / "two" / ".judge.partial"
    assert (found / ".shards" / "000000.jsonl").read_text() == "1\n2\n3\n"
    assert (found / ".checkpoints" / "update-000002" / "policy").read_text() == "weights"
    with second:
        (found / ".shards" / "000000.jsonl").write_text("1\n2\n3\n4\n")
    (folder / ".shards" / "000000.jsonl").write_text("1\n2\n3\nown\n")
    assert mirror("one").restore()
    kept = {path.read_text() for path in (folder / ".shards").iterdir()}
    assert kept == {"1\n2\n3\n4\n", "1\n2\n3\nown\n"}, "no row that was paid for is thrown away"
    second.drop()
    assert bucket.keys("r") == {}
    assert not mirror("three").restore()


def test_a_snapshot_is_of_one_moment(bucket: Bucket, tmp_path: Path) -> None:
    """Checkpoints are replaced while they are copied: what is restored is never half of one and half of another."""
    folder = tmp_path / ".ppo.partial"
    stop = threading.Event()

    def train() -> None:
        number = 0
        while not stop.is_set():
            beside = folder / ".checkpoints" / f".update-{number}.tmp"
            beside.mkdir(parents=True)
            for part in range(5):
                (beside / f"part{part}").write_text(str(number))
            beside.rename(folder / ".checkpoints" / f"update-{number}")
            old = folder / ".checkpoints" / f"update-{number - 1}"
            if old.exists():
                old.rename(trash := old.with_name(f".{number}.trash"))
                for path in trash.iterdir():
                    path.unlink()
                trash.rmdir()
            number += 1
            time.sleep(0.03 * 1.03 ** min(number, 150))  # ever slower, so that a busy machine comes to a whole one too

    thread = threading.Thread(target=train)
    thread.start()
    mirror = Mirror(bucket, "m", folder, "one", 3600, nothing)
    made = 0
    deadline = time.monotonic() + 120
    try:
        while made < 5 and time.monotonic() < deadline:
            made += mirror.snapshot()
    finally:
        stop.set()
        thread.join()
    assert made
    other = Mirror(bucket, "m", tmp_path / "other" / ".ppo.partial", "two", 3600, nothing)
    other._folder.parent.mkdir()
    assert other.restore()
    found = list((other._folder / ".checkpoints").iterdir())
    assert found
    for one in found:
        texts = [path.read_text() for path in sorted(one.iterdir())]
        assert texts in ([one.name.removeprefix("update-")] * 5,)


Break = Callable[[pytest.MonkeyPatch, S3], None]


def _no_credentials(patch: pytest.MonkeyPatch, s3: S3) -> None:
    patch.delenv("AWS_ACCESS_KEY_ID")
    patch.delenv("AWS_SECRET_ACCESS_KEY")


def _refused(patch: pytest.MonkeyPatch, s3: S3) -> None:
    patch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")


def _denied(patch: pytest.MonkeyPatch, s3: S3) -> None:
    s3.check_rights()


@pytest.mark.parametrize(
    ("broken", "name", "kind", "said"),
    [
        (None, "s3://never-made/p", UsageError, "The bucket of s3://never-made/p does not exist: create it"),
        (_no_credentials, None, UsageError, "There are no credentials for s3://.*: set AWS_ACCESS_KEY_ID"),
        (_refused, None, TransientError, "http://127.0.0.1:9 of s3://.* did not list .*run again later"),
        (_denied, None, UsageError, "refuses the credentials|is denied"),
    ],
)
def test_what_is_wrong_with_a_bucket_is_one_sentence(
    bucket: Bucket,
    s3: S3,
    monkeypatch: pytest.MonkeyPatch,
    broken: Break | None,
    name: str | None,
    kind: type[RlaifError],
    said: str,
) -> None:
    if broken:
        broken(monkeypatch, s3)
    try:
        with pytest.raises(kind, match=said) as caught:
            Bucket(name or bucket.url).check()
    finally:
        s3.check_rights(-1)
    assert "\n" not in str(caught.value)
    assert str(caught.value).endswith(".")

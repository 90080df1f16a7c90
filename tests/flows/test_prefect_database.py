"""A new workspace's Prefect database begins as a copy of the one that this machine keeps."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from flows.cache import cache_folder
from flows.prefect_api import prefect_api
from flows.prefect_database import begin_database, keep_database


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RLAIF_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def made(path: Path) -> Path:
    """As a server leaves it: migrated, with a log beside it, and open."""
    with closing(sqlite3.connect(path)) as database, database:
        database.execute("pragma journal_mode = wal")
        database.execute("create table alembic_version (version_num text)")
        database.execute("insert into alembic_version values ('abc')")
    return path


def versions(path: Path) -> list[str]:
    with closing(sqlite3.connect(path)) as database:
        return [row[0] for row in database.execute("select version_num from alembic_version")]


def test_the_first_is_kept_and_the_next_is_a_copy(tmp_path: Path, cache: Path) -> None:
    assert begin_database(tmp_path / "one.db")
    assert not (tmp_path / "one.db").exists()
    with closing(sqlite3.connect(made(tmp_path / "one.db"))) as server:
        server.execute("select * from alembic_version").fetchall()
        keep_database(tmp_path / "one.db")
    assert not begin_database(tmp_path / "two.db")
    assert versions(tmp_path / "two.db") == ["abc"]
    assert [path.suffix for path in cache.iterdir()] == [".db"], "no log and no half of a file"


def test_a_database_that_is_there_is_left_alone(tmp_path: Path) -> None:
    keep_database(made(tmp_path / "one.db"))
    (tmp_path / "mine.db").write_bytes(b"mine")
    assert not begin_database(tmp_path / "mine.db")
    assert (tmp_path / "mine.db").read_bytes() == b"mine"


@pytest.mark.parametrize("harm", [lambda data: data[:5000], lambda data: b"", lambda data: b"x" * 9000])
def test_a_damaged_one_is_not_used_and_replaced(tmp_path: Path, cache: Path, harm: object) -> None:
    keep_database(made(tmp_path / "one.db"))
    (kept,) = cache.iterdir()
    kept.write_bytes(harm(kept.read_bytes()))  # type: ignore[operator]
    assert begin_database(tmp_path / "two.db")
    assert not (tmp_path / "two.db").exists()
    keep_database(tmp_path / "one.db")
    assert not begin_database(tmp_path / "two.db")


def test_a_cache_that_cannot_be_written_harms_nothing(tmp_path: Path, cache: Path) -> None:
    cache.write_text("a file is in the way")
    assert begin_database(tmp_path / "one.db")
    keep_database(made(tmp_path / "one.db"))
    assert versions(tmp_path / "one.db") == ["abc"]
    assert not (tmp_path / "two.db").exists()


def test_where_the_cache_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert cache_folder() == tmp_path / "cache"
    monkeypatch.delenv("RLAIF_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "rlaif"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "rlaif"


@pytest.mark.slow
def test_two_servers_one_after_the_other(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second works on a copy of what the first one made, and knows nothing of what happened in it."""
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    import httpx

    schemas, kept = [], []
    for name in ("one", "two"):
        with prefect_api(tmp_path / name) as url:
            flow = httpx.post(f"{url}/flows/", json={"name": f"flow-{name}"}, timeout=60)
            assert flow.status_code == 201
            assert [row["name"] for row in httpx.post(f"{url}/flows/filter", json={}, timeout=60).json()] == [
                f"flow-{name}"
            ]
        with closing(sqlite3.connect(tmp_path / name / "prefect.db")) as database:
            schemas.append(database.execute("select name, sql from sqlite_master order by name").fetchall())
        kept.append(next(cache.glob("*.db")).read_bytes())
    assert schemas[0] == schemas[1]
    assert kept[0] == kept[1], "the kept one is not written to again"

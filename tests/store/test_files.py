"""Files are whole or not there, also when the disk is full; lines survive a torn end."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from store.errors import RlaifError
from store.files import append_line, atomic_write, read_lines, write_json
from store.hashing import hash_path, short_id


def test_a_failed_write_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_text("old")
    with pytest.raises(RuntimeError), atomic_write(path) as beside:  # noqa: PT012
        beside.write_text("half")
        raise RuntimeError
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_full_disk_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(RlaifError, match="No space left") as caught, atomic_write(tmp_path / "f"):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert caught.value.exit_code == 1
    assert list(tmp_path.iterdir()) == []


def test_a_really_full_disk(tmp_path: Path) -> None:
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("this system has no /dev/full")
    with pytest.raises(RlaifError, match="No space left"):
        append_line(full, "x" * 10)


def test_a_torn_line_loses_only_itself(tmp_path: Path) -> None:
    path = tmp_path / "lines"
    append_line(path, '{"a": 1}')
    with path.open("a") as file:
        file.write('{"b": ')
    append_line(path, '{"c": 3}')
    assert read_lines(path) == [{"a": 1}, {"c": 3}]


def test_json_refuses_what_is_no_json(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="Out of range"):
        write_json(tmp_path / "f", {"x": float("nan")})
    assert not (tmp_path / "f").exists()


def test_hashes_see_content_and_names_only(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x").write_text("1")
        (tmp_path / name / "manifest.json").write_text(name)
        (tmp_path / name / ".hidden").write_text(name)
    assert hash_path(tmp_path / "a") == hash_path(tmp_path / "b")
    (tmp_path / "b" / "x").rename(tmp_path / "b" / "y")
    assert hash_path(tmp_path / "a") != hash_path(tmp_path / "b")


def test_ids_do_not_run_parts_together() -> None:
    assert short_id("ab", "c") != short_id("a", "bc")
    assert short_id("1") != short_id(1)

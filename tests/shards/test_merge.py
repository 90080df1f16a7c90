"""Parts of any number and size give the file that the whole table gives."""

from __future__ import annotations

import random
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from flows.shards.merge import merged, one_of, open_parts, write_merged
from store.errors import UsageError
from store.hashing import hash_file, short_id
from store.schemas import VOTES
from store.table_writer import TableWriter
from store.tables import write_table


def votes(pairs: int) -> pa.Table:
    rows = []
    for number in range(pairs):
        pair = short_id("pair", number)
        for judge in ("one", "two"):
            for order in ("ab", "ba"):
                row = {"vote_id": short_id(pair, judge, order), "pair_id": pair, "prompt_id": f"p{number}"}
                row |= {"rollout_a": "a", "rollout_b": "b", "judge": judge, "fingerprint": judge, "order": order}
                row |= {"status": "scored", "tokens_in": number, "tokens_out": 1, "cost": 0.0, "latency_s": 0.0}
                rows.append({**row, "attempts": 1, "winner": "a", "p_a": 0.75, "rationale": "because " * (number % 9)})
    return pa.Table.from_pylist(rows, schema=VOTES.schema)


def ordered(table: pa.Table) -> pa.Table:
    return table.sort_by([(name, "ascending") for name in ("pair_id", "judge", "order")]).combine_chunks()


def write_parts(table: pa.Table, number: int, folder: Path, chance: random.Random) -> list[Path]:
    """Every row in one of so many parts, both orders of all judges on a pair together, as shards are."""
    folder.mkdir()
    names = sorted(set(table["pair_id"].to_pylist()))
    place = {name: chance.randrange(number) for name in names}
    paths = []
    for part in range(number):
        rows = ordered(table.filter(pa.array([place[name] == part for name in table["pair_id"].to_pylist()])))
        paths.append(folder / f"{part}.parquet")
        pq.write_table(rows, paths[-1], row_group_size=7)
    return paths


@pytest.mark.parametrize("number", [1, 2, 10, 150])
def test_the_same_bytes_from_any_parts(number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("store.tables.ROW_GROUP", "store.table_writer.ROW_GROUP", "flows.shards.merge._RANGE"):
        monkeypatch.setattr(name, 100)
    monkeypatch.setattr("flows.shards.merge._SAMPLE", 4)
    table = votes(130)
    whole = write_table(tmp_path / "whole.parquet", VOTES, ordered(table), {"x": "y"})
    paths = write_parts(table, number, tmp_path / "parts", random.Random(number))
    random.Random(number).shuffle(paths)
    some = set(table["pair_id"].to_pylist()[::12])
    outputs = [(tmp_path / "all.parquet", None, {"x": "y"}), (tmp_path / "some.parquet", one_of(some), {"x": "y"})]
    write_merged(open_parts(paths), VOTES, outputs)
    assert hash_file(tmp_path / "all.parquet") == hash_file(whole)
    chosen = ordered(table).filter(one_of(some)(ordered(table)["pair_id"]))
    expected = write_table(tmp_path / "chosen.parquet", VOTES, chosen, {"x": "y"})
    assert hash_file(tmp_path / "some.parquet") == hash_file(expected)
    assert max(rows.num_rows for rows in merged(open_parts(paths))) < 250, "not all at once"


def test_no_parts_and_no_rows(tmp_path: Path) -> None:
    write_merged([], VOTES, [(tmp_path / "out.parquet", None, {})])
    assert pq.read_table(tmp_path / "out.parquet").schema.names == VOTES.schema.names
    pq.write_table(votes(0), tmp_path / "empty.parquet")
    assert list(merged(open_parts([tmp_path / "empty.parquet"]))) == []


def test_a_pair_of_two_parts_is_refused(tmp_path: Path) -> None:
    for name in ("one", "two"):
        pq.write_table(ordered(votes(3)), tmp_path / f"{name}.parquet")
    parts = open_parts([tmp_path / "one.parquet", tmp_path / "two.parquet"])
    with pytest.raises(UsageError, match="comes from two shards"):
        write_merged(parts, VOTES, [(tmp_path / "out.parquet", None, {})])
    assert not list(tmp_path.glob("*out*")), "nothing half-written"


def test_a_writer_that_is_not_committed_leaves_nothing(tmp_path: Path) -> None:
    writer = TableWriter(tmp_path / "out.parquet", VOTES)
    writer.write(votes(2))
    writer.close()
    assert list(tmp_path.iterdir()) == []

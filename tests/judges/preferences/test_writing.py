"""The file: part files, statistics, lineage in the schema's metadata."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from judges.aggregation.labels import LABELS
from judges.preferences import make_preferences
from judges.preferences.lineage import SAYS, digest, metadata
from judges.preferences.sides import check_sides, sides_of
from store.errors import UsageError
from store.schemas import PREFERENCES, VOTES
from store.tables import read_table, write_table

from ..votes_builder import pairs_table, vote, votes_table

NAMES = [f"p{number}" for number in range(10)]
ROWS = votes_table(*(vote(name, judge, order, 0.7) for name in NAMES for judge in "jk" for order in ("ab", "ba")))


@pytest.fixture
def preferences() -> pa.Table:
    rows = [
        {"pair_id": name, "p_a": 0.6 + at / 100, "source": "ai", "n_votes": 4, "votes_a": 4, "votes_b": 0}
        for at, name in enumerate(NAMES)
    ]
    return make_preferences(pairs_table(*NAMES), pa.Table.from_pylist(rows, schema=LABELS.schema)).table


def test_part_files_are_one_table(tmp_path: Path, preferences: pa.Table) -> None:
    path = tmp_path / "preferences.parquet"
    write_table(path, PREFERENCES, preferences, {"rlaif.method": "mean"}, part_rows=4)
    assert [part.name for part in sorted(path.iterdir())] == [f"part-0000{number}.parquet" for number in range(3)]
    assert [pq.read_metadata(part).num_rows for part in sorted(path.iterdir())] == [4, 4, 2]
    assert read_table(path, PREFERENCES).equals(preferences)
    assert {pq.read_schema(part).metadata[b"rlaif.method"] for part in path.iterdir()} == {b"mean"}
    write_table(path, PREFERENCES, preferences, part_rows=5)  # in the place of the old one, whole
    assert len(list(path.iterdir())) == 2
    assert [entry.name for entry in tmp_path.iterdir()] == ["preferences.parquet"]


def test_a_lost_part_is_noticed(tmp_path: Path, preferences: pa.Table) -> None:
    path = write_table(tmp_path / "p.parquet", PREFERENCES, preferences, part_rows=4)
    (path / "part-00001.parquet").unlink()
    with pytest.raises(UsageError, match="has 2 of its 3 part files"):
        read_table(path, PREFERENCES)


def test_a_key_in_two_parts_is_refused(tmp_path: Path, preferences: pa.Table) -> None:
    path = tmp_path / "p.parquet"
    path.mkdir()
    for name in ("one", "two"):
        write_table(path / f"{name}.parquet", PREFERENCES, preferences)
    with pytest.raises(UsageError, match="occurs more than once"):
        read_table(path, PREFERENCES)


def test_columns_have_statistics(tmp_path: Path, preferences: pa.Table) -> None:
    path = write_table(tmp_path / "p.parquet", PREFERENCES, preferences)
    group = pq.read_metadata(path).row_group(0)
    found = {group.column(at).path_in_schema: group.column(at).statistics for at in range(group.num_columns)}
    assert (found["p_chosen"].min, found["p_chosen"].max) == pytest.approx((0.6, 0.69))
    assert (found["prompt_id"].min, found["prompt_id"].max) == ("x-p0", "x-p9")
    assert found["margin"].null_count == 0


def test_lineage_tells_what_was_said_and_not_when() -> None:
    pairs = pairs_table(*NAMES)
    first = metadata("mean", ROWS, {"votes": ROWS, "pairs": pairs})
    assert json.loads(first["rlaif.judges"]) == {"fingerprint-of-j": "j", "fingerprint-of-k": "k"}
    slower = ROWS.set_column(
        ROWS.schema.get_field_index("latency_s"), "latency_s", pc.multiply(ROWS["latency_s"], 3.0)
    ).take(list(range(ROWS.num_rows))[::-1])
    assert metadata("mean", slower, {"votes": slower, "pairs": pairs}) == first
    for column, value in (("p_a", 0.71), ("status", "tie"), ("winner", None)):
        other = votes_table(*[{**ROWS.to_pylist()[0], column: value}, *ROWS.to_pylist()[1:]])
        assert digest(other, SAYS["votes"]) != digest(ROWS, SAYS["votes"]), column


def test_votes_and_pairs_must_mean_the_same_sides() -> None:
    pairs = pairs_table(*NAMES)
    check_sides(ROWS, pairs)
    assert sides_of(ROWS).num_rows == len(NAMES)
    row = {**ROWS.to_pylist()[0], "rollout_a": "p0-b", "rollout_b": "p0-a"}
    turned = votes_table(*[{**one, "rollout_a": "p0-b", "rollout_b": "p0-a"} for one in ROWS.to_pylist()[:4]])
    with pytest.raises(UsageError, match="pair p0 name p0-b and p0-a"):
        check_sides(turned, pairs)
    with pytest.raises(UsageError, match="pair p0 name different rollouts"):
        sides_of(pa.concat_tables([votes_table(row), ROWS.slice(1)]))
    with pytest.raises(UsageError, match="pair p0 compare the rollout p0-b with itself"):
        sides_of(votes_table({**row, "rollout_b": "p0-b"}))


def test_another_schema_version_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "votes.parquet"
    pq.write_table(ROWS.replace_schema_metadata({"rlaif.schema_version": "99"}), path)
    with pytest.raises(UsageError, match="schema 99"):
        read_table(path, VOTES)

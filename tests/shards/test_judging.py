"""Judging in shards on threads: the same votes, each call once, restarts that repeat only what was not finished."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from flows.shards import work
from flows.shards.exchange import Answer, answered
from flows.shards.judging import slices
from flows.shards.runners import workers_of
from judges.judge import Judge, load_judge
from judges.pairs import pairs_to_table
from judges.panel import Limits, judge_pairs
from judges.settings import OpenAISettings
from store.errors import RlaifError, TransientError, UsageError
from store.schemas import VOTES
from store.sharding import ShardsConfig
from store.tables import read_table

from ..judges.answering import Answering
from ..judges.conftest import PROMPT, Folder, judge_folder, rubric_judge, tiny_judge, tiny_model
from ..stages.test_judge_stage import inputs, judged
from .world import PAIRS, content, in_shards

__all__ = ["inputs", "judge_folder", "rubric_judge", "tiny_judge", "tiny_model"]


def test_slices_are_whole_cells() -> None:
    table = pairs_to_table(PAIRS)
    tables = [table.slice(0, 100), table.slice(100, 0), table.slice(100, 301), table.slice(401)]
    for size, sizes in ((1, [256, 256, 188]), (257, [512, 188]), (9999, [700])):
        parts = list(slices(tables, size))
        assert [part.num_rows for part in parts] == sizes
        assert [name for part in parts for name in part["pair_id"].to_pylist()] == table["pair_id"].to_pylist()
    assert list(slices([], 10)) == []


@pytest.mark.slow
def test_any_shards_give_the_same_votes(tiny_judge: Judge, rubric_judge: Judge, tmp_path: Path) -> None:
    """To the bit, for a judge whose answers depend on what is batched with them."""
    judges = [tiny_judge, rubric_judge]
    whole = content(judge_pairs(judges, PAIRS, seed=0))
    assert whole.equals(content(in_shards(judges, tmp_path / "a", size=256, workers=1)))
    assert whole.equals(content(in_shards(judges, tmp_path / "b", size=512, workers=2)))
    assert whole.equals(content(in_shards([rubric_judge, tiny_judge], tmp_path / "c", size=9999)))


def test_a_stage_in_shards_is_the_stage(inputs: Any, tmp_path: Path) -> None:
    one, two = judged(inputs, tmp_path / "one"), judged(inputs, tmp_path / "two", shards=ShardsConfig(size=256))
    assert two.manifest.key == one.manifest.key, "where work is done is no part of what is done"
    assert two.manifest.metrics["spent"] == one.manifest.metrics["spent"]
    for name in ("votes", "calibration_votes"):
        paths = [outcome.folder / f"{name}.parquet" for outcome in (one, two)]
        first, second = (content(read_table(path, VOTES)) for path in paths)
        assert first.equals(second)
    assert not list((tmp_path / "two").glob(".parts"))
    with pytest.raises(UsageError, match="pairs is swiss"):
        judged(inputs, tmp_path / "three", pairs="swiss", shards=ShardsConfig())


def test_a_restart_repeats_only_what_was_not_finished(judge_folder: Folder, tmp_path: Path) -> None:
    broken = [True]

    def answer(text: str) -> dict[str, float] | None:
        return None if broken[0] and "river 5" in text else {"1": 0.7, "2": 0.3}

    with Answering(answer) as server:
        about = {"backend": "openai", "model": "m", "base_url": server.url, "max_attempts": 1}
        judge = load_judge(judge_folder("served", PROMPT, **about))
        with pytest.raises(RlaifError, match=r"Judge served gave \d+ errors"):
            in_shards([judge], tmp_path / "parts", size=256, workers=1, limits=Limits(max_error_rate=0.3, after=600))
        finished = [path.parent.name for path in (tmp_path / "parts").glob("*/manifest.json")]
        assert finished, "the shards before it are kept"
        broken[0], asked = False, len(server.shown)
        votes = in_shards([judge], tmp_path / "parts", size=256, workers=2, limits=Limits(max_error_rate=0.3))
        assert set(votes["status"].to_pylist()) <= {"scored", "error"}
        assert votes.num_rows == 1400 == len(set(votes["vote_id"].to_pylist()))
        assert len(server.shown) - asked < 1400 - 512 * len(finished), "nor what the broken shard has answers to"
        asked = len(server.shown)
        assert content(in_shards([judge], tmp_path / "parts", size=256)).equals(content(votes))
        assert len(server.shown) == asked


def test_a_damaged_part_is_made_again(rubric_judge: Judge, tmp_path: Path) -> None:
    whole = in_shards([rubric_judge], tmp_path, size=256)
    part = tmp_path / "000001" / "votes.parquet"
    part.write_bytes(b"damaged")
    kept = (tmp_path / "000000" / "manifest.json").read_bytes()
    assert content(in_shards([rubric_judge], tmp_path, size=256)).equals(content(whole))
    assert (tmp_path / "000000" / "manifest.json").read_bytes() == kept


def test_judges_of_other_kinds_are_refused(judge_folder: Folder, tmp_path: Path) -> None:
    about = {"backend": "openai", "model": "m", "base_url": "http://h/v1", "mode": "thumbs"}
    judge = load_judge(judge_folder("thumbs", "{{ prompt }} {{ response }} up or down?", **about))
    with pytest.raises(UsageError, match="compare two responses; thumbs has the mode thumbs"):
        in_shards([judge], tmp_path)


def test_a_rate_is_divided_among_shards(judge_folder: Folder) -> None:
    about = {"backend": "openai", "model": "m", "base_url": "http://h/v1", "concurrency": 9}
    judge = load_judge(judge_folder("served", PROMPT, requests_per_minute=100, **about))
    shared = work._share(judge, 4)
    settings = shared.settings
    assert isinstance(settings, OpenAISettings)
    assert (settings.concurrency, settings.requests_per_minute, settings.tokens_per_minute) == (2, 25, None)
    assert shared.fingerprint == judge.fingerprint


def test_a_model_is_not_loaded_by_every_thread() -> None:
    assert workers_of(ShardsConfig(), loads_models=True) == 1
    assert workers_of(ShardsConfig(workers=3), loads_models=True) == 3
    assert workers_of(ShardsConfig(runner="ray", workers=None), loads_models=True) >= 1


def test_a_worker_that_does_not_see_the_folder(
    rubric_judge: Judge, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on another machine without a shared disk: answers go to its own, and are gone when the shard is done."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "elsewhere"))
    monkeypatch.setattr(work, "_HERE", ".not-there")
    monkeypatch.setattr("flows.shards.judging.mark", lambda folder, token: None)
    seen: list[Path] = []
    ask = work.Panel.ask

    def spy(self: Any, pairs: Any) -> Any:
        found = ask(self, pairs)
        seen.extend((tmp_path / "elsewhere").rglob("*.jsonl"))
        return found

    monkeypatch.setattr(work.Panel, "ask", spy)
    votes = in_shards([rubric_judge], tmp_path / "parts", size=256, workers=1)
    assert votes.num_rows == 1400
    assert seen
    assert not list((tmp_path / "elsewhere").rglob("*.jsonl"))
    assert not list((tmp_path / "parts").rglob("*.jsonl"))


def test_another_judge_on_a_worker_is_refused(rubric_judge: Judge, tmp_path: Path) -> None:
    shard = work.Shard("k", b"", ((str(rubric_judge.folder), "0" * 64),), 0, Limits(), 1, str(tmp_path), "t")
    with pytest.raises(UsageError, match="is another one on the worker"):
        work.judge_shard(shard).raise_error()
    shard = work.Shard("k", b"", ((str(tmp_path / "gone"), "0" * 64),), 0, Limits(), 1, str(tmp_path), "t")
    with pytest.raises(UsageError, match=r"does not find the judge .*gone"):
        work.judge_shard(shard).raise_error()


def test_a_runner_that_is_not_there(rubric_judge: Judge, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    for runner in ("ray", "dask"):
        monkeypatch.setitem(sys.modules, {"ray": "ray", "dask": "distributed"}[runner], None)
        with pytest.raises(UsageError, match=rf"pip install 'rlaif\[{runner}\]'"):
            in_shards([rubric_judge], tmp_path, runner=runner)


def test_errors_come_back_as_what_they_were() -> None:
    for kind in (UsageError, TransientError, RlaifError):

        def work(kind: type[RlaifError] = kind) -> dict[str, bytes]:
            raise kind("away")

        with pytest.raises(RlaifError, match=r"^away$") as found:
            answered(work).raise_error()
        assert found.type is kind
    Answer().raise_error()

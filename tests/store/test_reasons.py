"""Why a stage runs again, told by what differs from its last manifest."""

from __future__ import annotations

from pathlib import Path

import pytest

from store.config import Config
from store.hashing import file_hashes, hash_file, hash_parts, hash_path
from store.reasons import differences, made_by, part_changes, why_not_done
from store.recipe import Recipe, Source
from store.stage import Job, Metrics, run_stage


class Inner(Config):
    rate: float = 0.1
    names: tuple[str, ...] = ()


class Knobs(Config):
    epochs: int = 3
    inner: Inner = Inner()


def write(job: Job[Knobs]) -> Metrics:
    (job.out / "x.txt").write_text("x")
    return {}


def folder_of(path: Path, **files: str) -> Source:
    path.mkdir(exist_ok=True)
    for name, text in files.items():
        (path / f"{name}.txt").write_text(text)
    parts = file_hashes(path)
    return Source(str(path), hash_parts(parts), parts, kind="judge fingerprint")


def done(out: Path, inputs: dict[str, list[Source]], config: Knobs | None = None) -> None:
    run_stage("reward", write, inputs=inputs, config=config or Knobs(), seed=1, out=out)


def recipe(inputs: dict[str, list[Source]], config: Knobs | None = None) -> Recipe:
    return Recipe("reward", 1, inputs, config or Knobs(), 1)


def test_a_folders_hash_is_made_of_its_files(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    for name in ("a/b", "a.b", "a-b", "a/.hidden", "manifest.json"):
        (tmp_path / name).write_text(name)
    assert list(file_hashes(tmp_path)) == ["a/b", "a-b", "a.b"]
    assert hash_parts(file_hashes(tmp_path)) == hash_path(tmp_path)
    assert hash_parts(dict(reversed(file_hashes(tmp_path).items()))) == hash_path(tmp_path)


def test_a_file_of_a_folder_is_named(tmp_path: Path) -> None:
    judge = {"judge": [folder_of(tmp_path / "good", prompt="old", notes="same")]}
    done(tmp_path / "s", judge)
    changed = {"judge": [folder_of(tmp_path / "good", prompt="new")]}
    assert why_not_done(tmp_path / "s", recipe(changed)) == ["judge fingerprint changed: good/prompt.txt"]
    added = {"judge": [folder_of(tmp_path / "good", prompt="old", more="!")]}
    assert why_not_done(tmp_path / "s", recipe(added)) == ["judge fingerprint changed: good/more.txt added"]


def test_a_short_value_is_shown(tmp_path: Path) -> None:
    old = Source("/j/good", "1" * 64, {"judge.yaml temperature": "0.0"}, kind="judge fingerprint")
    new = Source("/j/good", "2" * 64, {"judge.yaml temperature": "0.7"}, kind="judge fingerprint")
    done(tmp_path / "s", {"judge": [old]})
    assert why_not_done(tmp_path / "s", recipe({"judge": [new]})) == [
        "judge fingerprint changed: good/judge.yaml temperature 0.0 -> 0.7"
    ]


def test_the_stage_that_made_an_input_is_named(tmp_path: Path) -> None:
    file = tmp_path / "aggregate" / "x.txt"
    run_stage("aggregate", write, inputs={}, config=Knobs(), seed=1, out=file.parent)
    done(tmp_path / "s", {"preferences": [Source(str(file), hash_file(file))]})
    changed = {"preferences": [Source(str(file), "another")]}
    assert why_not_done(tmp_path / "s", recipe(changed)) == ["input x.txt changed (made by aggregate)"]
    assert made_by(file) == "aggregate"
    assert made_by(tmp_path / "x.txt") is None


@pytest.mark.parametrize(
    ("config", "reasons"),
    [
        (Knobs(epochs=5), ["config reward.epochs 3 -> 5"]),
        (
            Knobs(inner=Inner(rate=0.2, names=("x",))),
            ['config reward.inner.names [] -> ["x"]', "config reward.inner.rate 0.1 -> 0.2"],
        ),
    ],
)
def test_each_key_of_the_config_is_named(tmp_path: Path, config: Knobs, reasons: list[str]) -> None:
    done(tmp_path / "s", {})
    assert why_not_done(tmp_path / "s", recipe({}, config)) == reasons


def test_of_several_values_the_changed_one_is_named(tmp_path: Path) -> None:
    one, two, three = (Source(f"/p/{name}.parquet", name * 64) for name in "abc")
    done(tmp_path / "s", {"preferences": [one, two]})

    def why(*values: Source) -> list[str]:
        return why_not_done(tmp_path / "s", recipe({"preferences": list(values)}))

    assert why(one, two, three) == ["input preferences: p/c.parquet is new"]
    assert why(one) == ["input preferences: p/b.parquet is no longer given"]
    assert why(two, one) == ["input preferences: the same ones in another order"]
    assert why(one, Source(two.value, "d" * 64)) == ["input b.parquet changed"]
    assert why(one, three) == ["input preferences: b.parquet -> c.parquet"]
    assert why(Source("/elsewhere/a.parquet", one.identity), two) == []


def test_inputs_that_are_not_there_yet_are_left_out(tmp_path: Path) -> None:
    done(tmp_path / "s", {"votes": [Source("/v", "1")], "pairs": [Source("/p", "1")]})
    from store.manifest import need_manifest

    manifest = need_manifest(tmp_path / "s")
    assert differences(manifest, recipe({"pairs": [Source("/p", "1")]}), unmade={"votes"}) == []
    assert differences(manifest, recipe({"pairs": [Source("/p", "2")]}), unmade={"votes"}) == ["input p changed"]


def test_changed_parts_are_in_words() -> None:
    old = {"judge.yaml model": '"m-1"', "prompt.jinja": "a" * 64, "gone": "1"}
    new = {"judge.yaml model": '"m-2"', "prompt.jinja": "b" * 64, "new": "1"}
    assert part_changes(old, new) == ["gone removed", 'judge.yaml model "m-1" -> "m-2"', "new added", "prompt.jinja"]
    assert part_changes(old, old) == []

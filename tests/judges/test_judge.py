"""Judge folders: what is read, what is refused and how, and what the fingerprint hangs on."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from judges.config import JudgeStageConfig, known_judges, load_judge
from judges.constitution import choose, read_constitution
from store.config import read_yaml
from store.errors import UsageError
from store.resources import CONFIGS, DATASETS, PREFIX

from .conftest import PROMPT, RUBRIC, Folder


def refused(folder: Path | str) -> str:
    with pytest.raises(UsageError) as caught:
        load_judge(folder)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_a_judge_is_read_from_its_folder(judge_folder: Folder) -> None:
    judge = load_judge(
        judge_folder("one", constitution="c.md", files={"c.md": "# Title\n\n- Be true.\n- Be\n  kind.\n"})
    )
    assert judge.name == "one"
    assert judge.prompt_text == PROMPT
    assert judge.principles == ("Be true.", "Be kind.")
    assert load_judge(judge.folder / "judge.yaml").fingerprint == judge.fingerprint


def test_an_unknown_judge_lists_the_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    message = refused("no-such-judge")
    assert "no-such-judge" in message
    assert all(name in message for name in known_judges())
    (tmp_path / "empty").mkdir()
    assert "judge.yaml" in refused(tmp_path / "empty")


def test_wrong_keys_and_values_are_named(judge_folder: Folder) -> None:
    message = refused(judge_folder(tempratur=1))
    assert {"tempratur", "temperature"} <= set(message.replace(",", "").split())
    assert "'carrier-pigeon' is none of transformers" in refused(judge_folder(backend="carrier-pigeon"))
    assert "answers" in refused(judge_folder(answers=["1", "1"]))
    assert "answers" in refused(judge_folder(answers=["1", "Tie"]))


def test_missing_files_are_named(judge_folder: Folder, tmp_path: Path) -> None:
    assert "gone.jinja" in refused(judge_folder(prompt="gone.jinja"))
    assert "gone.md" in refused(judge_folder(constitution="gone.md"))
    assert "./gone" in refused(judge_folder(model="./gone"))
    (tmp_path / "no-model").mkdir()
    assert "config.json" in refused(judge_folder(model=str(tmp_path / "no-model")))
    assert "gone.yaml" in refused(
        judge_folder("r", None, backend="rubric", rubric="gone.yaml", model=..., min_mass=...)
    )


@pytest.mark.parametrize(
    ("prompt", "said"),
    [
        ("{{ prompt }} {{ first }}", "second"),
        (PROMPT + "{{ oracle }}", "oracle"),
        (PROMPT + "{% if %}", "line"),
        ("{{ prompt }}{{ first }}{{ second }}", "principles"),
    ],
)
def test_prompts_that_cannot_work_are_refused(judge_folder: Folder, prompt: str, said: str) -> None:
    assert said in refused(judge_folder(prompt_text=prompt, constitution="c.md", files={"c.md": "- Be kind."}))


def test_a_prompt_that_answers_itself_is_refused(judge_folder: Folder) -> None:
    own = PROMPT + "\nVERDICT: 1"
    assert "well-formed answer" in refused(judge_folder(prompt_text=own, mode="pairwise_verdict"))
    assert load_judge(judge_folder(prompt_text=PROMPT + "\nVERDICT: <1, 2 or tie>", mode="pairwise_verdict"))


def test_what_can_change_an_answer_changes_the_fingerprint(
    judge_folder: Folder, tiny_model: Path, tmp_path: Path
) -> None:
    base = load_judge(judge_folder()).fingerprint
    assert load_judge(judge_folder("renamed", description="x", batch_tokens=7, price={"input": 3})).fingerprint == base
    other = tmp_path / "model"
    shutil.copytree(tiny_model, other)
    assert load_judge(judge_folder(model=str(other))).fingerprint == base, "a local model counts by content"
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | {"rope_theta": 5.0}))
    constitution = {"constitution": "c.md", "files": {"c.md": "- Be kind."}}
    changed = [
        judge_folder(model=str(other)),
        judge_folder("b", PROMPT + " "),
        judge_folder("c", **constitution),
        judge_folder("d", **constitution, principles="sample"),
        judge_folder("e", constitution="c.md", files={"c.md": "- Be true."}),
        judge_folder("f", answers=["2", "1"]),
        judge_folder("g", min_mass=0.2),
        judge_folder("h", mode="pairwise_verdict"),
        judge_folder("i", revision="v2"),
        judge_folder("j", temperature=0.5),
        judge_folder("k", dtype="bfloat16"),
    ]
    fingerprints = [load_judge(folder).fingerprint for folder in changed]
    assert len({base, *fingerprints}) == len(changed) + 1


def test_a_server_judge_is_its_model_not_its_address(judge_folder: Folder) -> None:
    def fingerprint(**settings: object) -> str:
        values = {"backend": "openai", "model": "m", "base_url": "http://one/v1", **settings}
        return load_judge(judge_folder("s", **values)).fingerprint

    base = fingerprint()
    assert base == fingerprint(
        base_url="http://two/v1", concurrency=3, timeout_s=1, max_attempts=9, requests_per_minute=5, api_key_env="K"
    )
    assert len({base, fingerprint(model="n"), fingerprint(top_p=0.5), fingerprint(extra_body={"a": 1})}) == 4


def test_a_rubric_counts_by_content(judge_folder: Folder) -> None:
    def fingerprint(rubric: object, **settings: object) -> str:
        files = {"rubric.yaml": json.dumps(rubric)}
        values = {"backend": "rubric", "rubric": "rubric.yaml", "model": ..., "min_mass": ..., **settings}
        return load_judge(judge_folder("r", None, files=files, **values)).fingerprint

    base = fingerprint(RUBRIC)
    assert base == fingerprint(RUBRIC)
    assert base != fingerprint({**RUBRIC, "rules": RUBRIC["rules"][:1]})
    assert base != fingerprint(RUBRIC, scale=0.3)


def test_constitutions(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("principles: [Be true., Be kind.]")
    assert read_constitution(path) == ("Be true.", "Be kind.")
    path.write_text("- {id: truth, text: ' Be true. '}\n- Be kind.")
    assert read_constitution(path) == ("Be true.", "Be kind.")
    for text, said in (
        ("3", "list of texts"),
        ("- 3", "the principle 3: give a text"),
        ("- {id: truth}", "give a text, or a mapping of id and text"),
        ("- {id: truth, text: ''}", "give a text, or a mapping"),
        ("- {id: truth, text: Be true., weight: 2}", "give a text, or a mapping"),
        ("- {id: truth, text: Be true.}\n- {id: truth, text: Be kind.}", "two principles with the id 'truth'"),
        ("[]", "no principles"),
    ):
        path.write_text(text)
        with pytest.raises(UsageError, match=said):
            read_constitution(path)
    empty = tmp_path / "c.md"
    empty.write_text("Only prose.")
    with pytest.raises(UsageError, match="no principles"):
        read_constitution(empty)


def test_a_sampled_principle_hangs_on_the_pair_alone() -> None:
    principles = ("one", "two", "three")
    drawn = [choose(principles, "sample", f"pair{i}") for i in range(300)]
    assert drawn == [choose(principles, "sample", f"pair{i}") for i in range(300)]
    assert {one for (one,) in drawn} == set(principles)
    assert choose(principles, "all", "pair") == principles
    assert choose((), "sample", "pair") == ()


def test_every_shipped_judge_whose_model_is_here_loads() -> None:
    for name in known_judges():
        model = str(read_yaml(CONFIGS / "judges" / name / "judge.yaml").get("model", ""))
        if model.startswith(PREFIX) and not (DATASETS / model.removeprefix(PREFIX)).exists():
            continue  # made by datasets/tiny/build
        judge = load_judge(name)
        assert judge.folder == CONFIGS / "judges" / name
        assert len(judge.fingerprint) == 64


def test_stage_config_defaults_are_valid() -> None:
    assert JudgeStageConfig().pairs == "random"

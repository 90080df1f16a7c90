"""The command line: help that is enough, wrong use in one sentence with exit code 2, nothing half-written."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from click.testing import CliRunner

from flows.cli import main, rlaif
from flows.specs import STAGES
from store.resources import CONFIGS, DATASETS

BASE = str(DATASETS / "tiny" / "models" / "base")
PROMPTS = str(DATASETS / "tiny" / "prompts.parquet")


def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    """Run the real entry point; returns the exit code and what went to the error stream."""
    monkeypatch.setattr("sys.argv", ["rlaif", *arguments])
    with pytest.raises(SystemExit) as exit_:
        main()
    code = exit_.value.code
    return int(code or 0), capsys.readouterr().err


@pytest.mark.parametrize("name", ["run", "status", "report", "doctor", *(f"stage {stage}" for stage in STAGES)])
def test_every_command_has_help(name: str) -> None:
    result = CliRunner().invoke(rlaif, [*name.split(), "--help"])
    assert result.exit_code == 0
    assert "Usage:" in result.output
    for item in STAGES[name.split()[1]].inputs if " " in name else ():
        assert f"--{item.name.replace('_', '-')}" in result.output


def test_fields_of_the_config_are_options() -> None:
    text = CliRunner().invoke(rlaif, ["stage", "aggregate", "--help"]).output
    assert "--method" in text
    text = CliRunner().invoke(rlaif, ["stage", "ppo", "--help"]).output
    assert "--gae-lambda" in text


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["run", "none.yaml"], "neither a file nor shipped"),
        (["run", "demo", "--set", "ppo.updats=1"], "unknown key ppo.updats"),
        (["run", "demo", "--set", "ppo.updates=0"], "ppo.updates = 0"),
        (["run", "demo", "--set", "ppo.decoding.top_p=0.9"], "top_p"),
        (["run", "demo", "--set", "judges=[none]"], "none"),
        (["run", "demo", "--set", "prompts=none.parquet"], "does not exist"),
        (["run", "demo", "--set", "policy=./none"], "does not exist"),
        (["run", "demo", "--set", "nonsense"], "key=value"),
        (["run", "gpu"], "my-prompts.parquet"),
        (["status", "--workspace", "none"], "no workspace"),
        (["report", "--workspace", "none"], "no workspace"),
        (["stage", "sample", "--policy", "none/", "--prompts", PROMPTS, "--out", "o"], "none"),
        (["stage", "sample", "--policy", BASE, "--prompts", "none", "--out", "o"], "does not exist"),
        (["stage", "sample", "--policy", str(DATASETS), "--prompts", PROMPTS, "--out", "o"], "no model directory"),
        (
            ["stage", "sample", "--policy", BASE, "--prompts", PROMPTS, "--out", "o", "--responses", "0"],
            "responses = 0",
        ),
        (["stage", "sample", "--policy", BASE, "--prompts", PROMPTS], "--out"),
        (["stage", "reward", "--bogus"], "--bogus"),
    ],
)
def test_wrong_use_is_one_sentence(
    arguments: list[str],
    sentence: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    code, text = call(monkeypatch, capsys, *arguments)
    assert code == 2
    assert sentence in text
    assert "Traceback" not in text
    leftovers = [path for path in tmp_path.rglob("*") if path.is_file() and not path.name.startswith(".")]
    assert leftovers == []


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: {"prompt_id": ["a"], "text": ["x"]}, "lacks the columns prompt, group, split"),
        (lambda: {key: pa.array([], pa.string()) for key in ("prompt_id", "prompt", "group", "split")}, "has no rows"),
    ],
)
def test_a_wrong_prompts_file_is_one_sentence(
    make, sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pq.write_table(pa.table(make()), tmp_path / "p.parquet")
    arguments = ["stage", "sample", "--policy", BASE, "--prompts", str(tmp_path / "p.parquet")]
    code, text = call(monkeypatch, capsys, *arguments, "--out", str(tmp_path / "o"))
    assert code == 2
    assert sentence in text
    assert not (tmp_path / "o").exists()


def test_a_judge_without_its_prompt_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "my-judge"
    folder.mkdir()
    (folder / "judge.yaml").write_text((CONFIGS / "judges" / "tiny-good" / "judge.yaml").read_text())
    code, text = call(
        monkeypatch, capsys, "run", "demo", "--set", f"judges=[{folder}]", "--workspace", str(tmp_path / "w")
    )
    assert code == 2
    assert "prompt.jinja" in text


def test_malformed_yaml_says_where(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text("seed: 1\njudges: [a\n")
    code, text = call(monkeypatch, capsys, "run", str(path))
    assert code == 2
    assert "line 3" in text


def test_a_config_may_name_files_beside_it(tmp_path: Path) -> None:
    from flows.load import load_round

    value = yaml.safe_load((CONFIGS / "demo.yaml").read_text())
    (tmp_path / "mine.parquet").write_bytes(Path(PROMPTS).read_bytes())
    (tmp_path / "round.yaml").write_text(yaml.safe_dump({**value, "prompts": "mine.parquet"}))
    assert load_round(str(tmp_path / "round.yaml")).prompts == str(tmp_path / "mine.parquet")


def test_an_unwritable_workspace_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("in the way")
    code, text = call(monkeypatch, capsys, "run", "demo", "--workspace", str(tmp_path / "file" / "w"))
    assert code == 2
    assert "in the way" in text


def test_a_prompt_longer_than_the_context_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    row = {"prompt_id": ["long"], "prompt": ["word " * 2000], "group": ["g"], "split": ["train"]}
    pq.write_table(pa.table(row), tmp_path / "p.parquet")
    arguments = ["stage", "sample", "--policy", BASE, "--prompts", str(tmp_path / "p.parquet")]
    code, text = call(monkeypatch, capsys, *arguments, "--out", str(tmp_path / "o"))
    assert code == 2
    assert "A prompt has 200" in text
    assert "holds 512" in text
    assert not (tmp_path / "o").exists()


def test_a_full_disk_is_one_sentence_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """On a real file system of 36 KiB."""
    import subprocess

    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=36k", "tmpfs", str(disk)]
    try:
        if subprocess.run(mount, capture_output=True).returncode != 0:
            pytest.skip("mounting a small file system needs rights that this user lacks")
    except FileNotFoundError:
        pytest.skip("this system has no mount")
    try:
        arguments = ["stage", "sample", "--policy", BASE, "--prompts", PROMPTS]
        code, text = call(monkeypatch, capsys, *arguments, "--max-prompts", "10", "--out", str(disk / "fits"))
        assert code == 0, text
        code, text = call(monkeypatch, capsys, *arguments, "--responses", "3", "--out", str(disk / "o"))
        assert code == 1
        assert "No space left" in text
        assert "Traceback" not in text
        assert not (disk / "o").exists()
    finally:
        subprocess.run(["umount", str(disk)], check=True)

"""`rlaif judges`: list, show, check and compare, as a person and as a script use them."""

from __future__ import annotations

import json
import shutil
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import yaml
from click.testing import CliRunner
from rich.console import Console

from audit.quarantine import QUARANTINE, quarantine
from flows.cli import main, rlaif
from flows.cli.judge_tables import show_check
from flows.cli.output import Output
from flows.inspection.rejudge import read_last_round
from judges.check import check_judge
from judges.config import known_judges, load_judge
from judges.modes import MODES
from judges.settings import SETTINGS
from store.files import write_json
from store.limits import AuditorLimits
from store.resources import CONFIGS, DATASETS
from store.schemas import GOLD, PAIRS, VERDICTS, VOTES
from store.tables import read_table, write_table
from tests.flows.conftest import rlaif as in_a_process

HOSTILE = "\x1b[31mred\x1b[0m \u202egnp.exe\u202c zero\u200bwidth [bold]x[/bold]"


def told(*arguments: str) -> str:
    result = CliRunner().invoke(rlaif, ["judges", *arguments], catch_exceptions=False)
    assert result.exit_code == 0
    return result.stdout


def refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    monkeypatch.setattr("sys.argv", ["rlaif", "judges", *arguments])
    with pytest.raises(SystemExit) as exit_:
        main()
    lines = capsys.readouterr().err.strip().splitlines()
    return int(exit_.value.code or 0), lines[-1]


@pytest.fixture
def rubric(tmp_path: Path) -> Path:
    """A team's own judge, that loves brevity."""
    folder = tmp_path / "team" / "blunt"
    folder.mkdir(parents=True)
    rules = [
        {"name": "empty", "kind": "empty", "amount": 1.0},
        {"name": "long", "kind": "long", "words": 3, "each": 0.1, "most": 0.9},
    ]
    (folder / "rubric.yaml").write_text(yaml.safe_dump({"version": 1, "rules": rules}))
    judge = {"name": "blunt", "backend": "rubric", "rubric": "rubric.yaml"}
    (folder / "judge.yaml").write_text(yaml.safe_dump(judge))
    return folder


def test_list_names_every_judge_and_what_it_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    rows = {row["name"]: row for row in json.loads(told("list", "--json"))}
    assert sorted(rows) == known_judges()
    assert rows["openai-compatible"]["missing"] == "variable OPENAI_API_KEY"
    assert rows["tiny-oracle"]["missing"] == ""
    monkeypatch.setenv("OPENAI_API_KEY", "k-secret")
    text = told("list")
    assert "k-secret" not in text
    assert "OPENAI_API_KEY" not in text
    assert text.splitlines()[0].split() == ["name", "backend", "mode", "model", "missing"]


def test_list_of_a_teams_own_folder(rubric: Path, tmp_path: Path) -> None:
    broken = tmp_path / "team" / "broken"
    broken.mkdir()
    (broken / "judge.yaml").write_text("backend: pigeon")
    rows = json.loads(told("list", str(tmp_path / "team"), "--json"))
    assert [row["name"] for row in rows] == ["blunt", str(broken)]
    assert "pigeon" in rows[1]["missing"]
    assert json.loads(told("list", str(rubric), "--json"))[0]["name"] == "blunt"


def test_show_tells_what_a_judge_is() -> None:
    judge = load_judge("vllm-server")
    text = told("show", "vllm-server")
    assert judge.fingerprint in text
    assert "You compare two responses" in text
    assert "<response_1>" in text
    assert f"1. {judge.principles[0]}" in text
    shown = json.loads(told("show", "vllm-server", "--json"))
    assert shown["settings"]["model"] == "judge"
    pair = pq.read_table(DATASETS / "tiny" / "calibration.parquet").slice(0, 1).to_pylist()[0]
    assert pair["prompt"] in shown["prompts"]["vllm-server"]


@pytest.mark.parametrize("name", ["tiny-cascade", "tiny-oracle", "pointwise-rating", "flaw-questions"])
def test_show_serves_every_kind_of_judge(name: str) -> None:
    shown = json.loads(told("show", name, "--json"))
    assert set(shown["prompts"]) == {one.name for one in load_judge(name).asked}
    assert told("show", name).startswith(name)


def test_check_of_a_program() -> None:
    text = told("check", "tiny-oracle", "--limit", "30", "--canaries", "1")
    lines = {line.split("  ")[0]: line for line in text.splitlines()}
    assert lines["pairs"].split()[1:] == ["60", "60", "0", "0", "0", "0"]
    assert "100.0 %" in lines["accuracy, both orders averaged"]
    assert lines["null"].split()[1:3] == ["5", "0"]
    assert "\x1b" not in text
    found = json.loads(told("check", "tiny-oracle", "--limit", "30", "--canaries", "0", "--json"))
    assert (found["pairs"], found["problem"], found["canaries"]) == (30, None, None)


def test_the_same_seed_draws_the_same_pairs() -> None:
    def accuracy(seed: str) -> object:
        arguments = ("check", "tiny-oracle", "--limit", "7", "--canaries", "0", "--json", "--seed", seed)
        return json.loads(told(*arguments))["biases"]["length_slope"]

    assert accuracy("1") == accuracy("1") != accuracy("2")


def test_a_terminal_gets_drawn_tables() -> None:
    gold = read_table(DATASETS / "tiny" / "calibration.parquet", GOLD).slice(0, 5)
    figures = check_judge(load_judge("tiny-oracle"), gold, per_canary=1).figures
    console = Console(force_terminal=True, width=120, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    show_check(Output(console), figures)
    text = console.export_text()
    assert "┃" in text
    assert "imitated_verdict" in text


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        (["check", "none"], 2, "no judge 'none'"),
        (["check", "tiny-oracle", "--pairs", "none.parquet"], 2, "does not exist"),
        (["check", "openai-compatible"], 1, "set the environment variable OPENAI_API_KEY"),
        (["compare", "tiny-oracle", "tiny-oracle"], 2, "the same judge"),
        (["compare", "tiny-oracle", "tiny-good", "--workspace", "none"], 2, "no workspace"),
        (["list", "none"], 2, "no folder"),
        (["show", "none"], 2, "no judge 'none'"),
    ],
)
def test_what_cannot_be_done_is_one_sentence(
    arguments: list[str],
    code: int,
    sentence: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    found, line = refused(monkeypatch, capsys, *arguments)
    assert found == code
    assert sentence in line
    assert list(tmp_path.iterdir()) == []


def test_a_server_that_is_away_is_said_soon(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path(shutil.copytree(CONFIGS / "judges" / "vllm-server", tmp_path / "away"))
    value = yaml.safe_load((folder / "judge.yaml").read_text())
    value |= {"name": "away", "base_url": "http://localhost:9/v1", "outage_patience_s": 0.5}
    (folder / "judge.yaml").write_text(yaml.safe_dump(value))
    code, line = refused(monkeypatch, capsys, "check", str(folder), "--limit", "3")
    assert code == 1
    assert "Judge away" in line
    assert "http://localhost:9/v1" in line


def test_compare_shows_hostile_text_inert(rubric: Path, tmp_path: Path) -> None:
    gold = read_table(DATASETS / "tiny" / "calibration.parquet", GOLD).slice(0, 60)
    prompts = pa.array([f"{HOSTILE} {text}" for text in gold["prompt"].to_pylist()])
    gold = gold.set_column(gold.schema.get_field_index("prompt"), gold.schema.field("prompt"), prompts)
    path = write_table(tmp_path / "gold.parquet", GOLD, gold)
    text = told("compare", "tiny-oracle", str(rubric), "--pairs", str(path), "--examples", "1")
    assert "accuracy, tiny-oracle minus blunt" in text
    assert "Cohen's kappa" in text
    assert not {"\x1b", "\u202e", "\u200b"} & set(text)
    assert "[bold]x[/bold]" in text, "not taken for markup"
    output = told("compare", "tiny-oracle", str(rubric), "--pairs", str(path), "--json")
    assert output.isascii()
    found = json.loads(output)
    assert found["examples"][0]["prompt"].startswith(HOSTILE), "a script gets the text as it is"


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    """A workspace whose round has been judged by the oracle alone and aggregated."""
    root = tmp_path / "workspace"
    folder = root / "rounds" / "001"
    gold = read_table(DATASETS / "tiny" / "calibration.parquet", GOLD)
    pairs, known = gold.slice(0, 60).drop_columns(["winner"]), gold.slice(60, 40)
    calibration = write_table(tmp_path / "known.parquet", GOLD, known)
    from judges.pairs import pairs_from_table
    from judges.panel import judge_pairs

    oracle = load_judge("tiny-oracle")
    for name, table in (("votes", pairs), ("calibration_votes", known)):
        votes = judge_pairs([oracle], pairs_from_table(table), seed=0)
        write_table(folder / "judge" / f"{name}.parquet", VOTES, votes)
    write_table(folder / "judge" / "pairs.parquet", PAIRS, pairs)
    write_json(folder / "round.json", {"round": 1})
    source = [{"value": str(calibration), "identity": "x"}]
    _finish(folder / "judge", "judge", {"calibration": source}, {})
    _finish(folder / "aggregate", "aggregate", {"gold": source}, {"method": "stacked"})
    return root


def _finish(folder: Path, stage: str, inputs: dict[str, object], config: dict[str, object]) -> None:
    value = {
        "stage": stage,
        "stage_version": 1,
        "key": "k",
        "inputs": inputs,
        "config": config,
        "seed": 5,
        "outputs": {},
        "metrics": {},
        "started_at": "2026-01-01T00:00:00Z",
        "seconds": 1.0,
        "peak_rss_mb": 1.0,
        "machine": {},
        "packages": {},
        "code_version": "x",
    }
    write_json(folder / "manifest.json", value)


def test_compare_says_what_would_change_in_the_last_round(workspace: Path, rubric: Path) -> None:
    arguments = ("compare", "tiny-oracle", str(rubric), "--workspace", str(workspace), "--json")
    found = json.loads(told(*arguments))
    assert found["pairs"] == 40, "the round's calibration pairs"
    assert [side["reused_votes"] for side in found["judges"]] == [80, 0]
    assert (found["round"]["number"], found["round"]["pairs"], found["seed"]) == (1, 60, 5)
    assert found["round"]["labelled"] > 0
    kept = sorted((workspace / "comparisons").rglob("*.jsonl"))
    assert sum(path.read_bytes().count(b"\n") for path in kept) == 2 * (40 + 60), "the newcomer's votes, each once"
    assert json.loads(told(*arguments))["round"] == found["round"]
    assert sum(path.read_bytes().count(b"\n") for path in kept) == 200, "nothing is asked twice"
    text = told(*arguments[:-1], "--limit", "20")
    assert "20 of its 60 pairs" in text


def test_verdicts_that_were_set_aside_do_not_count_in_a_comparison(workspace: Path) -> None:
    folder = workspace / "rounds" / "001"
    pair = read_table(folder / "judge" / "pairs.parquet", PAIRS)["pair_id"][0].as_py()
    about = {"seconds": 9.0, "simulated": False, "created_at": datetime(2026, 1, 1, tzinfo=UTC), "shown_left": "a"}
    said = [{"verdict_id": who, "pair_id": pair, "auditor": who, "winner": "a", **about} for who in ("ann", "troll")]
    verdicts = pa.Table.from_pylist(said, schema=VERDICTS.schema)
    write_table(folder / "audit" / "verdicts.parquet", VERDICTS, verdicts)
    found = quarantine(verdicts, None, AuditorLimits(quarantined=["troll"]))
    write_table(folder / "aggregate" / "quarantine.parquet", QUARANTINE, found.table())
    given = {"verdicts": [{"value": str(folder / "audit" / "verdicts.parquet"), "identity": "x"}]}
    _finish(folder / "aggregate", "aggregate", given, {"method": "mean"})
    tables = read_last_round(workspace).tables
    assert tables.verdicts is not None
    assert tables.verdicts["auditor"].to_pylist() == ["ann"]
    assert tables.reliability == found.reliability


def test_a_judge_that_took_no_part_cannot_be_replaced(
    workspace: Path, rubric: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, line = refused(monkeypatch, capsys, "compare", str(rubric), "tiny-oracle", "--workspace", str(workspace))
    assert code == 2
    assert "no votes in the last round, whose judges are tiny-oracle" in line


def test_a_round_that_is_not_aggregated_is_passed_over(workspace: Path) -> None:
    unfinished = workspace / "rounds" / "002"
    shutil.copytree(workspace / "rounds" / "001" / "judge", unfinished / "judge")
    write_json(unfinished / "round.json", {"round": 2})
    last = read_last_round(workspace)
    assert last.number == 1
    assert pc.unique(last.tables.votes["judge"]).to_pylist() == ["tiny-oracle"]


@pytest.mark.slow
def test_the_tiny_judges_are_checked_and_compared_for_real(tmp_path: Path) -> None:
    done = in_a_process("judges", "check", "tiny-good", "--limit", "30", "--canaries", "1", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["accuracy"]["accuracy"] > 0.7
    assert found["votes"]["attempted"] == 60
    assert found["canaries"]["all"]["attempted"] > 0
    done = in_a_process("judges", "compare", "tiny-good", "tiny-biased", "--limit", "60", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    good, biased = json.loads(done.stdout)["judges"]
    assert good["biases"]["order_flip_rate"] < biased["biases"]["order_flip_rate"]
    done = in_a_process("judges", "check", "tiny-cascade", "--limit", "30", "--canaries", "0", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "went to the second judge" in done.stdout


def test_the_documentation_names_every_mode_and_backend() -> None:
    text = (CONFIGS.parent / "docs" / "judges.md").read_text(encoding="utf-8")
    missing = [name for name in [*MODES, *SETTINGS] if f"| `{name}` |" not in text]
    assert missing == []

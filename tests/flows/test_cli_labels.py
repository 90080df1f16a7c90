"""`rlaif labels` and the gate on the command line: reports, drift, and a reason to go on."""

from __future__ import annotations

import json
import math
import shutil
import sqlite3
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pytest
from click.testing import CliRunner

from flows.anchors import drift_events
from flows.cli import main, rlaif
from flows.cli.run import override_gate
from flows.load import load_round
from flows.plan import plan_round
from flows.report import build_report
from flows.workspace import Round, Workspace
from judges.config import load_judge
from judges.drift import Anchors
from store.errors import UsageError
from store.files import write_text
from store.manifest import read_manifest
from store.resources import CONFIGS
from store.schemas import PAIRS, VERDICTS, VOTES
from store.tables import write_table
from tests.flows.conftest import rlaif as in_a_process
from tests.flows.conftest import small_settings
from tests.judges.votes_builder import pairs_table, vote, votes_table

NAMES = [f"p{number}" for number in range(30)]


def told(*arguments: str) -> str:
    result = CliRunner().invoke(rlaif, list(arguments), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    monkeypatch.setattr("sys.argv", ["rlaif", *arguments])
    with pytest.raises(SystemExit) as exit_:
        main()
    return int(exit_.value.code or 0), capsys.readouterr().err


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    """Somebody's votes: one judge with a name to beware of, whose winner flips with the order on a third of pairs."""
    rows = []
    for at, name in enumerate(NAMES):
        rows += [vote(name, "j\u202e[red]", "ab", 0.9), vote(name, "j\u202e[red]", "ba", 0.3 if at % 3 == 0 else 0.7)]
        rows += [vote(name, "k", "ab", 0.6 if at % 2 else None), vote(name, "k", "ba", 0.6)]
    votes = write_table(tmp_path / "votes.parquet", VOTES, votes_table(*rows))
    return votes, write_table(tmp_path / "pairs.parquet", PAIRS, pairs_table(*NAMES))


def test_anybodys_votes_become_labels_and_a_report(files: tuple[Path, Path], tmp_path: Path) -> None:
    votes, pairs = files
    out = tmp_path / "out"
    allowed = ("--set", "gate.max_parse_failure_rate=null")
    told(
        "stage",
        "aggregate",
        "--votes",
        str(votes),
        "--pairs",
        str(pairs),
        "--method",
        "mean",
        "--out",
        str(out),
        *allowed,
    )
    found = json.loads(told("labels", "report", str(out), "--json"))
    assert found["votes"] == {
        "attempted": 120,
        "scored": 105,
        "tie": 0,
        "abstain": 0,
        "parse_failure": 15,
        "error": 0,
    }
    assert sum(one["labels"] for one in found["confidence"]) == found["labels"]["all"] == 30
    assert (found["confidence"][0]["from"], found["confidence"][-1]["to"]) == (0.5, 1.0)
    # k says 0.6; j says 0.8, or 0.6 on a third of the pairs, where its orders differ.
    by_bin = {one["from"]: one["labels"] for one in found["confidence"] if one["labels"]}
    assert sorted(by_bin.values()) == [10, 20]
    assert min(by_bin, key=lambda low: by_bin[low]) < max(by_bin, key=lambda low: by_bin[low])
    assert sum(one["preferences"] for one in found["by_group"].values()) == 30
    text = told("labels", "report", str(out))
    assert "\u202e" not in text
    assert "[red]" in text
    for words in ("Agreement between judges", "likelier winner's p", "dropped: none", "order flips"):
        assert words in text


def test_the_whole_panel_and_whom_a_label_model_believes(files: tuple[Path, Path], tmp_path: Path) -> None:
    for package in ("crowdkit", "krippendorff", "sklearn", "statsmodels"):
        pytest.importorskip(package, reason="needs the extra labels: pip install 'rlaif[labels]'")
    out = tmp_path / "out"
    named = [row for name in NAMES for row in (vote(name, "l", "ab", 0.8), vote(name, "l", "ba", 0.3))]
    more = write_table(tmp_path / "more.parquet", VOTES, votes_table(*named))
    given = ("--votes", str(files[0]), "--votes", str(more), "--pairs", str(files[1]), "--set", "judges=[l, k]")
    allowed = ("--set", "gate.override=l flips and k fails by design")
    told("stage", "aggregate", *given, *allowed, "--method", "mean", "--out", str(out))
    asked = ("labels", "report", str(out), "--panel", "--diagnose", "dawid_skene")
    found = json.loads(told(*asked, "--json"))
    assert (found["panel"]["raters"], found["panel"]["items"]) == (2, 30), "judges that do not count have no part"
    assert found["panel"]["fleiss"] is None
    assert found["panel"]["ac1"]["value"] == 1, "both choose a, everywhere"
    judges = found["diagnosis"]["judges"]
    assert judges.keys() == {"k", "l"}
    assert judges["l"]["believed"] == pytest.approx(0.5, abs=0.01), "right where it says what the others say"
    assert judges["l"]["gold"] is None
    text = told(*asked)
    for words in ("Cohen's kappa", "Gwet's AC1", "Whom dawid_skene believes"):
        assert words in text


def test_auditors_who_are_set_aside_are_named(files: tuple[Path, Path], tmp_path: Path) -> None:
    rows = [
        {"verdict_id": f"v{number}", "pair_id": name, "auditor": auditor, "winner": "a", "shown_left": "ab"[number % 2]}
        for number, (name, auditor) in enumerate((name, auditor) for auditor in ("ann", "bob") for name in NAMES[:4])
    ]
    about = {"seconds": 9.0, "simulated": False, "created_at": datetime(2026, 1, 1, tzinfo=UTC)}
    table = pa.Table.from_pylist([row | about for row in rows], schema=VERDICTS.schema)
    verdicts = write_table(tmp_path / "verdicts.parquet", VERDICTS, table)
    out = tmp_path / "out"
    given = ("--votes", str(files[0]), "--pairs", str(files[1]), "--verdicts", str(verdicts), "--out", str(out))
    limits = ("--set", "gate.max_parse_failure_rate=null", "--set", "auditor_limits.quarantined=[bob]")
    told("stage", "aggregate", *given, *limits, "--method", "mean")
    text = told("labels", "report", str(out))
    assert "set aside: bob, by hand" in text
    assert "4 of 8 verdicts with them" in text


def test_what_sways_the_votes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """0.8 where a is first and 0.4 where it is not: first is worth the difference of their log-odds."""
    texts = dict.fromkeys(NAMES, ("a response", "another on"))  # of one length
    pairs = write_table(tmp_path / "pairs.parquet", PAIRS, pairs_table(*NAMES, **texts))
    rows = [vote(name, "j", order, p) for name in NAMES for order, p in (("ab", 0.8), ("ba", 0.4))]
    votes = write_table(tmp_path / "votes.parquet", VOTES, votes_table(*rows))
    out = tmp_path / "out"
    given = ("--votes", str(votes), "--pairs", str(pairs), "--set", "gate.max_judge_flip_rate=null")
    told("stage", "aggregate", *given, "--set", "gate.max_flip_rate=null", "--method", "mean", "--out", str(out))
    found = json.loads(told("labels", "report", str(out), "--sway", "--json"))["sway"]
    expected = math.log(0.8 / 0.2) - math.log(0.4 / 0.6)
    assert found["slot"]["log_odds"] == pytest.approx(expected, abs=0.05)
    assert found["slot"]["low"] < found["slot"]["log_odds"] < found["slot"]["high"]
    assert found["length"] == {"log_odds": None, "low": None, "high": None}
    assert "shown first rather than second" in told("labels", "report", str(out), "--sway")
    write_table(votes, VOTES, votes_table(*rows[:-1]))
    code, said = refused(monkeypatch, capsys, "labels", "report", str(out), "--sway")
    assert (code, "not what these labels were made of" in said) == (2, True)
    told("labels", "report", str(out))  # without, the votes are not looked at


def test_votes_alone(files: tuple[Path, Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    allowed = ("--set", "gate.max_parse_failure_rate=null")
    told("stage", "aggregate", "--votes", str(files[0]), "--out", str(out), *allowed)
    assert "no pairs table was given" in told("labels", "report", str(out))
    with pytest.raises(UsageError, match="without a pairs table"):
        told("labels", "report", str(out), "--sway")
    assert json.loads(told("labels", "report", str(out), "--json"))["preferences"] is None


def test_the_gate_shows_its_table(
    files: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, said = refused(
        monkeypatch, capsys, "stage", "aggregate", "--votes", str(files[0]), "--out", str(tmp_path / "out")
    )
    assert code == 1
    assert "\u202e" not in said
    lines = said.strip().splitlines()
    assert lines[-1].startswith("rlaif: The judges did not pass the gate: parse failures of k 0.250")
    assert any(line.startswith("broken") and "parse failures" in line for line in lines)
    assert not (tmp_path / "out").exists()
    told(
        "stage", "aggregate", "--votes", str(files[0]), "--out", str(tmp_path / "out"), "--set", "gate.override=why not"
    )
    assert "overridden: why not" in told("labels", "report", str(tmp_path / "out"))


def test_what_is_no_output_of_the_stage_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, said = refused(monkeypatch, capsys, "labels", "report", str(tmp_path))
    assert code == 2
    assert "is no finished stage" in said


def test_drift_of_a_workspace(tmp_path: Path) -> None:
    """A shipped judge whose prompt is changed: the anchors are asked again, and the answers of before are kept."""
    space = Workspace.create(tmp_path / "w")
    folder = Path(shutil.copytree(CONFIGS / "judges" / "tiny-good", tmp_path / "ours"))
    space.begin_round(load_round("demo", [f"judges=[{folder}]"]))
    where = ("labels", "drift", "--workspace", str(space.root))
    assert json.loads(told(*where, "--json")) == {"tiny-good": None}
    prompt = folder / "prompt.jinja"
    write_text(prompt, prompt.read_text().replace("Which answer is better?", "Which answer is worse?"))
    found = json.loads(told(*where, "--json"))["tiny-good"]
    assert found["fingerprint_changed"]
    assert found["pairs"] == 100
    assert found["moved"]["mean"] > 0
    assert "another fingerprint" in told(*where)
    anchors = Anchors(space.root / "anchors")
    assert [asking.fingerprint for asking in anchors.askings("tiny-good")][1] == load_judge(folder).digest
    assert anchors.askings("tiny-good")[0].votes.num_rows == 200


@pytest.mark.slow
def test_a_round_looks_for_drift_by_itself(finished: Path, tmp_path: Path) -> None:
    """Its calibration votes stand for the asking, so the command after it asks nobody."""
    space = Path(shutil.copytree(finished, tmp_path / "w"))
    judges = ("tiny-good", "tiny-middling", "tiny-biased")
    kept = Anchors(space / "anchors")
    assert [[one.votes.num_rows for one in kept.askings(judge)] for judge in judges] == [[200]] * 3
    assert [one.fingerprint for one in kept.askings("tiny-good")] == [load_judge("tiny-good").digest]
    assert not (space / "rounds" / "001" / "anchors").exists(), "no stage of its own had to run"
    events = drift_events(Workspace.existing(space).rounds()[0].journal)
    assert sorted((one["judge"], one["number"]) for one in events) == sorted((judge, 1) for judge in judges)
    assert (space / "rounds" / "001" / "report.html").read_text().count("asked for the first time") == 3
    with sqlite3.connect(space / "prefect" / "prefect.db") as database:
        assert database.execute("select count(*) from artifact where key = 'judge-drift'").fetchone() == (1,)
    assert json.loads(told("labels", "drift", "--workspace", str(space), "--json")) == dict.fromkeys(judges)
    assert len(kept.askings("tiny-good")) == 1


def with_override(reason: str | None) -> list[str]:
    return [] if reason is None else [f"aggregate.gate.override={reason}"]


@pytest.mark.parametrize(
    ("before", "finished", "own", "given", "expected"),
    [
        (None, False, None, "why", "why"),
        ("old", False, None, None, "old"),
        ("old", False, None, "new", "new"),
        ("old", False, "own", None, "own"),
        ("old", True, "old", None, None),  # inherited by the next round: it does not hold there
        ("old", True, "own", None, "own"),
        (None, True, None, None, None),
    ],
)
def test_a_reason_holds_for_one_round(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    before: str | None,
    finished: bool,
    own: str | None,
    given: str | None,
    expected: str | None,
) -> None:
    last = Workspace.create(tmp_path).begin_round(load_round("demo", with_override(before)))
    monkeypatch.setattr(Round, "finished", property(lambda round_: finished))
    chosen = override_gate(load_round("demo", with_override(own)), last, given)
    assert chosen.aggregate.gate.override == expected


def test_an_empty_reason_is_none(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    code, said = refused(monkeypatch, capsys, "run", "demo", "--workspace", str(tmp_path / "w"), "--override-gate", " ")
    assert code == 2
    assert "needs a reason" in said
    assert not (tmp_path / "w").exists()


def test_reports_on_judges_go_to_the_gate(tmp_path: Path) -> None:
    report = write_text(tmp_path / "check.json", "{}")
    round_ = Workspace.create(tmp_path / "w").begin_round(load_round("demo", [f"judge_checks=[{report}]"]))
    aggregate = next(step for step in plan_round(round_) if step.stage == "aggregate")
    assert aggregate.inputs["checks"] == [str(report)]
    with pytest.raises(UsageError, match="nowhere"):
        load_round("demo", ["judge_checks=[nowhere.json]"])


@pytest.mark.slow
def test_the_flow_stops_at_the_gate_and_goes_on_with_a_reason(finished: Path, tmp_path: Path) -> None:
    """On a copy of a finished round, whose aggregate and what follows is made again under a limit that it breaks."""
    workspace = Path(shutil.copytree(finished, tmp_path / "w"))
    folder = workspace / "rounds" / "001"
    shutil.rmtree(folder / "promote")
    settings = [*small_settings(), "--set", "aggregate.gate.max_judge_flip_rate=0.1"]
    done = in_a_process("run", "demo", "--workspace", str(workspace), *settings)
    assert done.returncode == 1, done.stderr
    assert "order flips of tiny-biased" in done.stderr.splitlines()[-1]
    assert any(line.startswith("broken") for line in done.stderr.splitlines())
    reason = "its slot is averaged <b>out</b>"
    done = in_a_process("run", "--workspace", str(workspace), "--override-gate", reason)
    assert done.returncode == 0, done.stderr
    events = [json.loads(line) for line in (folder / "journal.jsonl").read_text().splitlines()]
    failed = [event for event in events if event["event"] == "failed"]
    assert failed[-1]["stage"] == "aggregate"
    assert any(line.startswith("broken") for line in failed[-1]["details"])
    assert [event["reason"] for event in events if event["event"] == "gate_overridden"] == [reason]
    manifest = read_manifest(folder / "aggregate")
    assert manifest is not None
    assert manifest.metrics["gate"]["override"] == reason
    page = build_report(folder).read_text()
    assert "its slot is averaged &lt;b&gt;out&lt;/b&gt;" in page

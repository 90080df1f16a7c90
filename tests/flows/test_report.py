"""The report of a round: complete, honest about what is absent, inert, self-contained, and the same bytes each time."""

from __future__ import annotations

import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from flows.report import build_report
from flows.report.data import STAGES, read_round
from flows.report.measures import calibration_bins, proportion
from flows.report.samples import choose
from flows.report.text import NOTHING, number, percent, plain, shorten, visible
from flows.report.values import VoteCount, estimate, vote_count
from flows.specs import ROUND
from store.errors import UsageError
from store.files import write_json
from store.journal import Journal
from store.manifest import MANIFEST
from tests.flows.report_round import GROUPS, HOSTILE, JUDGES, build_round, event, finish

VOID = {"meta", "link", "br", "img", "hr", "input"}
SECTIONS = [
    "summary", "stages", "samples", "evaluation", "ppo", "reward", "judges", "votes", "preferences", "provenance",
]  # fmt: skip


class Page(HTMLParser):
    """What a browser would make of the page: elements, attributes, text, and tags that do not match."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.wrong: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open.pop() != tag:
            self.wrong.append(tag)

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join("".join(self.words).split())

    def ids(self) -> list[str]:
        return [attributes["id"] or "" for _, attributes in self.tags if "id" in attributes]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_round(tmp_path_factory.mktemp("report") / "001")


@pytest.fixture
def folder(built: Path, tmp_path: Path) -> Path:
    """A copy to change."""
    return Path(shutil.copytree(built, tmp_path / "001"))


@pytest.fixture(scope="module")
def html(built: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    return build_report(built, tmp_path_factory.mktemp("out") / "report.html").read_text(encoding="utf-8")


def report(folder: Path) -> Page:
    return Page(build_report(folder).read_text(encoding="utf-8"))


def remove(folder: Path, *stages: str) -> None:
    for stage in stages:
        shutil.rmtree(folder / stage)


def test_the_stages_are_those_of_the_round() -> None:
    assert list(STAGES) == ROUND


def test_it_goes_to_the_round_folder_by_default(folder: Path) -> None:
    assert build_report(folder) == folder / "report.html"
    assert not list(folder.glob(".report*"))


def test_every_section_is_there_with_its_numbers(html: str) -> None:
    page = Page(html)
    assert page.wrong == []
    assert page.open == []
    assert [name for name in page.ids() if name in SECTIONS] == SECTIONS
    for words in (
        "Round 1",
        "Promoted",
        "beats its reference in 64.1% of comparisons (95% interval 58.6% to 69.6%)",
        "3 judges attempted 864 votes",
        "PPO ran 40 updates",
        "no guardrail stopped it: all updates ran",
        "An earlier attempt failed: killed by signal 9",
        "at equal length",
        "24 verdicts below come from programs that play an auditor; no person looked at a pair",
        "evaluator-rubric",
        "0.1.0+1a2b3c4d5e6f",
    ):
        assert words in page.text, words
    assert "incomplete" not in page.text
    for group in GROUPS:
        assert group in page.text


def test_it_is_accessible(html: str) -> None:
    page = Page(html)
    plots = [attributes for tag, attributes in page.tags if tag == "svg"]
    assert len(plots) >= 18
    assert all(plot["role"] == "img" and plot["aria-label"] for plot in plots)
    assert len({plot["aria-label"] for plot in plots}) == len(plots)
    heads = [attributes for tag, attributes in page.tags if tag == "th"]
    assert heads
    assert all(head.get("scope") for head in heads)
    assert [tag for tag, _ in page.tags].count("h1") == 1
    assert ("html", {"lang": "en"}) in page.tags
    anchors = [str(attributes["href"])[1:] for tag, attributes in page.tags if tag == "a"]
    assert set(anchors) <= set(page.ids())
    assert len(page.ids()) == len(set(page.ids()))


def test_it_loads_nothing_and_runs_nothing(html: str) -> None:
    page = Page(html)
    assert not {"script", "iframe", "object", "embed", "img", "base", "form"} & {tag for tag, _ in page.tags}
    assert not re.search(r"(https?:)?//[a-z]", html, re.IGNORECASE)
    assert not re.search(r"url\((?!#)|@import|@font-face", html)
    policies = [attributes["content"] for _, attributes in page.tags if "http-equiv" in attributes]
    assert policies == ["default-src 'none'; style-src 'unsafe-inline'; img-src data:"]
    for tag, attributes in page.tags:
        assert not any(name.startswith("on") for name in attributes), tag
        for name in ("href", "src"):
            assert str(attributes.get(name, "#")).startswith(("#", "data:")), (tag, attributes)


def test_the_same_round_gives_the_same_bytes(folder: Path, html: str) -> None:
    assert build_report(folder).read_text(encoding="utf-8") == html
    assert build_report(folder).read_text(encoding="utf-8") == html


def test_hostile_text_is_inert_and_visible(tmp_path: Path) -> None:
    folder = build_round(tmp_path / "hostile", hostile=True)
    decision = {"promoted": False, "reason": f"{HOSTILE} \ud800", "checks": [{"name": HOSTILE, "value": HOSTILE}]}
    (folder / "promote" / "decision.json").write_text(json.dumps(decision), encoding="utf-8")
    event(folder, "failed", stage="promote", attempt=9, error=HOSTILE)
    votes = pq.read_table(folder / "judge" / "votes.parquet").to_pandas()
    votes["judge"] = votes["judge"] + HOSTILE + ' font-family: x" transform="rotate(-0 x="1.23456'
    pq.write_table(pa.Table.from_pandas(votes, preserve_index=False), folder / "judge" / "votes.parquet")
    text = build_report(folder).read_text(encoding="utf-8")
    page = Page(text)
    assert page.wrong == []
    assert page.open == []
    assert not {"script", "img"} & {tag for tag, _ in page.tags}
    assert '<script>alert("x")</script>' in page.text
    assert "{{ 7*7 }}" in page.text
    for hidden in ("\u202e", "\u200b", "\x00", "\ud800"):
        assert hidden not in text
    assert "U+202E" in page.text
    assert "U+0000" in page.text
    assert "U+D800" in page.text


@pytest.mark.parametrize("stage", STAGES)
def test_an_absent_stage_is_said_and_not_guessed(folder: Path, stage: str) -> None:
    remove(folder, stage)
    (folder / "journal.jsonl").unlink()
    assert {row.name: row.state for row in read_round(folder).stages}[stage] == "absent"
    page = report(folder)
    assert page.wrong == []
    assert "This report is incomplete" not in page.text
    assert "nan" not in page.text.lower().split()


def test_an_unfinished_round_says_how_far_it_came(folder: Path) -> None:
    remove(folder, "ppo", "evaluate", "promote")
    event(folder, "started", stage="ppo", attempt=3)
    page = report(folder)
    assert "No decision yet" in page.text
    assert "The stage ppo has not finished." in page.text
    assert "PPO has not finished." in page.text
    assert "The evaluation has not finished, or compared no responses." in page.text


def test_a_folder_without_a_manifest_is_not_looked_at(folder: Path) -> None:
    (folder / "evaluate" / MANIFEST).unlink()
    assert read_round(folder).evaluation is None
    assert "The evaluation has not finished." in report(folder).text


def test_switched_off_is_not_the_same_as_not_run(tmp_path: Path) -> None:
    folder = build_round(tmp_path / "off", audit=False, sft=False)
    states = {row.name: row.state for row in read_round(folder).stages}
    assert states["sft"] == states["audit"] == "off"
    assert "switched off" in report(folder).text


def test_a_round_from_a_champion_needs_no_sft(folder: Path) -> None:
    remove(folder, "sft")
    (folder / "journal.jsonl").unlink()
    write_json(folder / "round.json", {"tuned": True})
    assert read_round(folder).stages[0].state == "off"


def test_states_follow_the_journal(folder: Path) -> None:
    event(folder, "started", stage="reward", attempt=2)
    event(folder, "reused", stage="reward", attempt=2, seconds=63.9)
    event(folder, "started", stage="evaluate", attempt=2)
    event(folder, "interrupted", stage="evaluate", attempt=2, error="KeyboardInterrupt")
    rows = {row.name: row for row in read_round(folder).stages}
    # Found complete when the round was continued: this round made it itself.
    assert (rows["reward"].state, rows["reward"].attempts) == ("finished", 1)
    assert (rows["evaluate"].state, rows["evaluate"].attempts) == ("unfinished", 2)
    assert (rows["ppo"].state, rows["ppo"].attempts) == ("finished", 2)
    (folder / "journal.jsonl").unlink()
    event(folder, "started", stage="reward", attempt=1)
    event(folder, "reused", stage="reward", attempt=1, seconds=63.9)
    rows = {row.name: row for row in read_round(folder).stages}
    assert rows["reward"].state == "reused"
    assert rows["ppo"].attempts is None


def test_damage_is_named_on_the_page(folder: Path) -> None:
    (folder / "judge" / "votes.parquet").write_bytes(b"no parquet")
    (folder / "evaluate" / "evaluation.json").write_text("{")
    (folder / "ppo" / "updates.parquet").unlink()
    frame = pq.read_table(folder / "aggregate" / "preferences.parquet").drop_columns(["source"])
    pq.write_table(frame, folder / "aggregate" / "preferences.parquet")
    page = report(folder)
    assert "This report is incomplete." in page.text
    for name in ("judge/votes.parquet", "evaluate/evaluation.json", "ppo/updates.parquet", "lacks source"):
        assert name in page.text, name


def test_missing_metrics_are_a_dash(folder: Path) -> None:
    for stage in STAGES:
        finish(folder, stage, {}, journal=False)
    write_json(folder / "evaluate" / "evaluation.json", {"win_rate": {"mean": None, "n": 0}, "expected_reward": None})
    page = report(folder)
    assert page.wrong == []
    assert "No win rate was recorded." in page.text
    assert "not measured" in page.text


def test_a_vote_that_is_not_accounted_for_is_seen(folder: Path) -> None:
    (folder / "judge" / "votes.parquet").unlink()
    path = folder / "judge" / MANIFEST
    manifest = json.loads(path.read_text())
    manifest["metrics"]["per_judge"]["rubric"]["attempted"] += 1
    path.write_text(json.dumps(manifest))
    assert "Votes are missing from the account" in report(folder).text


def test_an_unknown_status_is_refused(folder: Path) -> None:
    path = folder / "judge" / "votes.parquet"
    votes = pq.read_table(path).to_pandas()
    votes.loc[0, "status"] = "shrug"
    pq.write_table(pa.Table.from_pandas(votes, preserve_index=False), path)
    assert "unknown status shrug" in report(folder).text


def test_what_is_no_round_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="does not exist"):
        build_report(tmp_path / "nowhere")
    with pytest.raises(UsageError, match="neither"):
        build_report(tmp_path)


def test_samples_are_honest(built: Path) -> None:
    responses = pq.read_table(built / "evaluate" / "responses.parquet").to_pandas()
    choice = choose(responses)
    assert choice is not None
    shown = [sample.prompt_id for _, _, part in choice.sections for sample in part]
    assert len(shown) == len(set(shown))
    wide = responses.pivot_table(index=["prompt_id", "sample"], columns="policy", values="oracle")
    gains = wide["policy"] - wide["reference"]
    assert choice.best[0].gain == pytest.approx(gains.max())
    assert choice.worst[0].gain == pytest.approx(gains.min())
    assert [sample.group for sample in choice.drawn] == sorted(GROUPS)
    assert (choice.won, choice.lost) == (int((gains > 0).sum()), int((gains < 0).sum()))
    shuffled = choose(responses.sample(frac=1, random_state=3))
    assert shuffled == choice


def test_samples_without_an_oracle_go_by_the_judges(built: Path) -> None:
    responses = pq.read_table(built / "evaluate" / "responses.parquet").to_pandas().assign(oracle=None)
    choice = choose(responses)
    assert choice is not None
    best = responses[responses["policy"] == "policy"]["win_probability"].max()
    assert choice.best[0].gain == pytest.approx(best - 0.5)
    assert choose(responses[responses["policy"] == "policy"]) is None


def test_calibration_is_folded_onto_the_models_favourite() -> None:
    frame = pd.DataFrame({"predicted": [0.95, 0.1, 0.55], "p_chosen": [0.9, 0.8, 0.6]})
    bins = calibration_bins(frame)
    assert [item.n for item in bins] == [1, 2]
    assert bins[1].predicted == pytest.approx((0.95 + 0.9) / 2)
    assert bins[1].labelled == pytest.approx((0.9 + 0.2) / 2)
    assert bins[0].std_error is None


def test_estimates_are_read_and_never_made_up() -> None:
    assert estimate({"mean": None}) is None
    assert estimate(float("nan")) is None
    assert estimate(True) is None
    assert estimate({"accuracy": 0.5, "n": 4}) is not None
    assert vote_count({"attempted": 3, "scored": 3}) is None
    assert not VoteCount(5, 1, 1, 1, 1, 0).balanced
    share = proportion(estimate({"mean": 0.5, "n": 10}))
    assert share is not None
    # Wilson's interval of 5 in 10, as tabulated.
    assert (share.low, share.high) == (pytest.approx(0.2366, abs=1e-4), pytest.approx(0.7634, abs=1e-4))


def test_the_causes_of_missing_answers_are_shown(built: Path) -> None:
    """Each judge's errors are one row with their number, whatever seconds they name."""
    page = build_report(built).read_text()
    caption = page.split("Why votes have no answer")[1].split("</table>")[0]
    votes = pq.read_table(built / "judge" / "votes.parquet").to_pylist()
    for judge in JUDGES:
        failed = sum(row["judge"] == judge and row["status"] == "error" for row in votes)
        row = f'<td>training pairs</td><th scope="row">{judge}</th><td>error</td><td>status 429: slow down, # s</td>'
        assert (f'{row}<td class="num">{failed}</td>' in caption) == (failed > 0)
    assert "valid answers too unlikely" in caption
    assert "Both are fine." in caption


def test_the_audit_says_what_counts_and_how_auditors_did_on_gold(built: Path) -> None:
    words = " ".join(Page(build_report(built).read_text()).words)
    assert "4 verdicts do not count: quarantined." in words
    assert "settled by a lead" not in words
    assert "3 verdicts on 2 pairs of earlier rounds came late and counted here." in words
    assert "panel 22 86.0% 76.0% to 96.0% 71.0% 61.0% to 81.0% 87.0%" in words, "corrected, naive, weighted"
    # Wilson's interval of 9 in 10, as tabulated.
    assert re.search(r"90(\.0)? ?% of 10\s+60 ?% to 98 ?%|90(\.0)? ?% of 10\s+59\.6 ?%.*98\.2 ?%", words), words[-6000:]


def test_the_gate_says_what_it_could_not_measure(built: Path) -> None:
    words = " ".join(Page(build_report(built).read_text()).words)
    assert "order flips panel" in words
    assert f"Not measured, so it stopped nothing: canary flips of {next(iter(JUDGES))}." in words


def test_text() -> None:
    assert plain("a\u202eb\nc\r\nd") == "a⟨U+202E⟩b\nc\nd"
    assert visible("<b>\u2066") == '&lt;b&gt;<span class="hidden-char">U+2066</span>'
    assert "3 more characters" in visible("abcdef", 3)
    assert visible(None) == percent(None) == number(None) == NOTHING
    assert number(-0.001) == "0.00"
    assert shorten("a\n" * 40, 10) == "a a a a a…"
    assert visible("héllo, 日本語, עברית") == "héllo, 日本語, עברית"


def test_biases_have_their_intervals_and_reasons(html: str) -> None:
    text = Page(html).text
    for words in (
        "Biases of each judge",
        "31.0% 25.0% to 38.0%".replace(" ", ""),
        "+8.0% beyond the other judges, +2.0% to +14.0%".replace(" ", ""),
        "Not measured: the judge has no family and no model.",
        "Biases by group",
    ):
        assert words.replace(" ", "") in text.replace(" ", "")


def test_rounds_of_before_have_no_biases_but_a_page(folder: Path) -> None:
    path = folder / "judge" / MANIFEST
    manifest = json.loads(path.read_text())
    for figures in manifest["metrics"]["per_judge"].values():
        for name in [name for name in figures if name.startswith(("order_flip", "first_slot", "length", "by_group"))]:
            del figures[name]
    del manifest["metrics"]["self_preference"]
    write_json(path, manifest)
    page = report(folder)
    assert "Biases of each judge" not in page.text
    assert "Each judge" in page.text


def test_drift_is_told_with_its_interval_and_what_changed(folder: Path) -> None:
    assert "Drift on the anchor pairs" not in report(folder).text
    before = {"number": 1, "fingerprint": "a" * 64, "asked_at": "2026-03-01"}
    drift = {"before": before, "pairs": 40, "flips": 10, "flip_rate": 0.25, "flip_low": 0.142, "flip_high": 0.402}
    more = {"from_gold": 7, "toward_gold": 3}
    journal = Journal(folder / "journal.jsonl")
    about = {"number": 2, "fingerprint": "b" * 64, "asked_at": "2026-03-02"}
    changed = {"changed": ["prompt.jinja"], "previous": {**drift, **more}, "first": None}
    journal.write("drift", judge="rubric", **about)  # an older event of the same judge does not count
    journal.write("drift", judge="rubric", **about, **changed)
    journal.write("drift", judge=HOSTILE, **about, changed="?", previous={"before": 3, "flip_rate": "x"}, first=None)
    page = report(folder)
    assert page.wrong == []
    table = page.text.split("Drift on the anchor pairs")[1].split("The anchors are")[0]
    for words in ("drifted", "10 of 40", "25.0%, 14.2% to 40.2%", "prompt.jinja", "aaaaaaaaaaaa to bbbbbbbbbbbb"):
        assert (words in table) == (words != "drifted"), words  # the round's config has no limit
    settings = yaml.safe_load((folder / "round.yaml").read_text())
    (folder / "round.yaml").write_text(yaml.safe_dump({**settings, "drift": {"max_flip_rate": 0.1}}))
    assert "drifted" in report(folder).text.split("Drift on the anchor pairs")[1]

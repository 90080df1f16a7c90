"""The stage through run_stage, on files, with the shipped oracle."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from audit.config import AuditConfig, SimulatedAuditor
from audit.items import ITEMS
from flows.specs import STAGES
from flows.stages.audit import audit, run
from store.config import parse
from store.errors import UsageError, WaitingError
from store.hashing import short_id
from store.schemas import ATTACKS, GOLD, PAIRS, SELECTION, VERDICTS, VOTES
from store.stage import Job, Outcome, Source, run_stage
from store.tables import read_table, write_table

GOOD, BAD = "Nobody owns Antarctica.", "Antarctica Antarctica owns the the"


@pytest.fixture
def tables(tmp_path: Path) -> dict[str, str]:
    """60 pairs; the first response is the good one on even pairs. One judge is right on three of four."""
    pairs, votes = [], []
    for i in range(60):
        good_first = i % 2 == 0
        pairs.append(
            {
                "pair_id": f"p{i}",
                "prompt_id": f"x{i}",
                "prompt": "Which country owns Antarctica?",
                "rollout_a": f"r{i}a",
                "rollout_b": f"r{i}b",
                "response_a": GOOD if good_first else f"{BAD} {i}",
                "response_b": f"{BAD} {i}" if good_first else GOOD,
                "group": "facts",
                "split": "train",
                "reference": GOOD,
            }
        )
        for order in ("ab", "ba"):
            p_a = 0.6 + 0.005 * i
            p_a = p_a if good_first == (i % 4 != 3) else 1 - p_a
            votes.append(
                {
                    "vote_id": f"v{i}{order}",
                    "pair_id": f"p{i}",
                    "prompt_id": f"x{i}",
                    "rollout_a": f"r{i}a",
                    "rollout_b": f"r{i}b",
                    "judge": "j",
                    "fingerprint": "f",
                    "order": order,
                    "status": "scored",
                    "winner": "a" if p_a > 0.5 else "b",
                    "p_a": p_a,
                    "tokens_in": 0,
                    "tokens_out": 0,
                    "cost": 0.0,
                    "latency_s": 0.0,
                    "attempts": 1,
                }
            )
    write_table(tmp_path / "pairs.parquet", PAIRS, pa.Table.from_pylist(pairs, schema=PAIRS.schema))
    write_table(tmp_path / "votes.parquet", VOTES, pa.Table.from_pylist(votes, schema=VOTES.schema))
    return {"pairs": str(tmp_path / "pairs.parquet"), "votes": str(tmp_path / "votes.parquet")}


def inputs(given: dict[str, str]) -> dict[str, list[Source]]:
    sources = {spec.name: spec.source for spec in STAGES["audit"].inputs}
    return {name: [sources[name](value)] for name, value in given.items()}


def stage(tmp_path: Path, given: dict[str, str], out: str = "out", seed: int = 17, **config: object) -> Outcome:
    return run_stage("audit", run, inputs=inputs(given), config=AuditConfig(**config), seed=seed, out=tmp_path / out)


def test_the_specification_names_this_function() -> None:
    assert STAGES["audit"].load() is run


def test_off_writes_empty_tables(tmp_path: Path, tables: dict[str, str]) -> None:
    done = stage(tmp_path, tables)
    assert done.manifest.metrics["gate"] == "off"
    assert done.manifest.metrics["drawn"] == done.manifest.metrics["verdicts"] == 0
    assert done.manifest.metrics["simulated"] is False
    for name, table in (("selection", SELECTION), ("verdicts", VERDICTS), ("items", ITEMS)):
        assert read_table(done.folder / f"{name}.parquet", table, allow_empty=True).num_rows == 0


def test_simulated_with_the_shipped_oracle(tmp_path: Path, tables: dict[str, str]) -> None:
    given = tables | {"oracle": "tiny-oracle"}
    config = {"mode": "simulated", "budget": 40, "auditors": [SimulatedAuditor(name="careful", accuracy=1.0)]}
    done = stage(tmp_path, given, **config)
    metrics = done.manifest.metrics
    assert (metrics["gate"], metrics["simulated"], metrics["pairs"]) == ("simulated", True, 60)
    assert 25 < metrics["drawn"] < 55
    assert metrics["drawn"] == metrics["drawn_uniform"] + metrics["drawn_targeted"]
    assert metrics["auditors"] == {"simulated-careful": metrics["drawn"]}
    selection = read_table(done.folder / "selection.parquet", SELECTION)
    assert sum(selection["inclusion_probability"].to_pylist()) == pytest.approx(40)
    chances = dict(zip(selection["pair_id"].to_pylist(), selection["inclusion_probability"].to_pylist(), strict=True))
    verdicts = read_table(done.folder / "verdicts.parquet", VERDICTS).to_pylist()
    drawn = {row["pair_id"] for row in selection.to_pylist() if row["drawn"]}
    assert {row["pair_id"] for row in verdicts} == drawn
    assert set(read_table(done.folder / "items.parquet", ITEMS)["pair_id"].to_pylist()) == drawn
    for row in verdicts:
        assert row["simulated"]
        assert row["winner"] == ("a" if int(row["pair_id"][1:]) % 2 == 0 else "b"), "the oracle tells good from bad"
        assert row["inclusion_probability"] == chances[row["pair_id"]]
    (judge,) = metrics["estimates"]["judges"]
    assert judge["low"] <= 0.75 <= judge["high"]
    assert abs(judge["hajek"] - 0.75) < 4 * judge["hajek_std_error"] + 0.05
    json.dumps(metrics, allow_nan=False)

    again = stage(tmp_path, given, out="again", **config)
    for name in ("selection", "items", "verdicts"):
        assert (done.folder / f"{name}.parquet").read_bytes() == (again.folder / f"{name}.parquet").read_bytes()
    other = stage(tmp_path, given, out="other", seed=18, **config)
    assert (done.folder / "verdicts.parquet").read_bytes() != (other.folder / "verdicts.parquet").read_bytes()


def test_known_winners_steer_the_draw(tmp_path: Path, tables: dict[str, str]) -> None:
    """Two judges that never agree: the votes alone doubt every pair alike. Pairs with known winners say that the first
    is right, so that people are asked where it is unsure."""
    votes = read_table(Path(tables["votes"]), VOTES).to_pylist()
    for row in votes:
        sure = int(row["pair_id"][1:]) < 30
        row["p_a"] = (0.95 if sure else 0.55) if row["winner"] == "a" else (0.05 if sure else 0.45)
    votes += [
        row
        | {"vote_id": f"k{row['vote_id']}", "judge": "k", "fingerprint": "fk", "p_a": 1 - row["p_a"]}
        | {"winner": "b" if row["winner"] == "a" else "a"}
        for row in votes
    ]
    gold = read_table(Path(tables["pairs"]), PAIRS).to_pylist()
    right = {row["pair_id"]: row["winner"] for row in votes if row["judge"] == "j"}
    gold = [row | {"pair_id": f"g{row['pair_id']}", "winner": right[row["pair_id"]]} for row in gold]
    gold_votes = [row | {"pair_id": f"g{row['pair_id']}", "vote_id": f"g{row['vote_id']}"} for row in votes]
    given = {"pairs": tables["pairs"], "oracle": "tiny-oracle"}
    for name, table, rows in (("votes", VOTES, votes), ("gold", GOLD, gold), ("gold_votes", VOTES, gold_votes)):
        given[name] = str(tmp_path / f"steered_{name}.parquet")
        write_table(Path(given[name]), table, pa.Table.from_pylist(rows, schema=table.schema))

    def chances(out: str, **config: object) -> list[float]:
        done = stage(tmp_path, given, out, mode="simulated", budget=20, gold_share=0, **config)
        found: list[float] = read_table(done.folder / "selection.parquet", SELECTION)[
            "inclusion_probability"
        ].to_pylist()
        return found

    blind = chances("blind", weights={"labels": 0})
    assert max(blind) == pytest.approx(min(blind)), "one judge of two is always in the minority"
    steered = chances("steered")
    assert min(steered[30:]) > 2 * max(steered[:30])
    assert sum(steered) == pytest.approx(20)


def test_pairs_where_attacks_won_are_looked_at(tmp_path: Path, tables: dict[str, str]) -> None:
    """The judge is surest of the last pairs; where attacks won it over on them, people look there all the same, and see
    nothing of that."""
    on = [f"p{n}" for n in range(50, 60)]
    rows = [
        {"attack_id": f"{pair}.{n}", "pair_id": pair, "judge": "j", "fingerprint": "f", "canary": f"c{n}"}
        | {"kind": "null", "target": "b", "outcome": "flipped" if n < 2 else "kept", "p_before": 0.1, "p_after": 0.4}
        for pair in on
        for n in range(3)
    ]
    path = write_table(tmp_path / "attacks.parquet", ATTACKS, pa.Table.from_pylist(rows, schema=ATTACKS.schema))
    nothing = write_table(tmp_path / "nothing.parquet", ATTACKS, ATTACKS.schema.empty_table())
    config = {"mode": "simulated", "budget": 30, "auditors": [SimulatedAuditor(name="careful")]}
    given = tables | {"oracle": "tiny-oracle"}
    plain, empty, done = (
        stage(tmp_path, given | more, out, **config)
        for out, more in (("plain", {}), ("empty", {"attacks": str(nothing)}), ("done", {"attacks": str(path)}))
    )
    for name in ("selection", "items", "verdicts"):
        assert (plain.folder / f"{name}.parquet").read_bytes() == (empty.folder / f"{name}.parquet").read_bytes()
    before, after = (read_table(one.folder / "selection.parquet", SELECTION).to_pylist() for one in (plain, done))
    for old, new in zip(before, after, strict=True):
        assert ("2 of 3 attacks on it won a judge over" in new["reason"]) == (new["pair_id"] in on)
        assert (new["inclusion_probability"] > old["inclusion_probability"]) == (new["pair_id"] in on)
    seen = pq.read_table(done.folder / "items.parquet")
    assert seen.schema.names == ITEMS.schema.names
    assert "attack" not in str(seen.to_pylist())


def test_people_through_the_inbox_and_a_kill(tmp_path: Path, tables: dict[str, str]) -> None:
    """Someone reads the published items and answers in two files; the stage is killed between them."""
    inbox = tmp_path / "inbox"
    config = AuditConfig(mode="people", budget=60, inbox=str(inbox), wait=True, poll_s=10, timeout_s=1000)
    now = [datetime(2026, 1, 1, tzinfo=UTC)]
    naps = [0]

    def answer(file: str, half: int) -> None:
        (folder,) = (inbox / "items").iterdir()
        items = [json.loads(line) for line in (folder / "items.jsonl").read_text().splitlines()]
        lines = [
            {"pair_id": item["pair_id"], "auditor": "ann", "choice": "left" if item["left"] == GOOD else "right"}
            for number, item in enumerate(items)
            if number % 2 == half
        ]
        (inbox / file).write_text("".join(json.dumps(line) + "\n" for line in lines) + "rubbish\n" * half)

    def sleep(seconds: float) -> None:
        now[0] += timedelta(seconds=seconds)
        naps[0] += 1
        if naps[0] == 1:
            answer("first.jsonl", 0)
        elif naps[0] == 2:
            (inbox / "first.jsonl").unlink()
            raise KeyboardInterrupt
        elif naps[0] == 3:
            answer("second.jsonl", 1)

    def go() -> Outcome:
        def function(job: Job[AuditConfig]) -> dict[str, object]:
            return audit(job, clock=lambda: now[0], sleep=sleep)

        return run_stage("audit", function, inputs=inputs(tables), config=config, seed=17, out=tmp_path / "out")

    with pytest.raises(KeyboardInterrupt):
        go()
    assert not (tmp_path / "out").exists()
    done = go()
    metrics = done.manifest.metrics
    assert metrics["gate"] == "quota"
    assert metrics["simulated"] is False
    assert metrics["handled"] == metrics["drawn"] == metrics["verdicts"] == 60
    assert metrics["auditors"] == {"ann": 60}
    assert metrics["intake"]["malformed"] == 1
    assert metrics["problem_files"] == ["second.jsonl"]
    assert json.loads((done.folder / "intake.json").read_text())["problems"]["second.jsonl"][0]["where"] == "line 31"
    verdicts = read_table(done.folder / "verdicts.parquet", VERDICTS).to_pylist()
    assert all(row["winner"] == ("a" if int(row["pair_id"][1:]) % 2 == 0 else "b") for row in verdicts)
    assert {row["shown_left"] for row in verdicts} == {"a", "b"}
    assert metrics["estimates"]["panel"]["naive"] == 0.75
    assert not [path for path in done.folder.iterdir() if path.name.startswith(".")]
    assert go().reused


def test_time_is_up_without_people(tmp_path: Path, tables: dict[str, str]) -> None:
    done = stage(tmp_path, tables, mode="people", inbox=str(tmp_path / "inbox"), timeout_s=0)
    assert done.manifest.metrics["gate"] == "timeout"
    assert read_table(done.folder / "verdicts.parquet", VERDICTS, allow_empty=True).num_rows == 0
    assert done.manifest.metrics["estimates"]["panel"]["hajek"] is None
    assert read_table(done.folder / "items.parquet", ITEMS).num_rows == 60, "a budget above N asks for all"


def test_items_reveal_nothing(tmp_path: Path, tables: dict[str, str]) -> None:
    stage(tmp_path, tables, mode="people", inbox=str(tmp_path / "inbox"), timeout_s=0)
    (folder,) = (tmp_path / "inbox" / "items").iterdir()
    assert sorted(path.name for path in folder.iterdir()) == ["HOW-TO.txt", "items.jsonl", "items.parquet"]
    assert pq.read_schema(folder / "items.parquet").names == ["pair_id", "prompt", "left", "right"]


@pytest.mark.parametrize(
    ("config", "message"),
    [({"mode": "people"}, "neither audit.database"), ({"mode": "simulated"}, "no oracle")],
)
def test_what_is_missing_is_said(tmp_path: Path, tables: dict[str, str], config: dict[str, str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        stage(tmp_path, tables, **config)
    assert not (tmp_path / "out").exists()


def test_an_oracle_that_only_compares(tmp_path: Path, tables: dict[str, str]) -> None:
    folder = tmp_path / "judge"
    folder.mkdir()
    (folder / "judge.yaml").write_text("name: lm\nbackend: transformers\nmodel: nowhere/none\n")
    (folder / "prompt.jinja").write_text("{{ prompt }} {{ first }} {{ second }}")
    with pytest.raises(UsageError, match="cannot score single responses"):
        stage(tmp_path, tables | {"oracle": str(folder)}, mode="simulated")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"uniform_fraction": 0.2}, "uniform_fraction"),
        ({"mode": "simulated", "overlap": 3}, "overlap 3 needs as many"),
        ({"auditors": [{"name": "x"}, {"name": "x"}]}, "name twice"),
        ({"qouta": 1}, "unknown key qouta"),
    ],
)
def test_config_is_checked(value: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        parse(AuditConfig, value, "round.yaml")


@pytest.fixture
def gold(tmp_path: Path) -> str:
    """Ten pairs with known winners: a on even ones."""
    rows = [
        {
            "pair_id": short_id("gold", i),
            "prompt_id": f"g{i}",
            "prompt": "Which country owns Antarctica?",
            "rollout_a": f"g{i}a",
            "rollout_b": f"g{i}b",
            "response_a": GOOD if i % 2 == 0 else f"{BAD} gold {i}",
            "response_b": f"{BAD} gold {i}" if i % 2 == 0 else GOOD,
            "group": "facts",
            "split": "calibration",
            "reference": GOOD,
            "winner": "a" if i % 2 == 0 else "b",
        }
        for i in range(10)
    ]
    write_table(tmp_path / "gold.parquet", GOLD, pa.Table.from_pylist(rows, schema=GOLD.schema))
    return str(tmp_path / "gold.parquet")


def test_hidden_gold_measures_auditors_and_enters_nothing_else(
    tmp_path: Path, tables: dict[str, str], gold: str
) -> None:
    given = tables | {"oracle": "tiny-oracle"}
    auditors = [SimulatedAuditor(name="sure", accuracy=1.0), SimulatedAuditor(name="troll", kind="troll")]
    config = {"mode": "simulated", "budget": 20, "overlap": 2, "gold_share": 0.3, "auditors": auditors}
    plain = stage(tmp_path, given, out="plain", **config)
    done = stage(tmp_path, given | {"gold": gold}, **config)
    assert done.manifest.metrics["gold"] == {
        "simulated-sure": {"answered": 6, "right": 6},
        "simulated-troll": {"answered": 6, "right": 0},
    }
    for name in ("selection", "verdicts", "late_verdicts"):
        assert (done.folder / f"{name}.parquet").read_bytes() == (plain.folder / f"{name}.parquet").read_bytes()
    rows = pq.read_table(done.folder / "gold_verdicts.parquet").to_pylist()
    assert all(row["inclusion_probability"] is None and row["gold_winner"] in "ab" for row in rows)
    items = read_table(done.folder / "items.parquet", ITEMS)
    assert items.num_rows == done.manifest.metrics["drawn"] + 6


def test_gold_in_an_inbox_looks_like_any_item(tmp_path: Path, tables: dict[str, str], gold: str) -> None:
    given = tables | {"gold": gold}
    inbox = tmp_path / "inbox"
    config = {"mode": "people", "inbox": str(inbox), "budget": 20, "gold_share": 0.5}
    with pytest.raises(WaitingError):
        stage(tmp_path, given, **config)
    (folder,) = (inbox / "items").iterdir()
    items = [json.loads(line) for line in (folder / "items.jsonl").read_text().splitlines()]
    own = set(pq.read_table(gold)["pair_id"].to_pylist())
    assert not own & {item["pair_id"] for item in items}, "whoever has the gold file cannot look an item up"
    lines = [
        {"pair_id": item["pair_id"], "auditor": "ann", "choice": "left" if item["left"] == GOOD else "right"}
        for item in items
    ]
    (inbox / "ann.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    done = stage(tmp_path, given, **config)
    metrics = done.manifest.metrics
    assert metrics["gold"] == {"ann": {"answered": 10, "right": 10}}
    assert metrics["verdicts"] == metrics["drawn"] == metrics["handled"]
    assert set(pq.read_table(done.folder / "gold_verdicts.parquet")["pair_id"].to_pylist()) == own
    assert metrics["intake"]["foreign"] == 0


def test_people_through_the_queue(tmp_path: Path, tables: dict[str, str], gold: str) -> None:
    """The stage says that it waits; people answer in the queue; the same call goes on. Where the database lies and how
    it is waited for is no part of the key, and in no file of the stage."""
    from audit.loop import open_queue
    from audit.queue.model import Answer, Role
    from audit.queue.people import People

    principles = tmp_path / "constitution.yaml"
    principles.write_text("principles:\n- text: It is true.\n- It is kind.\n")
    config = {"mode": "people", "budget": 10, "constitution": str(principles)}
    url = str(tmp_path / "audit.db")
    given = tables | {"gold": gold}
    for _ in range(2):
        with pytest.raises(WaitingError, match="Waiting for people: 0 of"):
            stage(tmp_path, given, database=url, **config)
    assert not (tmp_path / "out").exists()
    with open_queue(url, lambda: datetime.now(UTC)) as queue:
        (batch,) = queue.batches()
        assert queue.guidelines(batch.batch_id).constitution == "1. It is true.\n2. It is kind."
        ann = People(queue.database, lambda: datetime.now(UTC)).add("ann", Role.AUDITOR).id
        while claim := queue.claim(ann):
            choice = "left" if claim.item.left == GOOD else "right"
            queue.submit(ann, claim.item.item_id, claim.token, Answer(choice), str(claim.token))
    done = stage(tmp_path, given, database=url, **config)
    metrics = done.manifest.metrics
    assert (metrics["gate"], metrics["verdicts"], metrics["batch"]) == ("quota", metrics["drawn"], batch.name)
    assert metrics["gold"] == {"ann": {"answered": 1, "right": 1}}
    verdicts = read_table(done.folder / "verdicts.parquet", VERDICTS).to_pylist()
    assert all(row["winner"] == ("a" if int(row["pair_id"][1:]) % 2 == 0 else "b") for row in verdicts)
    assert stage(tmp_path, given, database="elsewhere.db", wait=True, poll_s=1, **config).reused
    for path in done.folder.rglob("*"):
        assert not path.is_file() or b"audit.db" not in path.read_bytes(), path


@pytest.mark.slow
def test_simulated_auditors_through_a_real_server(tmp_path: Path, tables: dict[str, str], gold: str) -> None:
    """Over HTTP they say what they say directly; only ids, times and sides differ. All rows are marked."""
    given = tables | {"oracle": "tiny-oracle", "gold": gold}
    auditors = [
        SimulatedAuditor(name="careful", accuracy=0.9),
        SimulatedAuditor(name="troll", kind="troll"),
        SimulatedAuditor(name="lefty", kind="left"),
    ]
    config = {"mode": "simulated", "budget": 30, "overlap": 3, "auditors": auditors}
    direct = stage(tmp_path, given, out="direct", **config)
    done = stage(tmp_path, given, via="http", **config)
    said = {}
    for name, outcome in (("direct", direct), ("http", done)):
        rows = read_table(outcome.folder / "verdicts.parquet", VERDICTS).to_pylist()
        assert all(row["simulated"] and row["auditor"].startswith("simulated-") for row in rows)
        assert all(row["winner"] == row["shown_left"] for row in rows if row["auditor"] == "simulated-lefty")
        said[name] = {
            (row["pair_id"], row["auditor"]): row["winner"] for row in rows if row["auditor"] != "simulated-lefty"
        }
        assert len(rows) == 3 * outcome.manifest.metrics["drawn"]
    assert said["http"] == said["direct"]
    assert done.manifest.metrics["simulated"] is True
    assert done.manifest.metrics["gold"]["simulated-troll"] == {"answered": 3, "right": 0}
    assert all(pq.read_table(done.folder / "queue_rows.parquet")["simulated"].to_pylist())
    assert not list(done.folder.glob("**/*.db")), "the queue was for this run alone"


def test_late_files_in_an_inbox_count_in_the_next_round(tmp_path: Path, tables: dict[str, str]) -> None:
    inbox = tmp_path / "inbox"
    config = {"mode": "people", "inbox": str(inbox), "budget": 60, "timeout_s": 0}
    first = stage(tmp_path, tables, out="first", **config)
    items = pq.read_table(first.folder / "items.parquet").to_pylist()[:3]
    lines = [{"pair_id": item["pair_id"], "auditor": "ann", "choice": "tie"} for item in items]
    (inbox / "late.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    pairs, votes = (pq.read_table(tables[name]) for name in ("pairs", "votes"))
    other = {}
    for name, data in (("pairs", pairs), ("votes", votes)):
        columns = [c for c in ("pair_id", "vote_id") if c in data.column_names]
        for column in columns:
            renamed = pa.array([f"second-{value}" for value in data[column].to_pylist()])
            data = data.set_column(data.schema.names.index(column), data.schema.field(column), renamed)
        pq.write_table(data, tmp_path / f"second-{name}.parquet")
        other[name] = str(tmp_path / f"second-{name}.parquet")
    given = inputs(other) | {"earlier": inputs({"earlier": str(first.folder)})["earlier"]}
    done = run_stage("audit", run, inputs=given, config=AuditConfig(**config), seed=18, out=tmp_path / "second")
    assert done.manifest.metrics["late"] == {"verdicts": 3, "pairs": 3}
    late = read_table(done.folder / "late_verdicts.parquet", VERDICTS).to_pylist()
    assert {row["pair_id"] for row in late} == {item["pair_id"] for item in items}
    assert read_table(done.folder / "late_pairs.parquet", PAIRS).num_rows == 3
    assert read_table(done.folder / "late_votes.parquet", VOTES).num_rows == 6

    made = run_stage(
        "aggregate",
        STAGES["aggregate"].load(),
        inputs={
            "pairs": _files(other["pairs"], done.folder / "late_pairs.parquet"),
            "votes": _files(other["votes"], done.folder / "late_votes.parquet"),
            "verdicts": _files(done.folder / "verdicts.parquet", done.folder / "late_verdicts.parquet"),
        },
        config=STAGES["aggregate"].config(method="mean", keep_ties=True, min_confidence=0.5),
        seed=1,
        out=tmp_path / "aggregate",
    )
    rows = pq.read_table(made.folder / "preferences.parquet").to_pylist()
    human = {row["pair_id"] for row in rows if row["source"] == "human"}
    assert human == {item["pair_id"] for item in items}


def _files(*paths: object) -> list[Source]:
    kind = {spec.name: spec.source for spec in STAGES["aggregate"].inputs}["pairs"]
    return [kind(str(path)) for path in paths]

"""The gate with real files; only the clock and the sleep are the test's."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from audit import inbox as inbox_module
from audit.answers import Batch
from audit.gate import Gate, Look, Rule, wait
from audit.inbox import Inbox
from audit.verdicts import Verdict, chain, handled, in_force, to_table
from store.errors import UsageError
from store.files import read_lines
from store.schemas import VERDICTS
from store.tables import write_table

START = datetime(2026, 1, 1, tzinfo=UTC)


class Clock:
    """Time that passes by sleeping; `at` lists what happens at which second."""

    def __init__(self) -> None:
        self.now = START
        self.naps: list[float] = []
        self.events: list[tuple[float, Callable[[], object]]] = []

    def __call__(self) -> datetime:
        return self.now

    def sleep(self, seconds: float) -> None:
        assert seconds > 0
        self.naps.append(seconds)
        self.now += timedelta(seconds=seconds)
        due = [event for event in self.events if self.now >= START + timedelta(seconds=event[0])]
        self.events = [event for event in self.events if event not in due]
        for _, act in due:
            act()


class Room:
    """An inbox, a state folder and a clock; pair p0 has a on the left, the others b."""

    def __init__(self, folder: Path) -> None:
        self.inbox, self.state, self.clock = folder / "inbox", folder / "state", Clock()
        self.inbox.mkdir()
        self.rule = Rule(quota=1.0, overlap=1, timeout_s=100.0)
        self.chances = {f"p{i}": 0.1 * (i + 1) for i in range(4)}

    def gate(self) -> Gate:
        batch = Batch(self.chances, left=lambda pair_id: "a" if pair_id == "p0" else "b")
        return Gate(batch, self.rule, Inbox(self.inbox), self.state, self.clock)

    def put(self, name: str, *answers: object) -> Path:
        path = self.inbox / name
        path.write_text("".join((a if isinstance(a, str) else json.dumps(a)) + "\n" for a in answers))
        return path


@pytest.fixture
def room(tmp_path: Path) -> Room:
    return Room(tmp_path)


def answer(pair: int | str, choice: str = "left", auditor: str = "ann", **more: object) -> dict[str, object]:
    return {"pair_id": f"p{pair}", "auditor": auditor, "choice": choice, **more}


def kinds(gate: Gate) -> dict[str, int]:
    return {kind: count for kind, count in gate.ledger.counts().items() if count}


def test_answers_by_side_map_back_to_rollouts(room: Room) -> None:
    room.put(
        "ann.jsonl",
        answer(0, "left", seconds=4, comment="ok", flaws=["rude"]),
        answer(1, "left", created_at="2026-01-01T02:00:00+02:00"),
        answer(2, "right"),
        answer(3, "tie"),
        answer(3, "skip", auditor="bob"),
    )
    gate = room.gate()
    look = gate.look()
    assert look == Look(4, 4, 4, "quota", look.readings)
    rows = {(v.pair_id, v.auditor): v for v in gate.ledger.verdicts.values()}
    assert [rows[f"p{i}", "ann"].winner for i in range(4)] == ["a", "b", "a", "tie"]
    assert [rows[f"p{i}", "ann"].shown_left for i in range(4)] == ["a", "b", "b", "b"]
    assert rows["p3", "bob"].winner is None
    assert rows["p0", "ann"].comment == "ok"
    assert rows["p0", "ann"].flaws == ("rude",)
    assert rows["p1", "ann"].created_at == START
    assert math.isnan(rows["p1", "ann"].seconds)
    assert [rows[f"p{i}", "ann"].inclusion_probability for i in range(4)] == pytest.approx([0.1, 0.2, 0.3, 0.4])


def test_parquet_tables_are_read_and_cannot_set_the_probability(room: Room) -> None:
    rows = [
        Verdict(f"v{i}", f"p{i}", "ann", "b", "a", 2.5, START, inclusion_probability=0.99, comment="c")
        for i in range(4)
    ]
    write_table(room.inbox / "ann.parquet", VERDICTS, to_table(rows))
    gate = room.gate()
    assert gate.look().opened == "quota"
    stored = gate.ledger.verdicts["v0"]
    assert (stored.winner, stored.shown_left, stored.seconds, stored.comment) == ("b", "a", 2.5, "c")
    assert stored.inclusion_probability == pytest.approx(0.1)
    assert not stored.simulated


def test_waits_until_the_quota(room: Room) -> None:
    room.clock.events = [
        (5, lambda: room.put("a.jsonl", answer(0))),
        (25, lambda: room.put("b.jsonl", answer(1), answer(2), answer(3))),
    ]
    told: list[tuple[int, int, str]] = []
    look = wait(room.gate(), 10, room.clock.sleep, lambda what, done, total, note="": told.append((done, total, note)))
    assert look.opened == "quota"
    assert room.clock.naps == [10, 10, 10]
    assert [(done, total) for done, total, _ in told] == [(0, 4), (1, 4), (1, 4), (4, 4)]
    assert told[0][2].startswith("4 open the gate, else at 2026-01-01T00:01:40")
    assert told[-1][2] == "open: quota"


def test_a_part_is_enough_with_a_lower_quota(room: Room) -> None:
    room.rule = Rule(quota=0.5)
    room.put("a.jsonl", answer(0), answer(1))
    assert room.gate().look().opened == "quota"
    room.chances = {f"p{i}": 0.5 for i in range(10)}
    room.rule = Rule(quota=0.7)
    assert room.gate().look().wanted == 7, "not 8 through rounding"


def test_overlap_wants_different_people(room: Room) -> None:
    room.rule = Rule(overlap=2)
    room.put("a.jsonl", *[answer(i) for i in range(4)], *[answer(i, "right") for i in range(4)])
    gate = room.gate()
    assert gate.look().handled == 0
    room.put("b.jsonl", *[answer(i, auditor="bob") for i in range(4)])
    assert gate.look().opened == "quota"


def test_time_is_up_with_a_last_look_at_the_deadline(room: Room) -> None:
    room.clock.events = [(99.5, lambda: room.put("a.jsonl", answer(0)))]
    gate = room.gate()
    look = wait(gate, 30, room.clock.sleep)
    assert (look.opened, look.handled) == ("timeout", 1)
    assert room.clock.naps == [30, 30, 30, 10]
    assert kinds(gate) == {"taken": 1, "late": 1}, "after the deadline, taken all the same"


def test_nothing_drawn_opens_at_once(room: Room) -> None:
    room.chances = {}
    assert wait(room.gate(), 1, room.clock.sleep).opened == "quota"


def test_a_kill_keeps_verdicts_and_deadline(room: Room) -> None:
    path = room.put("a.jsonl", answer(0), answer(1))
    room.gate().look()
    path.unlink()
    room.clock.now += timedelta(seconds=60)
    again = room.gate()
    assert again.deadline == START + timedelta(seconds=100)
    assert again.look().handled == 2
    room.put("b.jsonl", answer(2))
    room.clock.now += timedelta(seconds=60)
    third = room.gate()
    assert third.look().opened == "timeout"
    assert kinds(third) == {"taken": 3, "late": 1}
    assert kinds(room.gate()) == {"taken": 3, "late": 1}, "replayed"


def test_a_kill_in_the_middle_of_an_append_reads_the_file_again(room: Room) -> None:
    room.put("a.jsonl", answer(0))
    room.put("b.jsonl", answer(1))
    room.gate().look()
    ledger = room.state / "ledger.jsonl"
    ledger.write_bytes(ledger.read_bytes()[:-20])
    gate = room.gate()
    assert len(gate.ledger.verdicts) == 1
    assert gate.look().handled == 2
    assert kinds(gate) == {"taken": 2}
    assert len(room.gate().ledger.verdicts) == 2


def test_looking_again_changes_nothing(room: Room) -> None:
    room.put("a.jsonl", answer(0), answer(9), "no json")
    gate = room.gate()
    assert len(gate.look().readings) == 1
    assert gate.look().readings == ()
    os.utime(room.inbox / "a.jsonl", (1, 1))
    assert gate.look().readings == (), "touched, same content"
    assert room.gate().look().readings == (), "restarted, same content"
    assert len(read_lines(room.state / "ledger.jsonl")) == 1


def test_a_file_that_grows_is_read_on(room: Room) -> None:
    path = room.put("a.jsonl", answer(0, "left"))
    with path.open("a") as file:
        file.write('{"pair_id": "p1", "audi')
    gate = room.gate()
    gate.look()
    assert kinds(gate) == {"taken": 1, "malformed": 1}
    with path.open("a") as file:
        file.write('tor": "ann", "choice": "tie"}\n')
    room.clock.now += timedelta(seconds=1)
    gate.look()
    assert kinds(gate) == {"taken": 2}, "no row of the same file counts as its own duplicate"


def test_changes_of_mind_within_a_file(room: Room) -> None:
    room.put("a.jsonl", answer(0, "left"), answer(0, "right"), answer(0, "right"), answer(0, "left"))
    gate = room.gate()
    gate.look()
    assert kinds(gate) == {"taken": 3, "duplicate": 1}
    rows = in_force(_verdicts(gate))
    assert [row.winner for row in rows] == ["a"]
    path = room.inbox / "a.jsonl"
    path.write_text(path.read_text() + json.dumps(answer(0, "tie")) + "\n")
    room.clock.now += timedelta(seconds=1)
    gate.look()
    assert [row.winner for row in in_force(_verdicts(gate))] == ["tie"]
    assert len(gate.ledger.verdicts) == 4


def test_changes_of_mind_over_files_go_by_time(room: Room) -> None:
    later, earlier = "2026-01-02T00:00:00Z", "2026-01-01T00:00:00Z"
    room.put("1.jsonl", answer(0, "left", created_at=later))
    room.put("2.jsonl", answer(0, "right", created_at=earlier))
    gate = room.gate()
    gate.look()
    assert [row.winner for row in in_force(_verdicts(gate))] == ["a"]


def test_copies_and_conflicts_are_counted_and_named(room: Room) -> None:
    room.put("a.jsonl", answer(0), answer(1, verdict_id="v1"))
    room.put("copy.jsonl", answer(0), answer(1, verdict_id="v1"))
    room.put("other.jsonl", answer(1, "right", verdict_id="v1"))
    gate = room.gate()
    gate.look()
    assert kinds(gate) == {"taken": 2, "duplicate": 2, "conflict": 1}
    problems = gate.ledger.problems()
    assert list(problems) == ["copy.jsonl", "other.jsonl"]
    assert "in a.jsonl" in problems["copy.jsonl"][0].why
    assert "'v1' says something else than the one in a.jsonl" in problems["other.jsonl"][0].why
    assert gate.ledger.verdicts["v1"].winner == "b", "the first stays"


def test_foreign_rows_stay_for_the_round_that_asked(room: Room) -> None:
    path = room.put("a.jsonl", answer("elsewhere"), answer(0))
    before = path.read_bytes()
    gate = room.gate()
    gate.look()
    assert kinds(gate) == {"taken": 1, "foreign": 1}
    assert "'pelsewhere' is not among those asked" in gate.ledger.problems()["a.jsonl"][0].why
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("{", "is no JSON"),
        ("[1]", "is a list, not an object"),
        ("null", "is a NoneType, not an object"),
        ("[" * 100_000, "is no JSON"),
        (answer(0, "up"), "choice = 'up'"),
        (answer(0, ""), "choice = ''"),
        ({"pair_id": "p0", "auditor": "ann"}, "give either choice"),
        (answer(0, winner="a"), "give either choice"),
        ({"pair_id": "p0", "auditor": "ann", "winner": "a"}, "needs shown_left"),
        (answer(0, auditor=" "), "auditor = ' '"),
        (answer(0, auditor=None), "auditor = None"),
        ({"auditor": "ann", "choice": "left"}, "pair_id is missing"),
        (answer(0, seconds=-1), "seconds"),
        (answer(0, seconds=True), "seconds"),
        ('{"pair_id": "p0", "auditor": "ann", "choice": "left", "seconds": NaN}', "seconds"),
        ('{"pair_id": "p0", "auditor": "ann", "choice": "left", "seconds": 1e999}', "seconds"),
        (answer(0, seconds=10**400), "seconds"),
        (answer(0, created_at="yesterday"), "created_at"),
        (answer(0, created_at="2026-01-01T00:00:00"), "timezone"),
        (answer(0, created_at="0001-01-01T00:00:00+14:00"), "years 2000"),
        (answer(0, coment="x"), "unknown key coment"),
        (answer(0, flaws="x"), "flaws"),
        (answer(0, simulated="no"), "simulated"),
        (answer(0, "x" * 10_000), "..."),
        (answer(0, **{"\ud800": 1}), "unknown key"),
    ],
)
def test_malformed_lines_are_named_and_the_others_count(room: Room, line: object, why: str) -> None:
    room.put("a.jsonl", answer(1), line, answer(2))
    gate = room.gate()
    gate.look()
    assert kinds(gate) == {"taken": 2, "malformed": 1}
    (problem,) = gate.ledger.problems()["a.jsonl"]
    assert problem.where == "line 2"
    assert why in problem.why
    assert len(problem.why) <= 300
    assert len(room.gate().ledger.problems()["a.jsonl"]) == 1


def test_hostile_text_is_stored_unchanged(room: Room) -> None:
    text = "<script>\u202e\u2028\0\u200b{{7*7}}=cmd|'\n"
    room.put("a.jsonl", answer(0, comment=text, flaws=[text]), answer(1, comment="x\ud800y"))
    gate = room.gate()
    gate.look()
    again = room.gate()
    rows = {row.pair_id: row for row in again.ledger.verdicts.values()}
    assert rows["p0"].comment == text
    assert rows["p0"].flaws == (text,)
    assert rows["p1"].comment == "x\\ud800y", "no UTF-8 can hold a lone surrogate: it is spelt out"
    write_table(room.state / "verdicts.parquet", VERDICTS, to_table(again.ledger.verdicts.values()))


def test_bad_files_are_named_and_the_others_count(room: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    room.put("good.jsonl", *[answer(i) for i in range(3)])
    (room.inbox / "noise.parquet").write_bytes(os.urandom(500))
    (room.inbox / "torn.parquet").write_bytes(b"PAR1" + bytes(50) + b"PAR1")
    (room.inbox / "empty.parquet").write_bytes(b"")
    (room.inbox / "empty.jsonl").write_bytes(b"")
    (room.inbox / "latin.jsonl").write_bytes(b'{"pair_id": "\xff"}\n')
    (room.inbox / "notes.docx").write_bytes(b"x")
    pq.write_table(pa.table({"pair_id": ["p0"]}), room.inbox / "columns.parquet")
    pq.write_table(
        pa.table({"x": [1]}).replace_schema_metadata({"rlaif.schema_version": "99"}), room.inbox / "newer.parquet"
    )
    (room.inbox / "folder.jsonl").mkdir()
    (room.inbox / ".hidden.jsonl").write_text("{")
    (room.inbox / "unfinished.jsonl.tmp").write_text("{")
    (room.inbox / "gone.jsonl").symlink_to("nowhere")
    os.mkfifo(room.inbox / "pipe.jsonl")
    (room.inbox / "big.jsonl").write_text("x" * 3000)
    monkeypatch.setattr(inbox_module, "MAX_BYTES", 2000)
    gate = room.gate()
    look = gate.look()
    assert look.handled == 3
    problems = {name: listed[0].why for name, listed in gate.ledger.problems().items()}
    assert set(problems) == {
        "noise.parquet",
        "torn.parquet",
        "empty.parquet",
        "latin.jsonl",
        "notes.docx",
        "columns.parquet",
        "newer.parquet",
        "big.jsonl",
    }
    assert "neither .parquet nor .jsonl" in problems["notes.docx"]
    assert "lacks the columns" in problems["columns.parquet"]
    assert "99" in problems["newer.parquet"]
    assert "3,000 bytes" in problems["big.jsonl"]
    assert all(listed == 1 for listed in map(len, gate.ledger.problems().values()))


def test_a_file_name_that_is_no_text(room: Room) -> None:
    path = os.fsencode(room.inbox) + b"/\xff.jsonl"
    try:
        descriptor = os.open(path, os.O_CREAT | os.O_WRONLY)
    except OSError:
        pytest.skip("this file system wants UTF-8 names")
    os.write(descriptor, b"{\n")
    os.close(descriptor)
    room.gate().look()
    assert list(room.gate().ledger.problems()) == ["\\xff.jsonl"]


def test_an_unreadable_file_is_tried_again(room: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    room.put("a.jsonl", answer(0))
    real = Path.read_bytes

    def refuse(path: Path) -> bytes:
        raise PermissionError(13, "Permission denied")

    gate = room.gate()
    monkeypatch.setattr(Path, "read_bytes", refuse)
    gate.look()
    gate.look()
    assert kinds(gate) == {"malformed": 1}
    monkeypatch.setattr(Path, "read_bytes", real)
    gate.look()
    assert kinds(gate) == {"taken": 1}


def test_simulated_names_are_marked_whatever_they_claim(room: Room) -> None:
    room.put("a.jsonl", answer(0, auditor="simulated-x"), answer(1, simulated=True), answer(2))
    gate = room.gate()
    gate.look()
    assert {v.pair_id: v.simulated for v in gate.ledger.verdicts.values()} == {"p0": True, "p1": True, "p2": False}


def test_an_inbox_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="in the way"):
        Inbox(tmp_path / "file")


def _verdicts(gate: Gate) -> list[Verdict]:
    return chain(gate.ledger.verdicts.values())


def test_hidden_gold_is_taken_in_and_opens_nothing(room: Room) -> None:
    room.rule = Rule(quota=0.5, timeout_s=100.0)
    batch = Batch(room.chances, left=lambda pair_id: "a", gold={"g0"})
    gate = Gate(batch, room.rule, Inbox(room.inbox), room.state, room.clock)
    room.put("ann.jsonl", {"pair_id": "g0", "auditor": "ann", "choice": "left"}, answer(0))
    look = gate.look()
    assert (look.handled, look.asked, look.wanted, look.opened) == (1, 4, 2, None)
    assert {v.pair_id for v in gate.ledger.verdicts.values()} == {"g0", "p0"}
    assert kinds(gate) == {"taken": 2}
    again = Gate(batch, room.rule, Inbox(room.inbox), room.state, room.clock)
    (gold,) = [v for v in again.ledger.verdicts.values() if v.pair_id == "g0"]
    assert math.isnan(gold.inclusion_probability), "nobody drew it, also after a restart"
    assert to_table([gold])["inclusion_probability"].to_pylist() == [None]


def test_where_skips_go_to_others_only_winners_in_force_count(room: Room) -> None:
    def verdict(number: int, auditor: str, winner: str | None, supersedes: str | None = None) -> Verdict:
        return Verdict(f"v{number}", "p0", auditor, winner, "a", 1.0, START, 0.5, supersedes=supersedes)

    rows = [verdict(0, "ann", "a"), verdict(1, "bob", None)]
    assert handled(rows, 2) == {"p0"}
    assert handled(rows, 2, skips_count=False) == set()
    assert handled(rows, 1, skips_count=False) == {"p0"}
    assert handled([*rows, verdict(2, "ann", None, "v0")], 1, skips_count=False) == set(), "taken back"

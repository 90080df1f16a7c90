"""The ledger: every verdict taken in and every problem met, one durable line a reading of a file.

A line is written before its verdicts count, so a kill at any instant loses none: a reading is in the ledger whole, or
the file, which is still in the inbox, is read again. Reading the same content again changes nothing.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from pathlib import Path
from typing import Any

from audit.answers import Answer, Batch, read_answer, to_verdict
from audit.inbox import Delivery
from audit.verdicts import Verdict
from store.errors import UsageError
from store.files import append_line, read_lines

_LONGEST_PROBLEM = 300


class Kind(StrEnum):
    """Why a row did not become a verdict."""

    MALFORMED = "malformed"
    FOREIGN = "foreign"
    DUPLICATE = "duplicate"
    CONFLICT = "conflict"


@dataclass(frozen=True)
class Problem:
    """`where`: such as `line 3` of the file. `why`: in words, cut to 300 characters."""

    where: str
    kind: str
    why: str


@dataclass(frozen=True)
class Reading:
    """One reading of one file: the verdicts that were new, whether they came after the deadline, the problems."""

    name: str
    digest: str
    late: bool
    new: tuple[Verdict, ...]
    problems: tuple[Problem, ...]

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "digest": self.digest,
            "late": self.late,
            "new": [verdict.to_json() for verdict in self.new],
            "problems": [asdict(problem) for problem in self.problems],
        }

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Reading:
        new = tuple(Verdict.from_json(row) for row in value["new"])
        problems = tuple(Problem(**problem) for problem in value["problems"])
        return cls(value["name"], value["digest"], value["late"], new, problems)


@dataclass
class Ledger:
    """`verdicts`: all taken in, by id. `readings`: the last one of each file, whose problems are the current ones."""

    path: Path
    batch: Batch
    verdicts: dict[str, Verdict] = field(default_factory=dict)
    readings: dict[str, Reading] = field(default_factory=dict)
    late: int = 0
    _origin: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for line in read_lines(self.path):
            self._enter(Reading.from_json(line))

    def take(self, delivery: Delivery, now: datetime, late: bool = False) -> Reading | None:
        """Take a delivery in, durably; None where the same content under the same name is in the ledger already."""
        known = self.readings.get(delivery.name)
        if known is not None and known.digest == delivery.digest:
            return None
        reading = self._read(delivery, now, late)
        append_line(self.path, json.dumps(reading.to_json()))
        self._enter(reading)
        return reading

    def problems(self) -> dict[str, tuple[Problem, ...]]:
        """The problems by file, of files that have any."""
        return {name: reading.problems for name, reading in sorted(self.readings.items()) if reading.problems}

    def counts(self) -> dict[str, int]:
        """How many verdicts were taken in, how many of them late, and how many rows of each kind were not."""
        kinds = Counter(problem.kind for reading in self.readings.values() for problem in reading.problems)
        return {"taken": len(self.verdicts), "late": self.late, **{kind.value: kinds[kind.value] for kind in Kind}}

    def _enter(self, reading: Reading) -> None:
        self.readings[reading.name] = reading
        self.late += len(reading.new) * reading.late
        for verdict in reading.new:
            self.verdicts[verdict.verdict_id] = verdict
            self._origin[verdict.verdict_id] = reading.name

    def _read(self, delivery: Delivery, now: datetime, late: bool) -> Reading:
        new: dict[str, Verdict] = {}
        problems: list[Problem] = []
        here: dict[str, str] = {}  # the ids that this file gave, with their places
        minds = _Minds()
        for number, entry in enumerate(delivery.entries):
            if entry.problem is not None:
                problems.append(_problem(entry.where, Kind.MALFORMED, entry.problem))
                continue
            try:
                answer = read_answer(entry.value, entry.where)
            except UsageError as error:
                problems.append(_problem(entry.where, Kind.MALFORMED, str(error).removeprefix(f"{entry.where}: ")))
                continue
            if answer.pair_id not in self.batch:
                why = (
                    f"pair {answer.pair_id!r} is not among those asked: it stays in the inbox for the round that asked"
                )
                problems.append(_problem(entry.where, Kind.FOREIGN, why))
                continue
            # Rows of one file that have no time of their own keep its order.
            received_at = now + timedelta(microseconds=number)
            verdict = to_verdict(answer, self.batch, received_at, minds.change(answer))
            problem = self._clash(verdict, delivery.name, here, new)
            if problem is None:
                if verdict.verdict_id not in self.verdicts:
                    new[verdict.verdict_id] = verdict
                here[verdict.verdict_id] = entry.where
            else:
                problems.append(_problem(entry.where, *problem))
        return Reading(delivery.name, delivery.digest, late, tuple(new.values()), tuple(problems))

    def _clash(
        self, verdict: Verdict, name: str, here: dict[str, str], new: dict[str, Verdict]
    ) -> tuple[Kind, str] | None:
        """What speaks against a row with an id that is known. Seen again in the file it came from, it is no news."""
        known = self.verdicts.get(verdict.verdict_id) or new.get(verdict.verdict_id)
        if known is None:
            return None
        origin = self._origin.get(verdict.verdict_id, name)
        if known.says() != verdict.says():
            return Kind.CONFLICT, f"verdict {verdict.verdict_id!r} says something else than the one in {origin}"
        if origin != name or verdict.verdict_id in here:
            first = here.get(verdict.verdict_id, origin)
            return Kind.DUPLICATE, f"the same verdict came before, in {first}"
        return None


class _Minds:
    """Counts how often each auditor changed the answer on a pair within one file.

    Left, right, left again are three answers and the last counts, although first and last say the same.
    """

    def __init__(self) -> None:
        self._last: dict[tuple[str, str], tuple[Sequence[object], int]] = {}

    def change(self, answer: Answer) -> int:
        key = (answer.auditor, answer.pair_id)
        says = (answer.choice, answer.winner, answer.shown_left, answer.flaws, answer.comment)
        last = self._last.get(key)
        count = 0 if last is None else last[1] + (last[0] != says)
        self._last[key] = (says, count)
        return count


def _problem(where: str, kind: Kind, why: str) -> Problem:
    why = " ".join(why.split())
    return Problem(where, kind.value, why if len(why) <= _LONGEST_PROBLEM else why[: _LONGEST_PROBLEM - 3] + "...")

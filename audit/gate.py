"""The gate: a round waits for people until enough drawn pairs are handled, or until the time is up.

`Gate.look` is one look, which returns at once: a stage calls it, says that it waits (`WaitingError`), and the next run
calls it again hours later from another process. `wait` is the loop around it for a process that stays. Where verdicts
come from, the clock and the sleep are passed in. All state lies in the folder `state`, so that a killed wait goes on
where it was, with the deadline it had.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Literal

from audit.answers import Batch
from audit.inbox import Deliveries
from audit.ledger import Ledger, Reading
from audit.verdicts import Verdict, handled
from store.files import read_json, write_json
from store.stage import Progress, silent

Opened = Literal["quota", "timeout"]


@dataclass(frozen=True)
class Rule:
    """When the gate opens: `quota` of the pairs asked (0..1] have `overlap` answers, or `timeout_s` passed.

    Hidden gold items do not count. `skips_count`: see `audit.verdicts.handled`.
    """

    quota: float = 1.0
    overlap: int = 1
    timeout_s: float = 24 * 3600.0
    skips_count: bool = True


@dataclass(frozen=True)
class Look:
    """What a look found: pairs handled of those asked, how many open the gate, and whether and why it is open."""

    handled: int
    asked: int
    wanted: int
    opened: Opened | None
    readings: tuple[Reading, ...] = ()


class Gate:
    """The gate of one batch, with its durable state. `counts`: whether a verdict is one that it waits for; asked anew
    at each look, after what has arrived was taken in."""

    def __init__(
        self,
        batch: Batch,
        rule: Rule,
        deliveries: Deliveries,
        state: Path,
        clock: Callable[[], datetime],
        counts: Callable[[Verdict], bool] = lambda _: True,
    ):
        self.batch, self.rule, self._deliveries, self._clock = batch, rule, deliveries, clock
        self.deadline = _began(state, clock) + timedelta(seconds=rule.timeout_s)
        self.ledger, self._counts = Ledger(state / "ledger.jsonl", batch), counts

    def look(self) -> Look:
        """Take in what has arrived, then say whether the gate is open. The time is read first: what arrives later than
        the deadline but before this look is taken in and counted as late, not thrown away."""
        now = self._clock()
        passed = now >= self.deadline
        taken = [self.ledger.take(delivery, now, late=passed) for delivery in self._deliveries()]
        done = handled(filter(self._counts, self.ledger.verdicts.values()), self.rule.overlap, self.rule.skips_count)
        count = sum(pair_id in self.batch.chances for pair_id in done)
        asked = len(self.batch.chances)
        # The small subtraction keeps a quota such as 0.7 of 10 from asking for 8 through rounding.
        wanted = math.ceil(self.rule.quota * asked - 1e-9)
        opened: Opened | None = "quota" if count >= wanted else "timeout" if passed else None
        return Look(count, asked, wanted, opened, tuple(reading for reading in taken if reading is not None))

    def seconds_left(self) -> float:
        return max(0.0, (self.deadline - self._clock()).total_seconds())


def wait(gate: Gate, poll_s: float, sleep: Callable[[float], None], progress: Progress = silent) -> Look:
    """Look every `poll_s` seconds until the gate is open; the last look comes at the deadline."""
    while True:
        look = gate.look()
        progress("verdicts", look.handled, look.asked, _note(gate, look))
        if look.opened is not None:
            return look
        sleep(min(poll_s, max(gate.seconds_left(), 0.01)))


def _note(gate: Gate, look: Look) -> str:
    if look.opened is not None:
        return f"open: {look.opened}"
    counts = gate.ledger.counts()
    wrong = [f"{counts[kind]} {kind}" for kind in ("malformed", "foreign", "duplicate", "conflict") if counts[kind]]
    rest = f", {', '.join(wrong)} rows" if wrong else ""
    return f"{look.wanted} open the gate, else at {gate.deadline.isoformat(timespec='seconds')}{rest}"


def _began(state: Path, clock: Callable[[], datetime]) -> datetime:
    """When waiting began, kept on disk: a kill must not give people the whole time again, nor take it away."""
    path = state / "began.json"
    if not path.exists():
        write_json(path, {"began": clock().isoformat()})
    return datetime.fromisoformat(read_json(path)["began"])

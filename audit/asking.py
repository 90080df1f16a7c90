"""Asking people: what a round asks, on which terms, what came of it. By files here, by the queue in `audit.loop`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from audit.answers import Batch
from audit.config import AuditConfig
from audit.gate import Gate, Look, Rule, wait
from audit.inbox import Inbox
from audit.items import blind_items, publish, shown_left
from audit.late import Asked, Late, collect_late, nothing_late
from audit.ledger import Ledger
from audit.verdicts import Verdict
from store.errors import WaitingError
from store.hashing import short_id
from store.schemas import GOLD, PAIRS
from store.stage import Progress, silent


@dataclass(frozen=True)
class Selected:
    """What is asked. `selection`: of the judged `pairs`. `gold`: the items hidden among the drawn ones."""

    pairs: pa.Table
    selection: pa.Table
    gold: pa.Table

    @property
    def chances(self) -> dict[str, float]:
        """Drawn pair to its inclusion probability."""
        drawn = self.selection.filter(pc.field("drawn"))
        return dict(zip(drawn["pair_id"].to_pylist(), drawn["inclusion_probability"].to_pylist(), strict=True))

    @property
    def gold_ids(self) -> list[str]:
        ids: list[str] = self.gold["pair_id"].to_pylist()
        return ids

    def items(self) -> pa.Table:
        """All that is asked as a pairs table: the drawn pairs, and the gold items after them."""
        names = PAIRS.schema.names
        drawn = self.pairs.filter(pc.is_in(self.pairs["pair_id"], pa.array(list(self.chances), pa.string())))
        return pa.concat_tables([drawn.select(names), self.gold.select(names)])

    def blind(self, seed: int) -> pa.Table:
        """The blind items, gold among them."""
        items = self.items()
        drawn = pa.array([True] * items.num_rows, pa.bool_())
        return blind_items(items, pa.table({"pair_id": items["pair_id"], "drawn": drawn}), seed)


@dataclass(frozen=True)
class Terms:
    """How it is asked. `earlier`: folders of earlier audits, oldest first. `state`: survives a kill."""

    config: AuditConfig
    seed: int
    state: Path
    clock: Callable[[], datetime]
    sleep: Callable[[float], None]
    earlier: Sequence[Path] = ()
    progress: Progress = silent


@dataclass(frozen=True)
class Heard:
    """What came of it. `verdicts`: those that count; `gold`: those on gold items. `opened`: how the gate opened.
    `asked`: what a later round must know to find late verdicts. `rows`: the queue's own rows on this batch."""

    opened: str
    verdicts: Sequence[Verdict] = ()
    gold: Sequence[Verdict] = ()
    late: Late = field(default_factory=nothing_late)
    asked: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, Any] = field(default_factory=dict)
    rows: pa.Table | None = None
    intake: dict[str, Any] | None = None


def look(terms: Terms, gate: Gate) -> Look:
    """Look until the gate is open where the config says to wait, else once: then WaitingError says that it is not."""
    if terms.config.wait:
        return wait(gate, terms.config.poll_s, terms.sleep, terms.progress)
    found = gate.look()
    terms.progress("verdicts", found.handled, found.asked, found.opened or "waiting")
    if found.opened is None:
        raise WaitingError(
            f"Waiting for people: {found.handled} of {found.wanted} pairs answered, until "
            f"{gate.deadline:%Y-%m-%d %H:%M} UTC at the latest; run again to go on.",
            gate.deadline,
        )
    return found


def ask_by_files(terms: Terms, selected: Selected) -> Heard:
    """Put the items into the inbox and take in the verdict files that arrive there."""
    folder = Path(terms.config.inbox or "").expanduser()
    # A gold pair's own id could be looked up in its file: in the inbox it has one that looks like any pair's.
    real = {short_id("hidden", terms.seed, pair_id): pair_id for pair_id in selected.gold_ids}
    renamed = selected.gold.set_column(0, GOLD.schema.field("pair_id"), pa.array(list(real), pa.string()))
    batch = Batch(selected.chances, lambda pair_id: shown_left(terms.seed, pair_id), set(real))
    rule = Rule(terms.config.quota, terms.config.overlap, terms.config.timeout_s)
    gate = Gate(batch, rule, Inbox(folder), terms.state, terms.clock)
    if selected.chances:
        items = replace(selected, gold=renamed).blind(terms.seed)
        where = publish(items, folder)
        terms.progress("verdicts", 0, len(selected.chances), f"items for people are in {where}")
    found = look(terms, gate)
    said = gate.ledger.verdicts.values()
    problems = {name: [asdict(problem) for problem in listed] for name, listed in gate.ledger.problems().items()}

    def of_earlier(asked: Asked) -> list[Verdict]:
        if asked.where.get("source") != "inbox":
            return []
        seed = asked.where["seed"]
        ledger = Ledger(
            terms.state / f"late-{seed}.jsonl", Batch(asked.chances, lambda pair_id: shown_left(seed, pair_id))
        )
        for delivery in Inbox(folder)():
            ledger.take(delivery, terms.clock(), late=True)
        return list(ledger.verdicts.values())

    current = selected.pairs["pair_id"].to_pylist()
    return Heard(
        str(found.opened),
        [verdict for verdict in said if verdict.pair_id not in real],
        [replace(verdict, pair_id=real[verdict.pair_id]) for verdict in said if verdict.pair_id in real],
        collect_late(terms.earlier, current, of_earlier),
        {"source": "inbox", "seed": terms.seed},
        {
            "handled": found.handled,
            "wanted": found.wanted,
            "intake": gate.ledger.counts(),
            "problem_files": sorted(problems),
        },
        intake={"counts": gate.ledger.counts(), "problems": problems},
    )

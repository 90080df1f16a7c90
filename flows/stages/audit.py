"""Stage audit: judged pairs to people (or to programs that play them), their verdicts to a table.

Takes pairs and votes; gives selection.parquet (every pair's inclusion probability), items.parquet (the blind items) and
verdicts.parquet, in every mode, with no rows in mode off. In mode people there is intake.json too: what arrived in the
inbox and was not taken in, by file and line. State of a wait lies in the hidden folder .gate, which survives a kill.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from audit.answers import Batch
from audit.config import AuditConfig
from audit.estimates import estimate
from audit.gate import Gate, Rule, wait
from audit.inbox import Inbox
from audit.items import ITEMS, blind_items, publish, shown_left
from audit.opinions import opinions
from audit.selection import nothing_selected, select
from audit.simulated import Auditor, Pair, simulate
from audit.verdicts import to_table
from judges.config import load_judge
from store.errors import UsageError
from store.files import write_json
from store.stage import Job, Metrics
from store.tables import PAIRS, SELECTION, VERDICTS, VOTES, read_table, write_table


def run(job: Job[AuditConfig]) -> Metrics:
    """See the module. Raises UsageError for mode people without an inbox and mode simulated without an oracle."""
    return audit(job, clock=lambda: datetime.now(UTC), sleep=time.sleep)


def audit(job: Job[AuditConfig], clock: Callable[[], datetime], sleep: Callable[[float], None]) -> Metrics:
    """The stage with its clock and sleep passed in; only mode people looks at them."""
    if job.config.mode == "off":
        _write(job, nothing_selected(), ITEMS.schema.empty_table(), VERDICTS.schema.empty_table())
        return _metrics("off", nothing_selected(), VERDICTS.schema.empty_table())
    inbox = _inbox(job.config) if job.config.mode == "people" else None
    if inbox is None and not job.given("oracle"):
        raise UsageError("audit.mode is simulated, but there is no oracle for the auditors to follow: give --oracle.")
    pairs = read_table(job.path("pairs"), PAIRS)
    views = opinions(pairs, read_table(job.path("votes"), VOTES))
    selection = select(views, job.config.budget, job.config.uniform_fraction, job.seed)
    items = blind_items(pairs, selection, job.seed)
    drawn = selection.filter(pc.field("drawn"))
    chances = dict(zip(drawn["pair_id"].to_pylist(), drawn["inclusion_probability"].to_pylist(), strict=True))
    waited: Metrics
    if inbox is None:
        opened, waited, verdicts = "simulated", {}, _simulated(job, pairs, chances)
    else:
        opened, waited, verdicts = _people(job, inbox, items, chances, clock, sleep)
    _write(job, selection, items, verdicts)
    estimates = estimate(views, selection, verdicts).to_json()
    return _metrics(opened, selection, verdicts) | waited | {"estimates": estimates}


def _inbox(config: AuditConfig) -> Path:
    if not config.inbox:
        raise UsageError(
            "audit.mode is people, but audit.inbox is not set: name the folder in which verdict files arrive, "
            "as with --set audit.inbox=DIR."
        )
    return Path(config.inbox).expanduser()


def _simulated(job: Job[AuditConfig], pairs: pa.Table, chances: dict[str, float]) -> pa.Table:
    auditors = [Auditor(auditor.name, auditor.accuracy) for auditor in job.config.auditors]
    verdicts = simulate(pairs, chances, auditors, _oracle(job.value("oracle")), job.seed, job.config.overlap)
    job.progress("verdicts", len(verdicts), len(verdicts), "simulated")
    return to_table(verdicts)


def _oracle(folder: str) -> Callable[[Sequence[Pair]], list[float | None]]:
    from judges.scoring import Item, score_responses  # here, so that waiting for people loads no judge

    judge = load_judge(folder)

    def difference(asked: Sequence[Pair]) -> list[float | None]:
        a = score_responses(judge, [Item(pair.prompt, pair.response_a, pair.reference, pair.group) for pair in asked])
        b = score_responses(judge, [Item(pair.prompt, pair.response_b, pair.reference, pair.group) for pair in asked])
        return [left.value - right.value for left, right in zip(a, b, strict=True)]

    return difference


def _people(
    job: Job[AuditConfig],
    inbox: Path,
    items: pa.Table,
    chances: dict[str, float],
    clock: Callable[[], datetime],
    sleep: Callable[[float], None],
) -> tuple[str, Metrics, pa.Table]:
    config = job.config
    batch = Batch(chances, left=lambda pair_id: shown_left(job.seed, pair_id))
    rule = Rule(config.quota, config.overlap, config.timeout_s)
    gate = Gate(batch, rule, Inbox(inbox), job.out / ".gate", clock)
    if chances:
        job.progress("verdicts", 0, len(chances), f"items for people are in {publish(items, inbox)}")
    look = wait(gate, config.poll_s, sleep, job.progress)
    problems = {name: [asdict(problem) for problem in listed] for name, listed in gate.ledger.problems().items()}
    write_json(job.out / "intake.json", {"counts": gate.ledger.counts(), "problems": problems})
    metrics: Metrics = {
        "handled": look.handled,
        "wanted": look.wanted,
        "intake": gate.ledger.counts(),
        "problem_files": sorted(problems),
    }
    return str(look.opened), metrics, to_table(gate.ledger.verdicts.values())


def _write(job: Job[AuditConfig], selection: pa.Table, items: pa.Table, verdicts: pa.Table) -> None:
    write_table(job.out / "selection.parquet", SELECTION, selection)
    write_table(job.out / "items.parquet", ITEMS, items)
    write_table(job.out / "verdicts.parquet", VERDICTS, verdicts)


def _metrics(opened: str, selection: pa.Table, verdicts: pa.Table) -> dict[str, Any]:
    strata = Counter(selection["stratum"].to_pylist())
    return {
        "gate": opened,
        "simulated": any(verdicts["simulated"].to_pylist()),
        "pairs": selection.num_rows,
        "drawn": strata["uniform"] + strata["targeted"],
        "drawn_uniform": strata["uniform"],
        "drawn_targeted": strata["targeted"],
        "verdicts": verdicts.num_rows,
        "auditors": dict(sorted(Counter(verdicts["auditor"].to_pylist()).items())),
    }

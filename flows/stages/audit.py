"""Stage audit: judged pairs to people (or to programs that play them), their verdicts to a table.

Takes pairs and votes, what attacks on the pairs did to the judges, pairs with known winners to hide among them (and,
with the judges' votes on these, to fit the labels on whose doubt steers the draw), and the folders of earlier rounds'
audits. Gives, in every mode, with no rows in mode off:

    selection.parquet       every pair's inclusion probability, and why it was drawn or not
    items.parquet           the blind items
    verdicts.parquet        the verdicts that count
    gold_verdicts.parquet   the verdicts on hidden gold items, with `gold_winner`
    late_*.parquet          verdicts of earlier rounds that came since, with their pairs and votes (`audit.late`)
    asked*                  what a later round needs to do the same with this one's

From a queue there is queue_rows.parquet too, all its rows on these items, and from an inbox intake.json: what arrived
and was not taken in, by file and line. State of a wait lies in the hidden folder .gate, which survives a kill.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from audit.asking import Heard, Selected, Terms, ask_by_files
from audit.config import AuditConfig
from audit.doubt import raise_flags
from audit.estimates import estimate
from audit.items import ITEMS
from audit.late import audited_groups
from audit.opinions import Floats, Opinions, opinions
from audit.quarantine import quarantine, without
from audit.selection import Reasons, hidden_gold, nothing_selected, select
from audit.simulated import Auditor, Pair, simulate
from audit.verdicts import in_force, to_table
from flows.stages.verdicts import GOLD_VERDICTS
from judges.aggregation.gold import anchors
from judges.aggregation.labels import checked_votes
from judges.aggregation.lengths import with_lengths
from judges.aggregation.stacked import StackedJudges
from judges.config import load_judge
from store.config import read_yaml
from store.errors import UsageError
from store.files import write_json
from store.hashing import hash_file
from store.resources import resolve
from store.schemas import ATTACKS, GOLD, PAIRS, SELECTION, VERDICTS, VOTES
from store.stage import Job, Metrics
from store.tables import read_table, write_table

if TYPE_CHECKING:
    from audit.queue.model import Guidelines


def run(job: Job[AuditConfig]) -> Metrics:
    """See the module. Raises UsageError for mode people with neither a database nor an inbox and mode simulated
    without an oracle; WaitingError while people are at it, unless the config says to wait."""
    return audit(job, clock=lambda: datetime.now(UTC), sleep=time.sleep)


def audit(job: Job[AuditConfig], clock: Callable[[], datetime], sleep: Callable[[float], None]) -> Metrics:
    """The stage with its clock and sleep passed in; only mode people and simulation over HTTP look at them."""
    config = job.config
    if config.mode == "off":
        nothing = Selected(PAIRS.schema.empty_table(), nothing_selected(), GOLD.schema.empty_table())
        _write_asked(job, nothing, VOTES.schema.empty_table())
        return _write_heard(job, nothing, Heard("off"))
    if config.mode == "people" and not (config.database or config.database_env or config.inbox):
        raise UsageError(
            "audit.mode is people, but neither audit.database, audit.database_env nor audit.inbox is set: name the "
            "queue's database, or the folder in which verdict files arrive, as with --set audit.inbox=DIR."
        )
    if config.mode == "simulated" and not job.given("oracle"):
        raise UsageError("audit.mode is simulated, but there is no oracle for the auditors to follow: give --oracle.")
    earlier = [Path(value) for value in job.values("earlier")]
    pairs, votes = read_table(job.path("pairs"), PAIRS), read_table(job.path("votes"), VOTES)
    views = opinions(pairs, votes)
    selected = _select(job, pairs, votes, views, earlier)
    # Before anybody is waited for: the page that compares judges with people looks there.
    _write_asked(job, selected, votes)
    heard = _ask(Terms(config, job.seed, job.out / ".gate", clock, sleep, earlier, job.progress), selected, job)
    said, known = to_table(heard.verdicts), selected.gold.select(["pair_id", "winner"])
    report = quarantine(pa.concat_tables([said, to_table(heard.gold)]), known, config.auditor_limits)
    estimates = estimate(views, selected.selection, without(said, report.names), report.reliability).to_json()
    return _write_heard(job, selected, heard) | {"estimates": estimates, "quarantine": report.to_json()}


def _select(
    job: Job[AuditConfig], pairs: pa.Table, votes: pa.Table, views: Opinions, earlier: Sequence[Path]
) -> Selected:
    config = job.config
    attacks = read_table(job.path("attacks"), ATTACKS, allow_empty=True) if job.given("attacks") else None
    flags = raise_flags(pairs, votes, audited_groups(earlier), attacks)
    labels = _labels(job, pairs, votes, views.pair_ids)
    reasons = Reasons(flags, config.weights, labels, config.sharpness, pairs["group"].to_pylist(), config.group_caps)
    selection = select(views, config.budget, config.uniform_fraction, job.seed, reasons)
    gold = GOLD.schema.empty_table()
    if job.given("gold") and pc.any(selection["drawn"]).as_py():
        known = read_table(job.path("gold"), GOLD).select(GOLD.schema.names)
        gold = hidden_gold(known, pairs, round(config.gold_share * config.budget), job.seed)
    return Selected(pairs, selection, gold)


def _labels(job: Job[AuditConfig], pairs: pa.Table, votes: pa.Table, pair_ids: list[str]) -> Floats | None:
    """What labels fitted on the known winners say of each pair: p_a, NaN where they say nothing; None without any."""
    if not (job.given("gold") and job.given("gold_votes")):
        return None
    gold = read_table(job.path("gold"), GOLD)
    gold_votes, _ = checked_votes(read_table(job.path("gold_votes"), VOTES), gold)
    votes = with_lengths(votes, pairs)
    fitted = StackedJudges().fit(*anchors(votes, {}, gold, with_lengths(gold_votes, gold)))
    if not fitted.gold_pairs:
        return None
    found = fitted.predict(votes)
    at = pc.index_in(pa.array(pair_ids, pa.string()), value_set=found["pair_id"].combine_chunks())
    return np.asarray(pc.fill_null(found["p_a"].take(at), math.nan).to_numpy(), dtype=np.float64)


def _ask(terms: Terms, selected: Selected, job: Job[AuditConfig]) -> Heard:
    config = terms.config
    if config.mode == "people" and config.inbox:
        return ask_by_files(terms, selected)
    if config.mode == "people":
        from audit.loop import ask_queue  # loads a database, which no other way needs

        return ask_queue(terms, selected, _guidelines(config))
    auditors = [Auditor(auditor.name, auditor.accuracy, auditor.kind) for auditor in config.auditors]
    oracle = _oracle(job.value("oracle"))
    if config.via == "http":
        from audit.simulated_http import ask_over_http  # loads a database and a web server

        return ask_over_http(terms, selected, auditors, oracle)
    gold = dict.fromkeys(selected.gold_ids, math.nan)
    said = simulate(selected.items(), selected.chances | gold, auditors, oracle, terms.seed, config.overlap)
    terms.progress("verdicts", len(said), len(said), "simulated")
    on_pairs = [verdict for verdict in said if verdict.pair_id not in gold]
    return Heard("simulated", on_pairs, [verdict for verdict in said if verdict.pair_id in gold])


def _oracle(folder: str) -> Callable[[Sequence[Pair]], list[float | None]]:
    from judges.scoring import Item, score_responses  # here, so that waiting for people loads no judge

    judge = load_judge(folder)

    def difference(asked: Sequence[Pair]) -> list[float | None]:
        a = score_responses(judge, [Item(pair.prompt, pair.response_a, pair.reference, pair.group) for pair in asked])
        b = score_responses(judge, [Item(pair.prompt, pair.response_b, pair.reference, pair.group) for pair in asked])
        return [left.value - right.value for left, right in zip(a, b, strict=True)]

    return difference


def _guidelines(config: AuditConfig) -> Guidelines:
    """The texts that auditors see, each with a version made of its content."""
    from audit.queue.model import Guidelines

    version, text = _read(config.guidelines)
    constitution_version, constitution = _read(config.constitution)
    return Guidelines(version, text, constitution_version, constitution)


def _read(name: str | None) -> tuple[str, str]:
    """Version and text of a file; of a YAML file with principles, these as a numbered list."""
    if name is None:
        return "", ""
    path = resolve(name)
    if path.suffix in (".yaml", ".yml"):
        listed = read_yaml(path).get("principles")
        items = [item.get("text") if isinstance(item, dict) else item for item in listed or []]
        if not items or not all(isinstance(item, str) for item in items):
            raise UsageError(f"{path} has no list of texts under the key principles: give one, or a plain text file.")
        return hash_file(path)[:8], "\n".join(f"{number}. {item}" for number, item in enumerate(items, start=1))
    try:
        return hash_file(path)[:8], path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} cannot be read as text ({error}): check the path.") from error


def _write_asked(job: Job[AuditConfig], selected: Selected, votes: pa.Table) -> None:
    drawn = pa.array(list(selected.chances), pa.string())
    write_table(job.out / "selection.parquet", SELECTION, selected.selection)
    write_table(job.out / "items.parquet", ITEMS, selected.blind(job.seed))
    for name, table, data in (("asked_pairs", PAIRS, selected.pairs), ("asked_votes", VOTES, votes)):
        rows = data.select(table.schema.names).filter(pc.is_in(data["pair_id"], value_set=drawn))
        write_table(job.out / f"{name}.parquet", table, rows)


def _write_heard(job: Job[AuditConfig], selected: Selected, heard: Heard) -> Metrics:
    winners = dict(zip(selected.gold_ids, selected.gold["winner"].to_pylist(), strict=True))
    verdicts, gold = to_table(heard.verdicts), to_table(heard.gold)
    known = pa.array([winners[pair_id] for pair_id in gold["pair_id"].to_pylist()], pa.string())
    write_table(job.out / "verdicts.parquet", VERDICTS, verdicts)
    write_table(job.out / "gold_verdicts.parquet", GOLD_VERDICTS, gold.append_column("gold_winner", known))
    for name, table in (("pairs", PAIRS), ("votes", VOTES), ("verdicts", VERDICTS)):
        write_table(job.out / f"late_{name}.parquet", table, getattr(heard.late, name))
    if heard.rows is not None:
        write_table(job.out / "queue_rows.parquet", VERDICTS, heard.rows)
    if heard.intake is not None:
        write_json(job.out / "intake.json", heard.intake)
    write_json(job.out / "asked.json", {"source": "none"} | heard.asked)
    strata = Counter(selected.selection["stratum"].to_pylist())
    return {
        "gate": heard.opened,
        "simulated": any(verdicts["simulated"].to_pylist()),
        "pairs": selected.selection.num_rows,
        "drawn": strata["uniform"] + strata["targeted"],
        "drawn_uniform": strata["uniform"],
        "drawn_targeted": strata["targeted"],
        "verdicts": verdicts.num_rows,
        "auditors": dict(sorted(Counter(verdicts["auditor"].to_pylist()).items())),
        "gold": _gold_figures(heard, winners),
        "late": {"verdicts": heard.late.new, "pairs": len(pc.unique(heard.late.verdicts["pair_id"]))},
        **heard.metrics,
    }


def _gold_figures(heard: Heard, winners: dict[str, str]) -> dict[str, Any]:
    """By auditor: hidden gold items answered, and how many of them right."""
    said = [verdict for verdict in in_force(heard.gold) if verdict.winner is not None]
    right = Counter(verdict.auditor for verdict in said if verdict.winner == winners[verdict.pair_id])
    answered = Counter(verdict.auditor for verdict in said)
    return {name: {"answered": answered[name], "right": right[name]} for name in sorted(answered)}

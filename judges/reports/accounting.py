"""What became of votes, and what they took: counts of the five outcomes, tokens, cost, latency."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc

from judges.reports import Figures
from judges.reports.proportions import share
from store.errors import UsageError
from store.schemas import Status


def account(votes: pa.Table) -> dict[str, int]:
    """attempted = scored + tie + abstain + parse_failure + error, as counts. Raises UsageError for another status."""
    found = {row["values"]: row["counts"] for row in pc.value_counts(votes["status"]).to_pylist()}
    counts = {str(status): int(found.get(str(status), 0)) for status in Status}
    if sum(counts.values()) != votes.num_rows:
        raise UsageError(f"The votes have a status outside {', '.join(counts)}: {', '.join(map(str, found))}.")
    return {"attempted": votes.num_rows, **counts}


def outcome_rates(votes: pa.Table) -> Figures:
    """The five counts, and the shares of the attempted votes that have no winner, by outcome."""
    counts = account(votes)
    without = (Status.TIE, Status.ABSTAIN, Status.PARSE_FAILURE, Status.ERROR)
    return counts | {f"{status}_rate": share(counts[status], counts["attempted"]) for status in without}


def spending(votes: pa.Table) -> Figures:
    """`cost`: in the currency of the judge's price list. Latencies are of single votes, in seconds; in a batch, its
    seconds divided by its size."""
    latency = votes["latency_s"]
    known = votes.num_rows > 0
    return {
        "tokens_in": int(pc.sum(votes["tokens_in"]).as_py() or 0),
        "tokens_out": int(pc.sum(votes["tokens_out"]).as_py() or 0),
        "cost": float(pc.sum(votes["cost"]).as_py() or 0.0),
        "mean_latency_s": mean(latency),
        "median_latency_s": float(pc.quantile(latency, 0.5)[0].as_py()) if known else None,
        "p95_latency_s": float(pc.quantile(latency, 0.95)[0].as_py()) if known else None,
    }


def split_by_judge(votes: pa.Table) -> dict[str, pa.Table]:
    """The votes of each judge, by name; by name@fingerprint where two judges have the same name.

    A judge is its fingerprint: one that was renamed has the first of its names.
    """
    known = votes.select(["judge", "fingerprint"]).group_by(["judge", "fingerprint"]).aggregate([]).to_pylist()
    name_of: dict[str, str] = {}
    for row in sorted(known, key=lambda row: str(row["judge"])):
        name_of.setdefault(row["fingerprint"], row["judge"])
    names, tables = list(name_of.values()), {}
    for fingerprint, judge in name_of.items():
        name = judge if names.count(judge) == 1 else f"{judge}@{fingerprint[:8]}"
        tables[name] = votes.filter(pc.equal(votes["fingerprint"], fingerprint))
    return dict(sorted(tables.items()))


def mean(column: pa.ChunkedArray) -> float | None:
    value = pc.mean(column).as_py()
    return None if value is None else float(value)

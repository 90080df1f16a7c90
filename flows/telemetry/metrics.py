"""A workspace's figures for Prometheus: rounds, stages, votes, tokens, cost, champion. All gauges, read at each scrape.

Everything comes from manifests, journals, tables and registry: nothing is counted in this process, so a restart, or
two exporters, change nothing. Only the last rounds are told, so that the number of series does not grow for ever.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import pyarrow.parquet as pq
from prometheus_client import CollectorRegistry, start_http_server, write_to_textfile
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from flows.specs import ROUND
from flows.telemetry.costs import judge_costs
from flows.telemetry.status import round_status
from flows.workspace import Round, Workspace
from store.errors import UsageError
from store.files import explain_os_errors
from store.manifest import read_manifest
from store.schemas import Status

ROUNDS = 3
"""Rounds that are told."""

_VOTES = (("judge", "votes.parquet"), ("judge", "calibration_votes.parquet"), ("evaluate", "votes.parquet"))

_GAUGES = {
    "round": ("number of the last round", []),
    "round_finished": ("1 where the round is finished", ["round"]),
    "round_seconds": ("wall seconds of the run that finished the round", ["round"]),
    "round_cost": ("cost of all judges in the round, in the currency of their prices", ["round"]),
    "run_alive": ("1 where a run holds the workspace", []),
    "stage_seconds": ("wall seconds of the stage's last success", ["round", "stage"]),
    "stage_attempts": ("tries of the stage over all runs", ["round", "stage"]),
    "stage_failures": ("tries that failed or were interrupted", ["round", "stage"]),
    "stage_state": ("1 for the state that the stage is in", ["round", "stage", "state"]),
    "stage_peak_memory_bytes": ("peak memory of the stage's process", ["round", "stage"]),
    "stage_last_success_timestamp_seconds": ("when the stage last began to succeed", ["round", "stage"]),
    "votes": ("votes of a judge by what became of them", ["round", "stage", "judge", "status"]),
    "calls": ("calls to a judge, whatever came of them", ["round", "stage", "judge"]),
    "tokens": ("tokens of a judge", ["round", "stage", "judge", "direction"]),
    "judge_cost": ("cost of a judge, in the currency of its price", ["round", "stage", "judge"]),
    "win_rate": ("win rate of the round's policy over its reference", ["round"]),
    "win_rate_low": ("lower confidence bound of the win rate", ["round"]),
    "win_rate_high": ("upper confidence bound of the win rate", ["round"]),
    "promoted": ("1 where the round's policy was promoted", ["round"]),
    "champion_round": ("round of the champion; 0 where there is none", []),
    "champion_win_rate_low": ("lower confidence bound of the champion's win rate when it was promoted", []),
    "last_success_timestamp_seconds": ("when the last round was finished", []),
    "waiting_until_timestamp_seconds": ("until when a round waits for people", ["round"]),
}


class WorkspaceCollector(Collector):
    """Reads the workspace at `root` anew for each scrape."""

    def __init__(self, root: Path, rounds: int = ROUNDS) -> None:
        self.root, self.rounds = root, rounds

    def collect(self) -> Iterable[GaugeMetricFamily]:
        families = {
            name: GaugeMetricFamily(f"rlaif_{name}", help_text, labels=labels)
            for name, (help_text, labels) in _GAUGES.items()
        }
        for name, labels, value in samples(Workspace.view(self.root), self.rounds):
            if value is not None:
                families[name].add_metric(labels, float(value))
        return [family for family in families.values() if family.samples]


Sample = tuple[str, list[str], Any]


def samples(space: Workspace, rounds: int = ROUNDS) -> Iterator[Sample]:
    """Gauge, values of its labels, value (None: not known, and not told)."""
    found = space.rounds()
    champion = space.registry.champion()
    yield "champion_round", [], (champion or {}).get("round") or 0
    yield "champion_win_rate_low", [], ((champion or {}).get("win_rate") or {}).get("low")
    if not found:
        return
    yield "round", [], found[-1].number
    ends = [at for round_ in found if (at := _finished_at(round_)) is not None]
    yield "last_success_timestamp_seconds", [], max(ends, default=None)
    for round_ in found[-rounds:]:
        yield from _of_round(round_, last=round_ is found[-1])


def _of_round(round_: Round, last: bool) -> Iterator[Sample]:
    label, value, events = str(round_.number), round_status(round_), round_.journal.events()
    metrics = value["metrics"]
    if last:
        yield "run_alive", [], value["alive"]
    yield "round_finished", [label], value["finished"]
    yield "round_seconds", [label], metrics["seconds"]
    for name in ("win_rate", "win_rate_low", "win_rate_high", "promoted"):
        yield name, [label], metrics[name]
    for stage in ROUND:
        told, manifest = value["stages"][stage], read_manifest(round_.stage(stage))
        failures = sum(e.get("stage") == stage and e["event"] in ("failed", "interrupted") for e in events)
        yield "stage_state", [label, stage, told["state"]], 1
        yield "stage_attempts", [label, stage], told["attempts"]
        yield "stage_failures", [label, stage], failures
        yield "stage_seconds", [label, stage], told["seconds"]
        if told["state"] == "waiting" and told["until"]:
            yield "waiting_until_timestamp_seconds", [label], datetime.fromisoformat(told["until"]).timestamp()
        if manifest is not None:
            yield "stage_peak_memory_bytes", [label, stage], manifest.peak_rss_mb * 2**20
            at = datetime.fromisoformat(manifest.started_at).timestamp()
            yield "stage_last_success_timestamp_seconds", [label, stage], at
    yield from _judges(round_, label)


def _judges(round_: Round, label: str) -> Iterator[Sample]:
    counts: Counter[tuple[str, str, str]] = Counter()
    for stage, name in _VOTES:
        manifest = read_manifest(round_.stage(stage))
        path = round_.stage(stage) / name
        if manifest is not None and path.is_file():
            counts.update({(stage, *key): number for key, number in _votes(path, manifest.key).items()})
    for labels, number in counts.items():
        yield "votes", [label, *labels], number
    costs = judge_costs(round_.folder)
    for row in costs:
        labels = label, row["stage"], row["judge"]
        yield "calls", [*labels], row["calls"]
        yield "judge_cost", [*labels], row["cost"]
        for direction in ("in", "out"):
            yield "tokens", [*labels, direction], row[f"tokens_{direction}"]
    if costs:
        yield "round_cost", [label], sum(row["cost"] for row in costs)


@lru_cache(maxsize=64)
def _votes(path: Path, key: str) -> dict[tuple[str, str], int]:
    """Judge and status -> votes. `key`: of the manifest; a table of the same key is the same."""
    table = pq.read_table(path, columns=["judge", "status"])
    found = {(judge, str(status)): 0 for judge in pc.unique(table["judge"]).to_pylist() for status in Status}
    for row in table.group_by(["judge", "status"]).aggregate([([], "count_all")]).to_pylist():
        found[row["judge"], row["status"]] = row["count_all"]
    return found


def _finished_at(round_: Round) -> float | None:
    times = [e["time"] for e in round_.journal.events() if e["event"] == "round_finished"]
    return datetime.fromisoformat(times[-1]).timestamp() if times else None


def registry(root: Path, rounds: int = ROUNDS) -> CollectorRegistry:
    """Raises UsageError where `root` is no workspace."""
    Workspace.view(root)
    found = CollectorRegistry()
    found.register(WorkspaceCollector(root, rounds))
    return found


def write_textfile(root: Path, path: Path, rounds: int = ROUNDS) -> Path:
    """For the textfile collector of node_exporter; the file is replaced as a whole."""
    with explain_os_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_to_textfile(str(path), registry(root, rounds))
    return path


def serve(root: Path, port: int, host: str, rounds: int = ROUNDS) -> tuple[Any, Any]:
    """Serve /metrics; gives server and thread. Raises UsageError where the port is taken."""
    try:
        return start_http_server(port, addr=host, registry=registry(root, rounds))
    except OSError as error:
        raise UsageError(f"Cannot listen on {host}:{port} ({error.strerror}): give another --port.") from error

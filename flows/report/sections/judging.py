"""From judges to labels: how good each judge is, what became of its votes, and the preferences made of them."""

from __future__ import annotations

from typing import Any

from flows.report import plots
from flows.report.biases import biases
from flows.report.data import Judge, Round
from flows.report.drift import drifts
from flows.report.measures import agreement, count_votes, proportion, total_votes, training_votes
from flows.report.sections.rows import floats
from flows.report.values import STATUSES, integer, real


def judges(round_: Round, panel: list[Judge]) -> dict[str, Any] | None:
    if not panel:
        return None
    accuracy = [(judge.name, proportion(judge.accuracy)) for judge in panel]
    rows = [(name, value) for name, value in accuracy if value is not None]
    return {
        "panel": panel,
        "accuracy": dict(rows),
        "plot": plots.dots("judges", "Accuracy on the calibration set", rows, 0.5, "chance") if rows else None,
        "agreement": agreement(round_),
        "biases": biases(round_),
        "drift": drifts(round_),
    }


def accounting(round_: Round) -> dict[str, Any] | None:
    """Groups of vote counts: who voted on what."""
    parts = [("Training pairs", training_votes(round_))]
    if round_.calibration_votes is not None:
        parts.append(("Calibration set", count_votes(round_.calibration_votes)))
    if round_.evaluation_votes is not None:
        parts.append(("Evaluation", count_votes(round_.evaluation_votes)))
    elif round_.evaluation is not None:
        parts.append(("Evaluation", round_.evaluation.votes))
    parts = [(title, counts) for title, counts in parts if counts]
    if not parts:
        return None
    bars = [(f"{name} · {title.lower()}", votes) for title, counts in parts for name, votes in sorted(counts.items())]
    total = total_votes(dict(bars))
    return {
        "parts": [(title, sorted(counts.items())) for title, counts in parts],
        "total": total,
        "statuses": [status.replace("_", " ") for status in STATUSES],
        "plot": plots.vote_bars("votes", "What became of each attempted vote", bars),
        "balanced": all(votes.balanced for _, votes in bars),
        "causes": round_.causes,
    }


def preferences(round_: Round) -> dict[str, Any] | None:
    if "aggregate" not in round_.manifests:
        return None
    metrics, frame = round_.metrics("aggregate"), round_.preferences
    dropped = metrics.get("dropped")
    reasons = {str(name): integer(n) for name, n in dropped.items()} if isinstance(dropped, dict) else None
    others = {name: n for name, value in metrics.items() if (n := real(value)) is not None}
    sources: list[tuple[str, list[float]]] = []
    if frame is not None:
        sources = [(str(name), floats(part)) for name, part in frame["p_chosen"].groupby(frame["source"])]
    return {
        "n": None if frame is None else len(frame),
        "sources": [(name, len(values)) for name, values in sources],
        "plot": plots.histogram("p-chosen", "How sure the labels are", sources, "p_chosen, the soft label")
        if sources
        else None,
        "dropped": reasons,
        "gate": _gate(metrics.get("gate")),
        "others": others,
    }


def _gate(gate: Any) -> dict[str, Any] | None:
    """The judges' gate: what it measured, and why a person went on past it."""
    if not isinstance(gate, dict) or "checks" not in gate:
        return None
    checks = [check for check in gate["checks"] if check["state"] not in ("off", "unmeasured")]
    silent = [f"{check['figure']} of {check['of']}" for check in gate["checks"] if check["state"] == "unmeasured"]
    return {"passed": gate.get("passed"), "override": gate.get("override"), "checks": checks, "unmeasured": silent}

"""The values of each section of the page: what the template needs, and nothing of how it was read or how it looks.

Each function takes the round and gives a mapping, or None where the stage has not run.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import numpy as np
import pandas as pd

from audit.verdicts import Verdict, in_force
from flows.report import plots, text
from flows.report.biases import biases
from flows.report.data import Evaluation, Judge, Round
from flows.report.drift import drifts
from flows.report.headline import confidence
from flows.report.measures import (
    Bin,
    Versus,
    agreement,
    calibration_bins,
    count_votes,
    proportion,
    reward_by_group,
    total_votes,
    training_votes,
    unseen,
)
from flows.report.plots import MUTED, POLICY, Level, Plot, Series
from flows.report.values import STATUSES, Estimate, estimate, estimates, integer, real

_MAX_ROWS = 30
"""Groups that a plot shows, the lowest ones; the table beside it shows all."""

_STATES = {
    "finished": "ran",
    "reused": "reused",
    "failed": "failed",
    "unfinished": "unfinished",
    "missing": "missing",
    "off": "switched off",
    "absent": "not run",
}


def stages(round_: Round) -> dict[str, Any]:
    spent = [row.seconds for row in round_.stages if row.seconds is not None and row.state != "reused"]
    longest = max((row.seconds or 0.0 for row in round_.stages), default=0.0)
    peaks = [row.peak_rss_mb for row in round_.stages if row.peak_rss_mb is not None]
    rows = [
        {
            "row": row,
            "state": _STATES[row.state],
            "share": 100 * row.seconds / longest if row.seconds and longest else 0.0,
        }
        for row in round_.stages
    ]
    return {"rows": rows, "seconds": sum(spent) if spent else None, "peak": max(peaks, default=None)}


@dataclass(frozen=True)
class Row:
    """A row of a table of shares."""

    kind: str
    label: str
    value: Estimate


def evaluation(round_: Round) -> dict[str, Any] | None:
    evaluation = round_.evaluation
    if evaluation is None:
        return None
    rows = [Row("overall", "all prompts", evaluation.win_rate)] if evaluation.win_rate else []
    if evaluation.length_controlled is not None:
        rows.append(Row("overall", "at equal length", Estimate(evaluation.length_controlled)))
    rows += [Row("split", name, value) for name, value in sorted(evaluation.by_split.items())]
    top = len(rows)
    rows += [Row("group", name, value) for name, value in sorted(evaluation.by_group.items())]
    general = [(row.label if row.kind != "split" else f"split {row.label}", row.value) for row in rows[:top]]
    by_group = [(row.label, row.value) for row in rows[top:]]
    column: str = "oracle"
    groups: list[Versus] = []
    if round_.responses is not None:
        column, groups = reward_by_group(round_.responses, confidence(round_))
    measure = "Mean oracle score" if column == "oracle" else "Mean reward of the reward model"
    return {
        "rows": rows,
        "plot": plots.dots(
            "win-rate",
            _title("Win rate of the policy", by_group),
            [*general, *_lowest(by_group)],
            0.5,
            "equal",
            top if by_group else 0,
        )
        if rows
        else None,
        "measure": measure,
        "groups": groups,
        "group_plot": plots.dumbbells(
            "reward-by-group",
            _title(f"{measure} by group", groups),
            sorted(sorted(groups, key=lambda row: row.policy.mean)[:_MAX_ROWS], key=lambda row: row.label),
        )
        if groups
        else None,
        "whole": _whole(evaluation),
        "pairs": evaluation.pairs,
    }


def _whole(evaluation: Evaluation) -> list[Versus]:
    """Figures of reference and policy over all evaluated prompts."""
    rows = []
    for label, pair in (
        ("Expected reward (oracle)", evaluation.both.get("expected_reward", {})),
        ("Reward model's score", evaluation.both.get("reward_model", {})),
        ("Response length, tokens", evaluation.both.get("length", {})),
    ):
        if "reference" in pair and "policy" in pair:
            rows.append(Versus(label, pair["reference"], pair["policy"]))
    return rows


def _lowest(rows: list[tuple[str, Estimate]]) -> list[tuple[str, Estimate]]:
    """At most `_MAX_ROWS` rows, those with the lowest means, by name."""
    return sorted(sorted(rows, key=lambda row: row[1].mean)[:_MAX_ROWS])


def _title(title: str, rows: Sequence[Any]) -> str:
    return title if len(rows) <= _MAX_ROWS else f"{title}, lowest {_MAX_ROWS} of {len(rows):,} groups"


_PANELS = (
    ("reward", "Reward after the KL penalty", False),
    ("score", "Reward model's score", False),
    ("kl", "KL to the reference, nats a response", False),
    ("probe_win_rate", "Win rate in the live probe", True),
    ("entropy", "Entropy, nats a token", False),
    ("clip_fraction", "Clipped probability ratios", True),
    ("approx_kl", "KL within an update", False),
    ("value_loss", "Value loss", False),
    ("response_length", "Response length, tokens", False),
    ("stop_rate", "Responses that stopped by themselves", True),
    ("repetition", "Repeated runs of three tokens", True),
    ("reference_perplexity", "Perplexity under the reference", False),
)
"""Column of updates.parquet, title, whether it is a share."""


def ppo(round_: Round) -> dict[str, Any] | None:
    if "ppo" not in round_.manifests:
        return None
    metrics = round_.metrics("ppo")
    panels, absent = [], []
    for column, title, share in _PANELS:
        plot = _panel(round_, column, title, share)
        if plot:
            panels.append(plot)
        else:
            absent.append(title)
    if gains := _gains(round_):
        panels.insert(min(4, len(panels)), gains)
    passed = [str(sentence).split(":", 1)[0].replace("_", " ") for sentence in metrics.get("warnings") or ()]
    facts = {
        "Monitors past their limit": ", ".join(passed) or "none",
        "Updates": text.count(integer(metrics.get("updates"))),
        "Kept update": text.count(integer(metrics.get("best_update"))),
        "KL of the kept policy": text.number(real(metrics.get("kl")), 1),
        "KL budget": text.number(real(round_.setting("ppo", "kl", "budget")), 1),
    }
    return {"panels": panels, "absent": absent, "facts": facts, "stopped": _stopped(metrics), "sft": _sft(round_)}


def _panel(round_: Round, column: str, title: str, share: bool) -> Plot | None:
    frame = round_.updates
    if frame is None or column not in frame or "update" not in frame:
        return None
    x, y = _points(frame, "update", column)
    if not x:
        return None
    level, best = None, integer(round_.metrics("ppo").get("best_update"))
    if column == "kl" and (budget := real(round_.setting("ppo", "kl", "budget"))):
        level = Level(budget, f"budget {text.number(budget, 1)}", limit=True)
    if column == "probe_win_rate":
        level = Level(0.5, "equal")
    return plots.lines(
        f"ppo-{column}",
        title,
        [Series(x, y, dots=column == "probe_win_rate")],
        "update",
        level=level,
        marked=None if best is None else (float(best), "kept"),
        as_percent=share,
        compact=True,
    )


def _gains(round_: Round) -> Plot | None:
    """The judges' gain against the reward model's, probe by probe: a curve that bends down is over-optimisation."""
    frame = round_.updates
    if frame is None or not {"judge_gain", "reward_gain"} <= set(frame):
        return None
    both = frame[["reward_gain", "judge_gain"]].dropna()
    if len(both) < 2:
        return None
    return plots.lines(
        "ppo-gains",
        "Judges' gain against the reward model's",
        [Series(both["reward_gain"].tolist(), both["judge_gain"].tolist(), dots=True)],
        "gain of the reward model's score",
        level=Level(0.0, "no better than the reference"),
        as_percent=True,
        compact=True,
        whole_x=False,
    )


def _stopped(metrics: Mapping[str, Any]) -> str | None:
    value = metrics.get("stopped")
    if isinstance(value, str) and value.strip():
        return value
    if (value is None and "stopped" in metrics) or value is False:
        return "no guardrail stopped it: all updates ran"
    return "a guardrail stopped it; the stage did not say which" if value is True else None


def _sft(round_: Round) -> list[Plot]:
    return _learning("sft", round_.sft_curve) if round_.sft_curve is not None else []


def _learning(name: str, curve: pd.DataFrame) -> list[Plot]:
    """A panel of the losses and one of the accuracies in a learning curve, over its steps."""
    x = next((column for column in ("step", "update", "tokens", "epoch") if column in curve), None)
    if x is None:
        return []
    found = []
    for word, title in (("loss", "Loss"), ("accuracy", "Accuracy")):
        columns = [column for column in curve if word in str(column) and pd.api.types.is_numeric_dtype(curve[column])]
        series = []
        for column, colour in zip(columns[:2], (POLICY, MUTED), strict=False):
            at, values = _points(curve, x, str(column))
            if at:
                label = str(column).replace("_", " ") if len(columns) > 1 else None
                series.append(Series(at, values, label, colour))
        if series:
            percent = word == "accuracy"
            found.append(
                plots.lines(f"{name}-{word}", title, series, str(x), as_percent=percent, compact=name == "sft")
            )
    return found


def reward(round_: Round) -> dict[str, Any] | None:
    if "reward" not in round_.manifests:
        return None
    metrics, level = round_.metrics("reward"), confidence(round_)
    groups = {name: proportion(value, level) for name, value in sorted(estimates(metrics.get("by_group")).items())}
    rows = [(name, value) for name, value in groups.items() if value is not None]
    bins: list[Bin] = []
    splits: list[str] = []
    if round_.predictions is not None and len(round_.predictions):
        chosen, splits = unseen(round_.predictions)
        bins = calibration_bins(chosen)
    return {
        "curves": _learning("reward", round_.reward_curve) if round_.reward_curve is not None else [],
        "bins": bins,
        "splits": splits,
        "calibration": plots.calibration("calibration", "Predicted against labelled preference", bins)
        if bins
        else None,
        "groups": rows,
        "group_plot": plots.dots("reward-groups", _title("Accuracy by group", rows), _lowest(rows), 0.5, "chance")
        if rows
        else None,
        "log_loss": real(metrics.get("log_loss")),
        "least_log_loss": real(metrics.get("least_log_loss")),
        "intervals": estimates(metrics.get("intervals")),
        "scale": real(metrics.get("reward_scale")),
        "on_train": metrics.get("measured_on") == "train",
        "gold": estimate(metrics.get("gold_accuracy")),
    }


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
        sources = [(str(name), _floats(part)) for name, part in frame["p_chosen"].groupby(frame["source"])]
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


def audit(round_: Round) -> dict[str, Any] | None:
    if "audit" not in round_.manifests or round_.setting("audit", "mode") == "off":
        return None
    selection, verdicts = round_.selection, round_.verdicts or []
    current = in_force(verdicts)
    by_auditor: dict[tuple[str, bool], list[Verdict]] = {}
    for verdict_ in current:
        by_auditor.setdefault((verdict_.auditor, verdict_.simulated), []).append(verdict_)
    simulated = sum(verdict_.simulated for verdict_ in current)
    golds, late, left_out = (_counts(round_.metrics("audit").get(name)) for name in ("gold", "late", "left_out"))
    drawn = None if selection is None else selection[selection["drawn"]]
    return {
        "judged": None if selection is None else len(selection),
        "drawn": None if drawn is None else len(drawn),
        "strata": {}
        if drawn is None
        else {str(k): int(n) for k, n in drawn["stratum"].value_counts().sort_index().items()},
        "auditors": [_auditor(*who, own, golds.get(who[0])) for who, own in sorted(by_auditor.items())],
        "by_winner": Counter(_WINNERS.get(verdict_.winner, str(verdict_.winner)) for verdict_ in current),
        "people": len(current) - simulated,
        "simulated": simulated,
        "replaced": len(verdicts) - len(current),
        "estimates": _audit_estimates(round_),
        "late": late if late.get("verdicts") else None,
        "left_out": {name.replace("_", " "): n for name, n in left_out.items() if n},
        "problem_files": round_.metrics("audit").get("problem_files") or [],
    }


_WINNERS = {"a": "response a is better", "b": "response b is better", "tie": "tie", None: "skipped"}


@dataclass(frozen=True)
class Auditor:
    """What one auditor did. `gold`: share right of the hidden pairs with known winners, with Wilson's interval."""

    name: str
    simulated: bool
    n: int
    skipped: int
    median_s: float | None
    gold: Estimate | None


def _counts(value: Any) -> dict[str, Any]:
    return dict(value) if isinstance(value, Mapping) else {}


def _auditor(name: str, simulated: bool, verdicts: list[Verdict], gold: Any) -> Auditor:
    """`gold`: how many hidden pairs with known winners they answered, and how many right."""
    seconds = [verdict_.seconds for verdict_ in verdicts if math.isfinite(verdict_.seconds)]
    skipped = sum(verdict_.winner is None for verdict_ in verdicts)
    known = _counts(gold)
    right, n = integer(known.get("right")), integer(known.get("answered"))
    found = proportion(Estimate(right / n, n=n)) if n and right is not None else None
    return Auditor(name, simulated, len(verdicts), skipped, median(seconds) if seconds else None, found)


@dataclass(frozen=True)
class Audited:
    """A judge against the auditors: the same share by the four estimators of `audit.estimates.accuracy`."""

    judge: str
    n: int | None
    naive: Estimate | None
    corrected: Estimate | None
    weighted: Estimate | None
    uniform: Estimate | None


def _audit_estimates(round_: Round) -> list[Audited]:
    found = round_.metrics("audit").get("estimates")
    if not isinstance(found, Mapping):
        return []
    rows = [row for row in [found.get("panel"), *(found.get("judges") or [])] if isinstance(row, Mapping)]
    return [
        Audited(
            str(row.get("judge", "")),
            integer(row.get("audited")),
            _audit_estimate(row, "naive", "naive_"),
            _audit_estimate(row, "corrected", "corrected_"),
            _audit_estimate(row, "hajek", "hajek_"),
            _audit_estimate(row, "uniform", ""),
        )
        for row in rows
    ]


def _audit_estimate(row: Mapping[str, Any], name: str, bounds: str) -> Estimate | None:
    return estimate({"mean": row.get(name), "low": row.get(f"{bounds}low"), "high": row.get(f"{bounds}high")})


def provenance(round_: Round) -> dict[str, Any]:
    manifests = round_.manifests.values()
    packages: dict[str, set[str]] = {}
    machines: dict[str, set[str]] = {}
    for manifest in manifests:
        for name, version in manifest.packages.items():
            packages.setdefault(name, set()).add(version)
        for name, value in manifest.machine.items():
            machines.setdefault(name, set()).add(value)
    return {
        "code": sorted({manifest.code_version for manifest in manifests}),
        "seed": round_.config.get("seed"),
        "packages": {name: ", ".join(sorted(values)) for name, values in sorted(packages.items())},
        "machines": {name: ", ".join(sorted(values)) for name, values in machines.items()},
        "manifests": list(round_.manifests.items()),
    }


def _points(frame: pd.DataFrame, x: str, y: str) -> tuple[list[float], list[float]]:
    """The rows in which both are finite numbers: a figure that was not recorded leaves a gap, not a zero."""
    numbers = frame[[x, y]].apply(pd.to_numeric, errors="coerce").astype("float64")
    known = numbers[np.isfinite(numbers).all(axis=1)]
    return _floats(known[x]), _floats(known[y])


def _floats(values: pd.Series[Any]) -> list[float]:
    return [float(value) for value in values.to_numpy(dtype=float)]

"""What was trained: PPO update by update, with the SFT before it, and the reward model against labels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from flows.report import plots, text
from flows.report.data import Round
from flows.report.headline import confidence
from flows.report.measures import Bin, calibration_bins, proportion, unseen
from flows.report.plots import Level, Series
from flows.report.sections.rows import lowest, points, title_of
from flows.report.svg import MUTED, POLICY, Plot
from flows.report.values import estimate, estimates, integer, real

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
    x, y = points(frame, "update", column)
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
        "group_plot": plots.dots("reward-groups", title_of("Accuracy by group", rows), lowest(rows), 0.5, "chance")
        if rows
        else None,
        "log_loss": real(metrics.get("log_loss")),
        "least_log_loss": real(metrics.get("least_log_loss")),
        "intervals": estimates(metrics.get("intervals")),
        "scale": real(metrics.get("reward_scale")),
        "on_train": metrics.get("measured_on") == "train",
        "gold": estimate(metrics.get("gold_accuracy")),
    }


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
            at, values = points(curve, x, str(column))
            if at:
                label = str(column).replace("_", " ") if len(columns) > 1 else None
                series.append(Series(at, values, label, colour))
        if series:
            percent = word == "accuracy"
            found.append(
                plots.lines(f"{name}-{word}", title, series, str(x), as_percent=percent, compact=name == "sft")
            )
    return found

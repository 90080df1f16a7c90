"""The evaluation: the policy's win rate over its reference, by split and by group, and both policies' scores."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from flows.report import plots
from flows.report.data import Evaluation, Round
from flows.report.headline import confidence
from flows.report.measures import Versus, reward_by_group
from flows.report.sections.rows import MAX_ROWS, lowest, title_of
from flows.report.values import Estimate


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
            title_of("Win rate of the policy", by_group),
            [*general, *lowest(by_group)],
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
            title_of(f"{measure} by group", groups),
            sorted(sorted(groups, key=lambda row: row.policy.mean)[:MAX_ROWS], key=lambda row: row.label),
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

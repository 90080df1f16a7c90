"""Champion or keep: a decision from the evaluation's intervals, with its reasons.

A policy is promoted when every check passes. Bounds are compared, never means: the lower bound of the win rate against
its bar, and each group's lower bound against the bar of groups.
"""

from __future__ import annotations

from typing import Any

from flows.config import PromoteConfig
from store.errors import UsageError
from store.files import read_json, write_json
from store.stage import Job, Metrics


def checks(evaluation: dict[str, Any], config: PromoteConfig) -> list[dict[str, Any]]:
    """Each check: `name`, `value`, `bar`, `passed`. A figure that is missing fails its check."""

    def above(name: str, value: float | None, bar: float) -> dict[str, Any]:
        return {"name": name, "value": value, "bar": bar, "passed": value is not None and value > bar}

    rows = [above("lower bound of the win rate", evaluation["win_rate"]["low"], config.win_rate_bar)]
    for group, figures in sorted(evaluation["by_group"].items()):
        rows.append(above(f"lower bound of the win rate, group {group}", figures["low"], config.group_bar))
    if config.kl_bar is not None:
        kl = (evaluation.get("kl") or {}).get("mean")
        passed = kl is not None and kl <= config.kl_bar
        rows.append({"name": "KL to the reference", "value": kl, "bar": config.kl_bar, "passed": passed})
    return rows


def explain(rows: list[dict[str, Any]]) -> str:
    failed = [row for row in rows if not row["passed"]]
    if not failed:
        first = rows[0]
        return f"all {len(rows)} checks passed; {first['name']} is {first['value']:.3f}, above {first['bar']:g}"
    return "; ".join(f"{row['name']} is {_figure(row['value'])}, the bar is {row['bar']:g}" for row in failed)


def _figure(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.3f}"


def run(job: Job[PromoteConfig]) -> Metrics:
    evaluation = read_json(job.path("evaluation"))
    try:
        rows = checks(evaluation, job.config)
    except (KeyError, TypeError) as error:
        raise UsageError(
            f"{job.path('evaluation')} lacks {error}: give the evaluation.json that the evaluate stage writes."
        ) from error
    promoted = all(row["passed"] for row in rows)
    decision = {
        "promoted": promoted,
        "reason": explain(rows),
        "checks": rows,
        "policy_sha256": job.identity("policy"),
        "win_rate": evaluation["win_rate"],
    }
    write_json(job.out / "decision.json", decision)
    return {"promoted": promoted, "reason": decision["reason"]}

"""What the Prefect UI shows: of each stage its figures as a table, its plots as images and what people look for in it
(judges, gate, win rates); of a round its verdict, its costs and its report; of the other flows their tables."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from prefect.artifacts import (
    create_image_artifact,
    create_link_artifact,
    create_markdown_artifact,
    create_table_artifact,
)

from flows.report.images import stage_images
from flows.retention import Removal
from flows.telemetry.costs import judge_costs, spent_by
from flows.telemetry.figures import flatten
from judges.drift import Drift
from store.files import read_json
from store.stage import Outcome

Rows = list[dict[str, Any]]
_SHOWN_LOOKS = 24


def publish_stage(outcome: Outcome) -> None:
    """Reasons first, then figures; a stage that was complete already is shown as it is."""
    manifest, stage = outcome.manifest, outcome.manifest.stage
    figures = {"seconds": manifest.seconds, "peak_rss_mb": manifest.peak_rss_mb, **manifest.metrics}
    rows = [{"figure": name, "value": value} for name, value in flatten(figures).items()]
    state = "already complete" if outcome.reused else "ran because " + "; ".join(outcome.reasons)
    create_table_artifact(rows, key=f"{stage}-figures", description=f"{stage} {state}. `{outcome.folder}`")
    if stage in _TABLES:
        key, said, rows_of = _TABLES[stage]
        if table := rows_of(outcome):
            create_table_artifact(table, key=key, description=said)
    for number, (title, uri) in enumerate(stage_images(outcome.folder.parent, stage), start=1):
        create_image_artifact(uri, key=f"{stage}-plot-{number}", description=title)


def _judges(outcome: Outcome) -> Rows:
    shown = ("attempted", "scored", "tie", "abstain", "parse_failure", "error")
    accuracy = outcome.manifest.metrics.get("judge_accuracy") or {}
    taken = spent_by(outcome.manifest)
    rows: Rows = []
    for name, figures in (outcome.manifest.metrics.get("per_judge") or {}).items():
        asked = taken.get(name, figures)  # of a cascade the members are asked
        rows.append(
            {
                "judge": name,
                **{key: figures.get(key) for key in shown},
                "order flips": _number(figures.get("order_flip_rate")),
                "right on gold": _number((accuracy.get(name) or {}).get("accuracy")),
                "calls": asked.get("calls", figures.get("attempted")),
                "tokens in": asked.get("tokens_in"),
                "tokens out": asked.get("tokens_out"),
                "cost": _number(asked.get("cost")),
            }
        )
    return rows


def _gate(outcome: Outcome) -> Rows:
    checks = (outcome.manifest.metrics.get("gate") or {}).get("checks") or []
    columns = ("state", "figure", "of", "value", "low", "high", "limit", "n")
    return [{column: _number(check.get(column)) for column in columns} for check in checks]


def _win_rates(outcome: Outcome) -> Rows:
    evaluation = read_json(outcome.folder / "evaluation.json")
    rows = [("all", evaluation.get("win_rate"))]
    for kind in ("by_group", "by_split"):
        rows += [(f"{kind.removeprefix('by_')} {name}", row) for name, row in (evaluation.get(kind) or {}).items()]
    columns = ("mean", "low", "high", "n")
    return [{"held-out prompts": name, **{c: _number(row.get(c)) for c in columns}} for name, row in rows if row]


_TABLES: dict[str, tuple[str, str, Callable[[Outcome], Rows]]] = {
    "judge": ("judges", "Votes of each judge by status, what they cost, and how often it was right", _judges),
    "aggregate": ("gate", "The gate: may these judges label training pairs?", _gate),
    "evaluate": ("win-rates", "Win rate of the new policy over its reference, with confidence intervals", _win_rates),
}


def _number(value: Any) -> Any:
    """The UI reads cells as markdown, in which a dash alone is a list."""
    return f"{value:.4g}" if isinstance(value, float) else "n/a" if value is None else value


def publish_details(stage: str, sentence: str, details: str) -> None:
    """Why a stage stopped, with its table."""
    create_markdown_artifact(f"{sentence}\n\n```\n{details}\n```", key=f"{stage}-stopped")


def publish_report(path: Path, promoted: bool, reason: str) -> None:
    """The verdict with the report's place, and what judging cost."""
    verdict = "The policy is the new champion" if promoted else "The champion was kept"
    # A browser opens no file from another page, so the path is there to copy too.
    text = f"## {verdict}\n\n{reason}.\n\n[Report of the round]({path.as_uri()}): `{path}`"
    create_markdown_artifact(text, key="round-report")
    rows = [{name: _number(value) for name, value in row.items()} for row in judge_costs(path.parent)]
    if rows:
        create_table_artifact(rows, key="judge-costs", description="Calls, tokens and cost of each judge in this round")


def publish_audit_page(url: str) -> None:
    """The address that auditors work at. No text of an item is in it."""
    create_link_artifact(url, link_text="Review the pairs of this round", key="audit-page")


def publish_looks(looks: Sequence[Mapping[str, Any]]) -> None:
    rows: Rows = []
    for one in reversed(looks[-_SHOWN_LOOKS:]):
        rows.append({name: _number(value) for name, value in one.items() if not isinstance(value, list | dict)})
    create_table_artifact(rows, key="looks-at-the-champion", description="The champion between rounds, newest first")


def publish_drift(found: Mapping[str, Drift | None], limit: float, since: str = "the first ones") -> None:
    rows: Rows = []
    for name, one in found.items():
        if one is None:
            rows.append({"judge": name, "state": "first asking: later ones are compared with it"})
            continue
        low = one.flip_low
        rows.append(
            {
                "judge": name,
                "state": "drifted" if low is not None and low > limit else "ok",
                "flips": f"{one.flips} of {one.pairs}",
                "rate": _number(one.flip_rate),
                "low": _number(low),
                "high": _number(one.flip_high),
                "to right": one.toward_gold,
                "to wrong": one.from_gold,
                "since": one.before["asked_at"],
                "fingerprint": "changed" if one.fingerprint_changed else "same",
            }
        )
    said = f"Answers on the anchor pairs against {since}; drifted where low is above {limit:g}"
    create_table_artifact(rows, key="judge-drift", description=said)


def publish_removals(found: Sequence[Removal], dry_run: bool) -> None:
    rows: Rows = [{"output": str(one.path), "MiB": f"{one.mb:.1f}", "why": one.why} for one in found]
    verb = "would go" if dry_run else "went"
    said = f"{len(found)} outputs {verb}, {sum(one.mb for one in found):.1f} MiB"
    create_table_artifact(rows, key="removed-outputs", description=said)

"""What the Prefect UI shows of a stage: its figures as a table, its plots as images, the round's report as a link."""

from __future__ import annotations

from pathlib import Path

from prefect.artifacts import (
    create_image_artifact,
    create_link_artifact,
    create_markdown_artifact,
    create_table_artifact,
)

from flows.figures import flatten
from flows.report.images import stage_images
from store.stage import Outcome


def publish_stage(outcome: Outcome) -> None:
    manifest, stage = outcome.manifest, outcome.manifest.stage
    figures = {"seconds": manifest.seconds, "peak_rss_mb": manifest.peak_rss_mb, **manifest.metrics}
    rows = [{"figure": name, "value": value} for name, value in flatten(figures).items()]
    state = "already complete" if outcome.reused else "ran because " + "; ".join(outcome.reasons)
    create_table_artifact(rows, key=f"{stage}-figures", description=f"{stage} {state}. `{outcome.folder}`")
    for number, (title, uri) in enumerate(stage_images(outcome.folder.parent, stage), start=1):
        create_image_artifact(uri, key=f"{stage}-plot-{number}", description=title)


def publish_details(stage: str, sentence: str, details: str) -> None:
    """Why a stage stopped, with its table."""
    create_markdown_artifact(f"{sentence}\n\n```\n{details}\n```", key=f"{stage}-stopped")


def publish_report(path: Path, promoted: bool, reason: str) -> None:
    verdict = "The policy is the new champion" if promoted else "The champion was kept"
    create_markdown_artifact(f"{verdict}: {reason}.\n\n[Report of the round]({path.as_uri()})", key="round-report")


def publish_audit_page(url: str) -> None:
    """The address that auditors work at. No text of an item is in it."""
    create_link_artifact(url, link_text="Review the pairs of this round", key="audit-page")

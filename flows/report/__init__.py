"""The report of a round: one HTML file that needs nothing else, readable by someone who was not there.

Takes a round folder (stage directories with manifests, journal.jsonl, round.yaml), gives `report.html`. It holds no
script, loads nothing from outside, and treats every text of a model as hostile. The same folder gives the same bytes.
"""

from __future__ import annotations

from pathlib import Path

from store.files import write_text

__all__ = ["build_report"]


def build_report(round_folder: Path, out: Path | None = None) -> Path:
    """Write the report of `round_folder` to `out` (default: report.html in it) and return its path.

    Works on a round that is unfinished or failed: what is absent is shown as not run. Raises UsageError where
    `round_folder` is no round.
    """
    from flows.report.data import read_round  # plots and statistics: whoever only prints text does not wait for them
    from flows.report.page import render

    return write_text(out or round_folder / "report.html", render(read_round(round_folder)))

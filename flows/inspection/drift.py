"""Drift of the judges of a workspace, for the command line and for flows: see `judges.drift`."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from flows.workspace import Workspace
from judges.config import JudgeStageConfig, load_judge
from judges.drift import Anchors, Drift, check_drift
from judges.panel import Limits
from store.errors import UsageError
from store.resources import resolve
from store.schemas import GOLD
from store.stage import Progress, silent
from store.tables import read_table


def drift_of_workspace(
    space: Workspace,
    now: datetime,
    judges: Sequence[str] = (),
    gold: str | None = None,
    *,
    force: bool = False,
    since_first: bool = False,
    progress: Progress = silent,
) -> dict[str, Drift | None]:
    """Name -> drift since an earlier asking; None where there is nothing yet to compare with.

    `judges`: names or folders, the last round's training judges without; `gold`: pairs with known winners that anchors
    are taken of at the first time, the last round's calibration without. A judge is asked where its digest changed, and
    with `force` in any case; `since_first`: see `judges.drift.check_drift`. Raises UsageError where neither the judges
    nor the gold are known, TransientError where a judge's server is away.
    """
    last = space.last_round()
    names = list(judges) or (last.config.judges if last else [])
    if not names:
        raise UsageError(f"{space.root} has no round yet, so its judges are not known: name them with --judge.")
    loaded = [load_judge(name) for name in names]
    anchors = Anchors(space.root / "anchors")
    if not anchors.frozen:
        source = gold or (last.config.calibration if last else None)
        if source is None:
            raise UsageError("No pairs with known winners are there to take anchors of: give --gold FILE.")
        anchors.freeze(read_table(Path(resolve(source)), GOLD))
    section = last.config.judge if last else JudgeStageConfig()
    # A server that is away is no drift. Answers that can no longer be read are, and are kept.
    limits = Limits(section.max_error_rate, after=section.rate_after)
    how: dict[str, Any] = {"force": force, "since_first": since_first, "progress": progress, "limits": limits}
    return {judge.name: check_drift(judge, anchors, now, **how) for judge in loaded}

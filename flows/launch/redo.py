"""`rlaif run --from STAGE`: a round's stages from one on are made again, although they are complete."""

from __future__ import annotations

from flows.plan import Planned, plan_round
from flows.workspace import Round
from store.errors import UsageError
from store.files import remove
from store.stage import redo


def stages_from(round_: Planned, stage: str) -> list[str]:
    """The planned stages from `stage` on. Raises UsageError for one that the round has not."""
    planned = [step.stage for step in plan_round(round_)]
    if stage not in planned:
        raise UsageError(
            f"Round {round_.number} has no stage {stage!r} to start from: choose one of {', '.join(planned)}."
        )
    return planned[planned.index(stage) :]


def reason(stage: str) -> str:
    return f"--from {stage} asks for it"


def redo_from(round_: Round, stage: str) -> None:
    """Set the results from `stage` on aside: the next run makes them again, also one after a kill. Call it with the
    workspace's lock held.

    The last stage goes first, so that a kill in here leaves nothing complete behind what is to be made again.
    """
    stages = stages_from(round_, stage)
    remove(round_.folder / "report.html")
    for name in reversed(stages):
        redo(round_.stage(name), reason(stage))
    round_.journal.write("redo", stages=stages)

"""A look at the champion between rounds: a few responses to held-out prompts, judged by the panel.

Nothing is trained on them. They show early what a round would meet: judges that answer less, disagree more or cost
more, responses that grow longer or do not stop. Each look is a folder of two stages, workspace/monitor/<time>/{sample,
judge}, made by the same stage functions as a round's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from flows.plan import Step, stage_seed
from flows.processes.execute import run_step
from flows.workspace import Workspace
from store.config import Config
from store.errors import UsageError
from store.manifest import read_manifest
from store.stage import Progress, silent

FOLDER = "monitor"
ProgressOf = Callable[[str], Progress]
"""Stage -> who is told of its progress."""


def look(
    space: Workspace,
    now: datetime,
    prompts: int = 32,
    judges: Sequence[str] = (),
    progress: ProgressOf = lambda _stage: silent,
) -> Path | None:
    """Sample two responses each to `prompts` prompts and judge each pair; gives the folder of the look.

    None where there is no champion yet. `judges`: the last round's training judges without. Raises what the stages do.
    """
    if space.remote is not None:
        space.remote.fetch_champion()
    last, champion = space.last_round(), space.champion()
    if champion is None:
        return None
    if last is None:
        raise UsageError(f"{space.root} has a champion but no round, so its prompts are not known: run a round first.")
    config = last.config
    folder = space.root / FOLDER / f"{now:%Y%m%dT%H%M%SZ}"
    number = int(now.timestamp())

    def run(stage: str, section: Config, **inputs: list[str]) -> Path:
        step = Step(stage, inputs, section, stage_seed(config.seed, number, stage), folder / stage)
        return run_step(step, folder / "logs", progress(stage)).folder

    drawn = config.sample.model_copy(update={"splits": config.evaluate.splits, "max_prompts": prompts, "responses": 2})
    sample = run("sample", drawn, policy=[champion["policy"]], prompts=[config.prompts])
    judged = config.judge.model_copy(update={"pairs": "random", "pairs_per_prompt": 1})
    run(
        "judge",
        judged,
        rollouts=[str(sample / "rollouts.parquet")],
        prompts=[config.prompts],
        judge=list(judges) or config.judges,
    )
    return folder


def looks(space: Workspace, last: int = 24) -> list[dict[str, Any]]:
    """The figures of the last looks that are complete, oldest first: `time`, `policy`, lengths, votes by status,
    agreement, cost."""
    if space.remote is not None:
        space.remote.fetch_looks(last)
    rows = []
    for folder in sorted((space.root / FOLDER).glob("[0-9]*T*Z"))[-last:]:
        sample, judge = read_manifest(folder / "sample"), read_manifest(folder / "judge")
        if sample is None or judge is None:
            continue
        rows.append(
            {
                "time": folder.name,
                "policy": Path(sample.inputs["policy"][0]["value"]).parent.parent.name,
                "mean_length": sample.metrics["mean_length"],
                "stop_rate": sample.metrics["stop_rate"],
                "pairs": judge.metrics["pairs"],
                **judge.metrics["votes"],
                "agreement": judge.metrics["agreement"],
                "cost": judge.metrics["cost"],
                "seconds": sample.seconds + judge.seconds,
            }
        )
    return rows

"""Which outputs of old rounds may go, and their removal.

Models and checkpoints are heavy and can be made again; what judges and people said cannot be had again for nothing, so
votes, ratings, verdicts, selections and preferences always stay, and so do manifests, reports and journals.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Annotated

from pydantic import Field

from flows.inspection.monitor import FOLDER
from flows.policies.registry import Registry
from flows.workspace import Round, Workspace
from store.config import Config
from store.files import remove

HEAVY = {"sft": ("model",), "reward": ("model",), "ppo": ("policy",)}
"""Stage -> its outputs that hold weights."""
_TRASH = re.compile(r"\..+\.[0-9a-f]{8}\.(trash|tmp)")


class Retention(Config):
    """What is kept of finished rounds."""

    keep_rounds: Annotated[int, Field(ge=1)] = Field(5, description="last finished rounds that keep everything")
    keep_looks_days: Annotated[float, Field(ge=0)] = Field(30, description="days that looks at the champion are kept")


@dataclass(frozen=True)
class Removal:
    path: Path
    mb: float
    why: str


def removals(space: Workspace, policy: Retention, now: datetime) -> list[Removal]:
    """What the policy lets go of. Never of an unfinished round, nor of a round whose policy was ever promoted, nor what
    an unfinished round starts from."""
    rounds = space.rounds()
    finished = [round_ for round_ in rounds if round_.finished]
    kept = {round_.number for round_ in finished[-policy.keep_rounds :]} | promoted_rounds(space)
    starts = {Path(round_.start.policy) for round_ in rounds if not round_.finished}
    found = []
    for round_ in finished:
        if round_.number in kept:
            continue
        for path in _heavy(round_):
            if path not in starts:
                found.append(_removal(path, f"round {round_.number} is older than the last {policy.keep_rounds}"))
    limit = f"{now - timedelta(days=policy.keep_looks_days):%Y%m%dT%H%M%SZ}"
    for folder in sorted((space.root / FOLDER).glob("[0-9]*T*Z")):
        if folder.name < limit:
            for path in _bulk_of_look(folder):
                found.append(_removal(path, f"a look older than {policy.keep_looks_days:g} days"))
    return [*found, *_trash(rounds)]


def promoted_rounds(space: Workspace) -> set[int]:
    """Rounds whose policy was the champion at some time: what a rollback may need."""
    promoted = [entry for entry in Registry(space.root).entries() if entry.get("promoted")]
    champion = space.champion()
    rounds = {entry.get("round") for entry in [*promoted, *([champion] if champion else [])]}
    return {number for number in rounds if isinstance(number, int)}


def apply(space: Workspace, found: list[Removal]) -> None:
    """Remove, and tell it in the journal of each round. Call it with the workspace's lock held.

    The journal is written first: a kill between leaves a line too many, never a removal that nobody told.
    """
    by_round = {round_.folder: round_ for round_ in space.rounds()}
    for removal in found:
        owner = next((by_round[parent] for parent in removal.path.parents if parent in by_round), None)
        if owner:
            name = str(removal.path.relative_to(owner.folder))
            owner.journal.write("removed", path=name, mb=removal.mb, why=removal.why)
        remove(removal.path)


def _heavy(round_: Round) -> Iterator[Path]:
    for stage, names in HEAVY.items():
        yield from (path for name in names if (path := round_.stage(stage) / name).exists())


def _bulk_of_look(folder: Path) -> Iterator[Path]:
    """Of a look, the rollouts and pairs go and the votes stay, as everywhere."""
    yield from (path for path in (folder / "sample" / "rollouts.parquet", folder / "logs") if path.exists())


def _trash(rounds: list[Round]) -> Iterator[Removal]:
    """What a kill in the middle of a removal or of a write left, in rounds that nobody writes to any more."""
    for round_ in rounds:
        if round_.finished:
            for path in round_.folder.iterdir():
                if _TRASH.fullmatch(path.name):
                    yield _removal(path, "left by a kill")


def _removal(path: Path, why: str) -> Removal:
    return Removal(path, round(_bytes(path) / 2**20, 3), why)


def _bytes(path: Path) -> int:
    if path.is_file():
        return path.stat().st_size
    return sum(
        os.stat(os.path.join(folder, name), follow_symlinks=False).st_size
        for folder, _, names in os.walk(path)
        for name in names
    )

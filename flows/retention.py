"""Which outputs of old rounds may go, and their removal.

Models and checkpoints are heavy and can be made again; what judges and people said cannot be had again for nothing, so
votes, ratings, verdicts, selections and preferences always stay, and so do manifests, reports and journals.

Of a workspace in a bucket the objects go, and this machine's copies of them.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Annotated

from pydantic import Field

from flows.bucket.session import MIRROR
from flows.inspection.monitor import FOLDER
from flows.policies.registry import Registry
from flows.workspace import Round, Workspace
from store.config import Config
from store.files import remove

HEAVY = {"sft": ("model",), "reward": ("model",), "ppo": ("policy",)}
"""Stage -> its outputs that hold weights."""
_LOOK = re.compile(r"\d+T\d+Z")
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
    rounds, sizes = space.rounds(), _Sizes(space)
    finished = [round_ for round_ in rounds if round_.finished]
    kept = {round_.number for round_ in finished[-policy.keep_rounds :]} | promoted_rounds(space)
    # Relative where the start is not at hand, as in a new copy of a bucket.
    starts = {space.root / round_.start.policy for round_ in rounds if not round_.finished}
    found: list[tuple[Path, str]] = []
    for round_ in finished:
        if round_.number not in kept:
            why = f"round {round_.number} is older than the last {policy.keep_rounds}"
            found += [(path, why) for path in _heavy(round_) if path not in starts]
    limit = f"{now - timedelta(days=policy.keep_looks_days):%Y%m%dT%H%M%SZ}"
    for name in sorted(filter(_LOOK.fullmatch, sizes.names(space.root / FOLDER))):
        if name < limit:
            why = f"a look older than {policy.keep_looks_days:g} days"
            found += [(path, why) for path in _bulk_of_look(space.root / FOLDER / name)]
    found += [(path, "left by a kill") for path in _trash(finished)]
    return [Removal(path, round(size / 2**20, 3), why) for path, why in found if (size := sizes.of(path)) is not None]


def promoted_rounds(space: Workspace) -> set[int]:
    """Rounds whose policy was the champion at some time: what a rollback may need."""
    promoted = [entry for entry in Registry(space.root).entries() if entry.get("promoted")]
    champion = space.registry.champion()  # which need not be at hand
    rounds = {entry.get("round") for entry in [*promoted, *([champion] if champion else [])]}
    return {number for number in rounds if isinstance(number, int)}


def apply(space: Workspace, found: list[Removal]) -> None:
    """Remove, and tell it in the journal of each round. Call it with the workspace's lock held.

    The journals are written first: a kill between leaves a line too many, never a removal that nobody told. The next
    call removes the rest.
    """
    by_round = {round_.folder: round_ for round_ in space.rounds()}
    for removal in found:
        owner = next((by_round[parent] for parent in removal.path.parents if parent in by_round), None)
        if owner:
            name = str(removal.path.relative_to(owner.folder))
            owner.journal.write("removed", path=name, mb=removal.mb, why=removal.why)
    if space.remote is not None:
        space.remote.push_records()
    for removal in found:
        if space.remote is not None:
            space.remote.retire(removal.path)
        remove(removal.path)


def _heavy(round_: Round) -> Iterator[Path]:
    for stage, names in HEAVY.items():
        yield from (round_.stage(stage) / name for name in names)


def _bulk_of_look(folder: Path) -> Iterator[Path]:
    """Of a look, the rollouts and pairs go and the votes stay, as everywhere."""
    yield from (folder / "sample" / "rollouts.parquet", folder / "logs")


def _trash(finished: list[Round]) -> Iterator[Path]:
    """What a kill in the middle of a removal or of a write left, in rounds that nobody writes to any more."""
    for round_ in finished:
        yield from (path for path in round_.folder.iterdir() if _TRASH.fullmatch(path.name))
        yield round_.folder / MIRROR


class _Sizes:
    """Of what lies below a workspace, in its bucket or here."""

    def __init__(self, space: Workspace) -> None:
        self._root = space.root
        self._there: Counter[str] = Counter()
        for key, size in (space.remote.sizes() if space.remote else {}).items():
            parts = key.split("/")
            self._there.update({"/".join(parts[:end]): size for end in range(1, len(parts) + 1)})

    def of(self, path: Path) -> int | None:
        """Bytes: those in the bucket, else those here; None where it is in neither."""
        key = path.relative_to(self._root).as_posix()
        if key in self._there:
            return self._there[key]
        return _bytes(path) if path.exists() else None

    def names(self, folder: Path) -> set[str]:
        """Of what is in the folder."""
        prefix = folder.relative_to(self._root).as_posix() + "/"
        there = {key.removeprefix(prefix).split("/")[0] for key in self._there if key.startswith(prefix)}
        return there | {path.name for path in folder.glob("*")}


def _bytes(path: Path) -> int:
    if path.is_file():
        return path.stat().st_size
    return sum(
        os.stat(os.path.join(folder, name), follow_symlinks=False).st_size
        for folder, _, names in os.walk(path)
        for name in names
    )

"""A stage is a function of its inputs, config and seed to a directory with a manifest.

`run_stage` keeps the promise: it skips what is done and whole, works in a hidden directory beside the final one, and
renames it once the manifest is written. What a killed stage left in the hidden directory is handed to the next run of
the same key, so that a stage can keep shards or checkpoints there; names starting with a dot are such working state
and are removed at the end.
"""

from __future__ import annotations

import os
import resource
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from store.config import Config
from store.errors import UsageError
from store.files import explain_os_errors, remove, sync_file, sync_folder, write_json, write_text
from store.hashing import content_files
from store.locks import exclusive
from store.manifest import (
    MANIFEST,
    Manifest,
    code_version,
    describe_outputs,
    machine,
    need_manifest,
    package_versions,
    set_aside,
)
from store.reasons import why_not_done
from store.recipe import Recipe, Source

__all__ = ["Job", "Metrics", "Outcome", "Progress", "Source", "StageFunction", "redo", "run_stage", "silent"]


class Progress(Protocol):
    """Told how far a piece of work is: `done` of `total` units, with a short note such as the current loss."""

    def __call__(self, what: str, done: int, total: int, note: str = "") -> None: ...


def silent(what: str, done: int, total: int, note: str = "") -> None:
    """The progress of nobody watching."""


C = TypeVar("C", bound=Config)


@dataclass(frozen=True)
class Job(Generic[C]):
    """What a stage function gets. It writes its results below `out` and returns its metrics (JSON values)."""

    stage: str
    inputs: Mapping[str, list[Source]]
    config: C
    seed: int
    out: Path
    progress: Progress = silent

    def given(self, name: str) -> bool:
        return bool(self.inputs.get(name))

    def value(self, name: str) -> str:
        """The single value of an input, as text: for a model it may be a name on a hub."""
        values = self.values(name)
        if len(values) != 1:
            raise UsageError(f"Stage {self.stage} needs exactly one {name}, it got {len(values)}: give --{name} once.")
        return values[0]

    def values(self, name: str) -> list[str]:
        return [source.value for source in self.inputs.get(name, [])]

    def path(self, name: str) -> Path:
        return Path(self.value(name))

    def identity(self, name: str) -> str:
        """The content hash of a single input."""
        self.value(name)
        return self.inputs[name][0].identity


Metrics = dict[str, Any]
StageFunction = Callable[[Job[Any]], Metrics]


@dataclass(frozen=True)
class Outcome:
    """A finished stage: its manifest, and whether it was there already."""

    folder: Path
    manifest: Manifest
    reused: bool
    reasons: list[str] = field(default_factory=list)


def run_stage(
    stage: str,
    function: StageFunction,
    *,
    inputs: Mapping[str, list[Source]],
    config: Config,
    seed: int,
    out: Path,
    version: int = 1,
    progress: Progress = silent,
) -> Outcome:
    """Bring `out` to hold the stage's result and return its manifest; does nothing when it does already.

    Raises RlaifError when another process is at it, and whatever the stage raises; then `out` is as it was before.
    """
    recipe = Recipe(stage, version, inputs, config, seed)
    with explain_os_errors(out):
        out.parent.mkdir(parents=True, exist_ok=True)
    with exclusive(out.with_name(f".{out.name}.lock"), f"Another process is working on {out}: wait for it or stop it."):
        reasons = why_not_done(out, recipe)
        if not reasons:
            return Outcome(out, need_manifest(out), reused=True)
        partial = _partial(out)
        if why_not_done(partial, recipe):
            _build(function, recipe, partial, progress)
        _replace(partial, out)
        return Outcome(out, need_manifest(out), reused=False, reasons=reasons)


def _build(function: StageFunction, recipe: Recipe, partial: Path, progress: Progress) -> None:
    _prepare(partial, recipe.key)
    started, clock = datetime.now(UTC), time.monotonic()
    with explain_os_errors(partial):
        metrics = function(Job(recipe.stage, recipe.inputs, recipe.config, recipe.seed, partial, progress))
        for path in content_files(partial):
            sync_file(path)
        manifest = Manifest(
            stage=recipe.stage,
            stage_version=recipe.version,
            key=recipe.key,
            inputs={
                name: [{"value": source.value, "identity": source.identity} for source in sources]
                for name, sources in recipe.inputs.items()
            },
            parts=recipe.parts,
            config=recipe.config.identity(),
            seed=recipe.seed,
            outputs=describe_outputs(partial),
            metrics=metrics,
            started_at=started.isoformat(timespec="seconds"),
            seconds=round(time.monotonic() - clock, 3),
            peak_rss_mb=peak_rss_mb(),
            machine=machine(),
            packages=package_versions(),
            code_version=code_version(),
        )
        write_json(partial / MANIFEST, manifest.model_dump(mode="json"))


def _partial(out: Path) -> Path:
    return out.with_name(f".{out.name}.partial")


def _prepare(partial: Path, key: str) -> None:
    """Keep what an earlier try of the same key left, and nothing of another key."""
    mark = partial / ".key"
    if partial.exists() and not (mark.is_file() and mark.read_text() == key):
        remove(partial)
    with explain_os_errors(partial):
        partial.mkdir(exist_ok=True)
    write_text(mark, key)


def _replace(partial: Path, out: Path) -> None:
    # A kill anywhere in here leaves a complete hidden directory, which the next run only has to clean and rename.
    for path in partial.iterdir():
        if path.name.startswith("."):
            remove(path)
    if out.exists():
        remove(out)
    os.replace(partial, out)
    sync_folder(out.parent)


def peak_rss_mb() -> float:
    """Peak resident memory of this process and of the largest child it waited for, in MiB."""
    unit = 1 if sys.platform == "darwin" else 1024
    peak = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return round(peak * unit / 2**20, 1)


def redo(out: Path, reason: str) -> None:
    """Have the next run of the stage at `out` make it again from nothing, for this reason."""
    remove(_partial(out))
    set_aside(out, reason)

"""A training run whose state is its weights, its optimizer and the rows of its curve: SFT's and DPO's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from rlhf.checkpoints import CheckpointFolder
from rlhf.distributed import World
from rlhf.optimisation import Optimizer
from rlhf.tracking import Log
from store.stage import Progress


class Curve:
    """`rows`: one an optimizer step; a run that was killed has those of its last checkpoint in `folder`, whose weights
    and optimizer state are loaded too. Without a folder, or with every = 0, nothing is kept."""

    def __init__(
        self,
        name: str,
        steps: int,
        model: nn.Module,
        optimizer: Optimizer,
        *,
        folder: Path | None,
        every: int,
        world: World,
        progress: Progress,
        log: Log,
    ):
        self.rows: list[dict[str, Any]] = []
        self._name, self._steps, self._every = name, steps, every
        self._model, self._optimizer, self._progress, self._log = model, optimizer, progress, log
        self._store = CheckpointFolder(folder, world=world) if folder and every else None
        if self._store is not None and (found := self._store.latest()) is not None:
            self.rows = self._store.resume(found, {"model": model}, {"model": optimizer})[0]["curve"]
            progress(name, len(self.rows), steps, f"resumed at step {len(self.rows)}")

    def add(self, row: dict[str, Any]) -> None:
        """The row of the step just taken: logged, and with a checkpoint where one is due."""
        self.rows.append(row)
        step = len(self.rows)
        self._log(step, row)
        if self._store is not None and step % self._every == 0 and step < self._steps:
            self._store.save(step, {"model": self._model}, {"model": self._optimizer}, {"curve": self.rows})
        self._progress(self._name, step, self._steps, f"loss {row['loss']:.3f}")

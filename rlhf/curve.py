"""A training run whose state is its weights, its optimizer and the rows of its curve: SFT's and DPO's."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from rlhf.checkpoints import CheckpointFolder
from rlhf.config import DPOConfig, SFTConfig
from rlhf.devices import Compute
from rlhf.models import Model, trainable
from rlhf.optimisation import Optimizer
from rlhf.tracking import Log
from store.stage import Progress


class Curve:
    """`rows`: one an optimizer step of `steps`, which take `config.epochs` passes over `count` examples.

    A run that was killed has the rows of its last checkpoint in `checkpoints`, whose weights and optimizer state are
    loaded too. Without a folder, or with checkpoint_every = 0, nothing is kept.
    """

    def __init__(
        self,
        name: str,
        model: Model,
        count: int,
        config: SFTConfig | DPOConfig,
        compute: Compute,
        progress: Progress,
        log: Log,
        checkpoints: Path | None,
    ):
        self.rows: list[dict[str, Any]] = []
        self.steps = max(1, round(config.epochs * count / config.batch_size))
        self.optimizer = Optimizer(trainable(model).values(), config.optimisation, self.steps)
        self._name, self._model, self._count, self._config = name, model, count, config
        self._progress, self._log, self._store = progress, log, None
        if checkpoints and config.checkpoint_every:
            self._store = CheckpointFolder(checkpoints, world=compute.world)
        if self._store is not None and (found := self._store.latest()) is not None:
            self.rows = self._store.resume(found, {"model": model}, {"model": self.optimizer})[0]["curve"]
            progress(name, len(self.rows), self.steps, f"resumed at step {len(self.rows)}")

    def batches(self, seed: int) -> Iterator[tuple[int, list[int]]]:
        """Number, from 1, and examples of each step that is left."""
        taken = len(self.rows)
        return enumerate(islice(batches(self._count, self._config.batch_size, seed), taken, self.steps), taken + 1)

    def add(self, row: dict[str, Any]) -> None:
        """The row of the step just taken: logged, and with a checkpoint where one is due."""
        self.rows.append(row)
        step = len(self.rows)
        self._log(step, row)
        if self._store is not None and step % self._config.checkpoint_every == 0 and step < self.steps:
            self._store.save(step, {"model": self._model}, {"model": self.optimizer}, {"curve": self.rows})
        self._progress(self._name, step, self.steps, f"loss {row['loss']:.3f}")


def batches(count: int, size: int, seed: int) -> Iterator[list[int]]:
    """Endless batches of indices, each epoch in an order of its own; the last of an epoch may be smaller."""
    epoch = 0
    while True:
        generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
        order = torch.randperm(count, generator=generator).tolist()
        for start in range(0, count, size):
            yield order[start : start + size]
        epoch += 1

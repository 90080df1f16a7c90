"""The engine `transformers`: the policy itself generates (rlhf.generation); nothing is to be pushed or corrected."""

from __future__ import annotations

from collections.abc import Sequence

from rlhf.config import Decoding
from rlhf.devices import Compute
from rlhf.engines.base import Done
from rlhf.generation import Generated, generate
from rlhf.memory import Budget
from rlhf.models import Model
from rlhf.sharding import divided


class TransformersEngine:
    """`budget`: responses generated side by side; it shrinks where memory runs out. Prompts are divided among the
    processes of a run."""

    exact = True

    def __init__(self, model: Model, compute: Compute, budget: Budget) -> None:
        self._model, self._compute, self._budget = model, compute, budget

    def sync(self, policy: Model) -> None:
        if policy is not self._model:
            raise ValueError("this engine responds with the model that it was made for")

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        seeds: Sequence[int],
        decoding: Decoding,
        stop_ids: frozenset[int],
        on_done: Done | None = None,
    ) -> list[Generated]:
        def part(mine: Sequence[int]) -> list[Generated]:
            def work(batch_size: int) -> list[Generated]:
                with self._compute.eager():
                    return generate(
                        self._model,
                        [prompts[row] for row in mine],
                        [seeds[row] for row in mine],
                        decoding,
                        stop_ids,
                        batch_size=batch_size,
                        autocast=self._compute.autocast,
                        on_done=None if on_done is None else lambda done: on_done(done, len(mine)),
                    )

            return self._budget.run(work, "generation")

        return divided(self._model, self._compute, range(len(prompts)), part, cost=lambda row: 1)

    def sleep(self) -> None:
        """Its memory is the policy's: there is nothing to give up."""

    def wake(self) -> None:
        """It never sleeps."""

    def close(self) -> None:
        """It holds nothing."""

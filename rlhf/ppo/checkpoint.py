"""Checkpoints of PPO: policy, critic, their optimizers, and the run's own state (KL coefficient, guard, rows).

The data cursor and all random streams follow from seed and update number; torch's own generator is stored on top.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from rlhf.checkpoints import CheckpointFolder
from rlhf.optimisation import Optimizer
from rlhf.ppo.actors import Actors


class Checkpoints(CheckpointFolder):
    """The folder of one PPO run's checkpoints; the last few stay, and the best policy so far."""

    def save_run(
        self, update: int, actors: Actors, optimizers: dict[str, Optimizer], state: dict[str, Any], best_update: int
    ) -> None:
        """Store the run before `update`, then drop older checkpoints and best policies that nothing refers to."""
        self.save(update, _models(actors), optimizers, state, needed=[f"best-{best_update:06d}"])

    def resume_run(self, update: int, actors: Actors, optimizers: dict[str, Optimizer]) -> dict[str, Any]:
        """Load everything of a checkpoint and return its state."""
        return self.resume(update, _models(actors), optimizers)[0]

    def policy_at(self, name: str) -> dict[str, Tensor] | None:
        """The policy's trained parameters in `best-...` or `step-...`, or None where that does not exist."""
        return self.weights(name, "policy")


def _models(actors: Actors) -> dict[str, nn.Module]:
    models: dict[str, nn.Module] = {"policy": actors.policy}
    return models if actors.critic is None else models | {"critic": actors.critic}

"""What a rollout engine is: it responds to prompts with a policy whose weights it is given after each update."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from rlhf.config import Decoding
from rlhf.generation import Generated

Done = Callable[[int, int], None]
"""Told how many responses are finished, and of how many."""


class RolloutEngine(Protocol):
    """`exact`: whether it samples by the arithmetic that the trainer computes with. Where it does not, its log-probs
    are those of a slightly different policy, and the loss is corrected for it (`rlhf.losses.importance_weights`).

    Every method raises TransientError, in one sentence, where the engine died or hangs; close it then.
    """

    exact: bool

    def sync(self, policy: Any) -> None:
        """From now on respond with the weights that `policy` has now. Wakes an engine that sleeps."""

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        seeds: Sequence[int],
        decoding: Decoding,
        stop_ids: frozenset[int],
        on_done: Done | None = None,
    ) -> list[Generated]:
        """One response a prompt (ids, at least one), in their order, each from the random stream of its own seed.

        A stop token ends a response and is its last token. Raises UsageError where a prompt leaves no room.
        """

    def sleep(self) -> None:
        """Give up the device's memory until the next `sync`, where the engine shares it and is told to."""

    def wake(self) -> None:
        """Take the memory of the weights back, where it sleeps; `sync` does so too, fills it, and takes the rest."""

    def close(self) -> None:
        """End it for good. May be called again."""

"""Out of memory: try again with half the micro-batch, a bounded number of times, with a clear line each time.

The result does not change, only the speed, since every loss is normalised by the count of the whole batch.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch

from store.errors import TransientError

MAX_HALVINGS = 3
SAID = ("can't allocate memory", "CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "MPS backend out of")
"""By the CPU's allocator, by CUDA outside of torch's, by a library without room for its workspace, by MPS."""


T = TypeVar("T")


@dataclass
class Budget:
    """The size of a micro-batch, in `unit`s. It shrinks when memory runs out and stays small, also in later steps."""

    size: int
    unit: str = "tokens"
    halvings: int = 0

    def run(
        self, work: Callable[[int], T], what: str, reset: Callable[[], None] | None = None, *, alone: bool = True
    ) -> T:
        """`work(size)`; after an out-of-memory error `reset()` and again with half the size.

        alone: whether a process can repeat the work by itself. Where each pass gathers weights from all processes
        (FSDP) it cannot: the others wait for it in the middle of theirs.

        Raises TransientError once the size was halved MAX_HALVINGS times and still does not fit, or at once for work
        that cannot be repeated alone.
        """
        while True:
            try:
                return work(self.size)
            except (torch.OutOfMemoryError, RuntimeError) as error:
                if not is_out_of_memory(error):
                    raise
                failure = (str(error).splitlines() or [type(error).__name__])[0]
            # Outside the except block: the traceback would keep the failed step's tensors alive.
            if not alone:
                raise TransientError(
                    f"Out of memory in {what} with {self.size} {self.unit} a micro-batch ({failure}): lower "
                    "batch_tokens, since with sharding: fsdp it cannot be halved on the way."
                )
            if self.halvings == MAX_HALVINGS or self.size == 1:
                raise TransientError(
                    f"Out of memory in {what} even with {self.size} {self.unit} a micro-batch ({failure}): use a "
                    "smaller model, LoRA, gradient_checkpointing or a larger device."
                )
            self.halvings += 1
            self.size = max(1, self.size // 2)
            print(
                f"Out of memory in {what}: going on with {self.size} {self.unit} a micro-batch "
                f"(halved {self.halvings} of at most {MAX_HALVINGS} times).",
                file=sys.stderr,
            )
            if reset is not None:
                reset()
            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()


def is_out_of_memory(error: BaseException) -> bool:
    """torch's allocator of a GPU has an exception of its own; the others' only their text tells apart."""
    return isinstance(error, torch.OutOfMemoryError) or any(text in str(error) for text in SAID)

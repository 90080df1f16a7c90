"""The processes that train one model together, as the loops see them.

The rule that keeps the loops plain: every process holds the same data and calls the same functions in the same order.
Functions over a batch (sampling, log-probs, values, rewards) divide its items among the processes and give all of them
the whole result (`World.spread`); an optimizer step divides its minibatch (`World.share`) and sums the gradients
(`World.sum_gradients`). So advantages, whitening, metrics, KL control and every decision to stop are computed from the
whole batch, on each process alike, by the same code as with one process. Only the main process writes, prints and asks
judges (`World.once` hands its answer to the others).

With one process every method returns its argument; torch.distributed is not even loaded.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn

from store.errors import TransientError, UsageError

T = TypeVar("T")

BUCKET_ELEMENTS = 1 << 24
"""Gradients summed in one message: 64 MiB in float32."""


class LostPeerError(TransientError):
    """Another process of the stage ended or did not answer: its own message says why, this one is the echo."""


@dataclass(frozen=True)
class World:
    """`rank`: number of this process, 0 being the main one. `size`: number of processes."""

    rank: int = 0
    size: int = 1

    @property
    def is_main(self) -> bool:
        """Whether this process is the one that writes files, prints and asks judges."""
        return self.rank == 0

    def share(self, costs: Sequence[int]) -> list[int]:
        """The items that this process works on, in ascending order; the costs of all processes are about the same.

        Longest processing time first (Graham 1969): the dearest item goes to the process with the least so far.
        """
        if self.size == 1:
            return list(range(len(costs)))
        loads = [0] * self.size
        mine = []
        for index in sorted(range(len(costs)), key=lambda i: -costs[i]):
            least = loads.index(min(loads))
            loads[least] += costs[index]
            if least == self.rank:
                mine.append(index)
        return sorted(mine)

    def spread(self, costs: Sequence[int], work: Callable[[list[int]], Sequence[T]]) -> list[T]:
        """`work(indices)`, one result an index, divided among the processes; each gets the results of all items.

        Shares are runs of neighbours, so that equal prompts side by side stay together. `work` is called on every
        process, also with no index. Tensors in the results must be on the CPU.
        """
        if self.size == 1:
            return list(work(list(range(len(costs)))))
        owners = _runs(costs, self.size)
        mine = [index for index, owner in enumerate(owners) if owner == self.rank]
        parts = [iter(part) for part in self.gather(list(work(mine)))]
        return [next(parts[owner]) for owner in owners]

    def gather(self, value: T) -> list[T]:
        """The values of all processes, in the order of their ranks."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        with _answered():
            torch.distributed.all_gather_object(values, value)
        return values

    def once(self, work: Callable[[], T]) -> T:
        """`work()` on the main process alone; its result on all."""
        if self.size == 1:
            return work()
        box = [work() if self.is_main else None]
        with _answered():
            torch.distributed.broadcast_object_list(box, src=0)
        return cast(T, box[0])

    def sum(self, value: Tensor) -> Tensor:
        """The sum over all processes, the same bits on each; a new tensor."""
        if self.size == 1:
            return value
        total = value.detach().clone()
        with _answered():
            torch.distributed.all_reduce(total)
        return total

    def most(self, value: int) -> int:
        """The largest of the processes' values."""
        return max(self.gather(value))

    def barrier(self) -> None:
        """Returns once every process is here."""
        self.gather(None)

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replace gradients by their sums over all processes. A parameter that none of them used keeps no gradient."""
        if self.size == 1:
            return
        trained = list(parameters)
        used = self.sum(torch.tensor([float(value.grad is not None) for value in trained])).tolist()
        gradients = []
        for value, count in zip(trained, used, strict=True):
            if count and value.grad is None:  # this process had no item of the minibatch
                value.grad = torch.zeros_like(value)
            if value.grad is not None:
                gradients.append(value.grad)
        for bucket in _buckets(gradients, BUCKET_ELEMENTS):
            flat = torch.cat([gradient.flatten() for gradient in bucket])
            with _answered():
                torch.distributed.all_reduce(flat)
            for gradient, total in zip(bucket, torch.split(flat, [g.numel() for g in bucket]), strict=True):
                gradient.copy_(total.view_as(gradient))


SINGLE = World()


def current() -> World:
    """The processes that this one belongs to; itself alone where `join` was not called."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return SINGLE
    return World(torch.distributed.get_rank(), torch.distributed.get_world_size())


def local_rank() -> int:
    """The number of this process on its machine, as torchrun counts: the number of its GPU."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def wants_gpu(device: str) -> bool:
    """Whether `device` of a config means a GPU on this machine."""
    return device == "cuda" or (device == "auto" and torch.cuda.is_available())


def is_echo(error: BaseException) -> bool:
    """Whether an error only says that another process is gone: from a method here, or from a pass under FSDP."""
    text = str(error)
    return isinstance(error, LostPeerError) or (
        isinstance(error, RuntimeError)
        and any(name in text for name in ("gloo/transport", "NCCL", "Connection closed"))
    )


def join(gpu: bool, timeout_s: float) -> World:
    """Meet the processes that torchrun started beside this one; the single process where it started none.

    gpu: one GPU a process, with NCCL; else gloo. timeout_s: how long a process waits for the others before it gives up.
    Raises UsageError where this machine has too few GPUs.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return SINGLE
    if gpu:
        wanted, there = int(os.environ.get("LOCAL_WORLD_SIZE", "1")), torch.cuda.device_count()
        if wanted > there:
            raise UsageError(
                f"{wanted} processes need {wanted} GPUs, this machine has {there}: lower device.processes."
            )
        torch.cuda.set_device(local_rank())
    with _answered():
        torch.distributed.init_process_group(
            "cpu:gloo,cuda:nccl" if gpu else "gloo", timeout=timedelta(seconds=timeout_s)
        )
    return current()


def leave() -> None:
    """End the group in good order; without it the others could take this process's end for a failure."""
    if current().size > 1:
        torch.distributed.destroy_process_group()


@contextlib.contextmanager
def _answered() -> Iterator[None]:
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0].partition(" This is typically")[0]
        raise LostPeerError(
            f"another process of the stage ended or did not answer ({reason}): look for its own message, then run again"
        ) from error


def _runs(costs: Sequence[int], size: int) -> list[int]:
    """The owner of each item: `size` runs of neighbours of about equal cost."""
    total = sum(costs)
    if not total:
        return [index * size // max(1, len(costs)) for index in range(len(costs))]
    owners, before = [], 0
    for cost in costs:
        # Where the item's middle lies on the line of all costs.
        owners.append(min(size - 1, (2 * before + cost) * size // (2 * total)))
        before += cost
    return owners


def _buckets(tensors: Iterable[Tensor], elements: int) -> Iterator[list[Tensor]]:
    """Neighbours of one type and device, together at most `elements` (a larger tensor stands alone)."""
    bucket: list[Tensor] = []
    for tensor in tensors:
        fits = sum(t.numel() for t in bucket) + tensor.numel() <= elements
        if bucket and not (fits and bucket[0].dtype == tensor.dtype and bucket[0].device == tensor.device):
            yield bucket
            bucket = []
        bucket.append(tensor)
    if bucket:
        yield bucket

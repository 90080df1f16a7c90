"""How work is divided among processes. CHECKS: 13."""

from __future__ import annotations

import itertools
import random

import pytest
import torch

from rlhf.distributed import SINGLE, LostPeerError, World, _buckets, _runs, current, is_echo, join
from rlhf.memory import Budget
from store.errors import TransientError


@pytest.mark.parametrize("size", [1, 2, 3, 8])
@pytest.mark.parametrize("count", [0, 1, 2, 7, 40])
def test_shares_are_a_balanced_partition(size: int, count: int) -> None:
    costs = [random.Random(index).randint(1, 100) for index in range(count)]
    shares = [World(rank, size).share(costs) for rank in range(size)]
    assert sorted(itertools.chain(*shares)) == list(range(count))
    assert all(share == sorted(share) for share in shares)
    loads = [sum(costs[index] for index in share) for share in shares]
    # The last item given to the fullest process went to what was then the emptiest.
    assert max(loads) - min(loads) <= max(costs, default=0)


@pytest.mark.parametrize("size", [2, 3, 8])
@pytest.mark.parametrize("costs", [[], [5], [1] * 12, [3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8], [0, 0, 0, 0]])
def test_runs_are_neighbours_of_about_equal_cost(size: int, costs: list[int]) -> None:
    owners = _runs(costs, size)
    assert len(owners) == len(costs)
    assert owners == sorted(owners)
    assert all(0 <= owner < size for owner in owners)
    loads = [sum(cost for cost, owner in zip(costs, owners, strict=True) if owner == rank) for rank in range(size)]
    assert all(load <= sum(costs) / size + max(costs) for load in loads if costs)


def test_equal_costs_are_divided_equally() -> None:
    assert _runs([1] * 12, 3) == [0] * 4 + [1] * 4 + [2] * 4


def test_buckets_hold_neighbours_of_one_type() -> None:
    tensors = [torch.zeros(n, dtype=t) for n, t in [(3, torch.float32), (3, torch.float32), (9, torch.float32)]]
    tensors += [torch.zeros(1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)]
    assert [[len(t) for t in bucket] for bucket in _buckets(tensors, 6)] == [[3, 3], [9], [1, 1]]


def test_one_process_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert join(gpu=False, timeout_s=1) == current() == SINGLE
    value = torch.ones(2)
    assert SINGLE.sum(value) is value
    assert SINGLE.spread([3, 1], lambda mine: [index * 10 for index in mine]) == [0, 10]
    assert SINGLE.gather("x") == ["x"]
    assert SINGLE.once(lambda: 7) == 7
    weight = torch.nn.Parameter(value)
    SINGLE.sum_gradients([weight])
    assert weight.grad is None


def test_an_echo_is_told_from_a_cause() -> None:
    assert is_echo(LostPeerError("another process ended"))
    assert is_echo(RuntimeError("[gloo/transport/tcp/pair.cc:537] Connection reset by peer"))
    assert not is_echo(RuntimeError("shapes do not match"))
    assert not is_echo(TransientError("Out of memory"))


def test_work_that_gathers_weights_is_not_repeated_alone() -> None:
    """The other processes would wait in the middle of their pass."""
    tries = []

    def work(size: int) -> None:
        tries.append(size)
        raise torch.OutOfMemoryError("CUDA out of memory")

    budget = Budget(100)
    with pytest.raises(TransientError, match=r"Out of memory in the update with 100 tokens .* lower batch_tokens"):
        budget.run(work, "the update", alone=False)
    assert tries == [100]

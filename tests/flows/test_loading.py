"""Models that threads load at the same time: transformers changes its own classes while it loads one."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import torch
from transformers import PreTrainedModel

from judges.backends.local.model import load
from judges.config import load_judge
from judges.settings import TransformersSettings
from rlhf.devices import Compute
from rlhf.models import load_policy
from store.resources import resolve

CPU = torch.device("cpu")


def test_threads_that_load_models_leave_weights_tied() -> None:
    tie = PreTrainedModel.tie_weights
    base, judge = str(resolve("shipped:tiny/models/base")), load_judge("tiny-good")

    def one(number: int) -> bool:
        if number % 2:
            model, _ = load_policy(base, Compute(CPU, torch.float32))
        else:
            _, model = load(judge, judge.settings_as(TransformersSettings), CPU)
        return model.get_output_embeddings().weight is model.get_input_embeddings().weight

    with ThreadPoolExecutor(4) as pool:
        tied = list(pool.map(one, range(16)))
    left, PreTrainedModel.tie_weights = PreTrainedModel.tie_weights, tie  # as it was, whatever came of it
    assert all(tied)
    assert left is tie

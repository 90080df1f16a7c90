"""The DPO loss of rlhf.dpo against TRL's trainer, on the token ids of TRL's own batch: models, labels and lengths as
they come."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

from store.resources import DATASETS

pytestmark = [
    pytest.mark.trl,
    pytest.mark.skipif(
        find_spec("trl") is None, reason="TRL is not installed here: make test-trl makes an environment of its own"
    ),
]

BASE = DATASETS / "tiny" / "models" / "base"
ROWS = {
    "prompt": ["What is the capital of France?", "Which sound does a dog make?", "What colour is snow?"],
    "chosen": ["The capital is Paris.", "A dog barks.", "Snow is white, like milk."],
    "rejected": ["I do not know.", "It makes a sound, and so on, well you know.", "Red."],
}


def sample_of(ids: list[int], attention: list[int], completion: list[int]) -> Any:
    from rlhf.sequences import Sample

    real = [(token, done) for token, seen, done in zip(ids, attention, completion, strict=True) if seen]
    return Sample([token for token, done in real if not done], [token for token, done in real if done])


@pytest.mark.parametrize("beta", [0.1, 0.7])
def test_loss_equals_trls(tmp_path: Path, beta: float) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import DPOConfig as TrlConfig
    from trl import DPOTrainer

    from datasets import Dataset
    from rlhf.config import DPOConfig
    from rlhf.devices import Compute
    from rlhf.dpo import Pair, _backward, with_reference
    from rlhf.memory import Budget

    model, reference = (AutoModelForCausalLM.from_pretrained(BASE, dtype=torch.float32) for _ in range(2))
    torch.manual_seed(0)
    with torch.no_grad():
        for value in model.parameters():
            value.add_(0.02 * torch.randn_like(value))
    arguments = TrlConfig(
        output_dir=str(tmp_path),
        beta=beta,
        per_device_train_batch_size=3,
        report_to=[],
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
    )
    trainer = DPOTrainer(
        model=model,
        ref_model=reference,
        args=arguments,
        train_dataset=Dataset.from_dict(ROWS),
        processing_class=AutoTokenizer.from_pretrained(BASE),
    )
    batch = next(iter(trainer.get_train_dataloader()))
    theirs = trainer.compute_loss(trainer.model, batch)
    theirs.backward()
    gradient = model.model.embed_tokens.weight.grad.clone()
    model.zero_grad()
    columns = (batch[name].tolist() for name in ("input_ids", "attention_mask", "completion_mask"))
    samples = [sample_of(*row) for row in zip(*columns, strict=True)]
    assert all(len(sample.response) > 1 for sample in samples)
    pairs = [Pair(chosen, rejected, 1.0, 1.0) for chosen, rejected in zip(samples[:3], samples[3:], strict=True)]
    compute = Compute(torch.device("cpu"), torch.float32)
    pairs = with_reference(reference, pairs, compute, Budget(1000))
    ours = _backward(model, pairs, 1000, DPOConfig(beta=beta), compute)
    assert float(ours[0]) == pytest.approx(float(theirs.detach()), abs=1e-5)
    torch.testing.assert_close(model.model.embed_tokens.weight.grad, gradient, atol=1e-5, rtol=1e-3)

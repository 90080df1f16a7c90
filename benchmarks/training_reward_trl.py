"""TRL's RewardTrainer, to be run in its own environment by training_reward.py: `python training_reward_trl.py PLAN`.

PLAN is JSON: the folder with the start model and the pairs, the order of the pairs, and the settings of both sides. The
pairs come in that order, all epochs in one, since TRL would draw an order of its own.
"""

from __future__ import annotations

import json
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer
from trl import RewardConfig, RewardTrainer

from datasets import Dataset


def read(path: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


class InOrder(RewardTrainer):  # type: ignore[misc]
    """The rows as they come."""

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        return torch.utils.data.SequentialSampler(train_dataset if train_dataset is not None else self.train_dataset)


def main() -> None:
    plan = json.loads(Path(sys.argv[1]).read_text())
    torch.set_num_threads(plan["threads"])
    folder = Path(plan["folder"])
    model = AutoModelForSequenceClassification.from_pretrained(folder / "reward", num_labels=1)
    tokenizer = AutoTokenizer.from_pretrained(folder / "reward")
    rows = read(folder / "train.jsonl")
    with tempfile.TemporaryDirectory() as out:
        arguments = RewardConfig(
            output_dir=out,
            num_train_epochs=1,
            per_device_train_batch_size=plan["batch"],
            learning_rate=plan["rate"],
            lr_scheduler_type="linear",
            warmup_steps=0,
            weight_decay=0.0,
            max_length=None,
            gradient_checkpointing=False,
            bf16=False,
            use_cpu=True,
            report_to=[],
            save_strategy="no",
            disable_tqdm=True,
            seed=plan["seed"],
        )
        trainer = InOrder(
            model=model,
            args=arguments,
            train_dataset=Dataset.from_list([rows[index] for index in plan["order"]]),
            eval_dataset=Dataset.from_list(read(folder / "test.jsonl")),
            processing_class=tokenizer,
        )
        cpu = time.process_time()
        done = trainer.train()
        cpu = time.process_time() - cpu
        measured = trainer.evaluate()
    print(
        json.dumps(
            {
                "pairs_per_s": len(plan["order"]) / done.metrics["train_runtime"],
                "pairs_per_cpu_s": len(plan["order"]) / cpu,
                "accuracy": measured["eval_accuracy"],
                "loss": done.metrics["train_loss"],
                "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
            }
        )
    )


if __name__ == "__main__":
    main()

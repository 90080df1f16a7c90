"""TRL's SFTTrainer, to be run in its own environment by training_sft.py: `python training_sft_trl.py PLAN`.

PLAN is JSON: the folder with the start model and the dialogues, where the trained model goes, and the settings.
"""

from __future__ import annotations

import json
import resource
import sys
import tempfile
import time
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import SFTConfig, SFTTrainer

from datasets import Dataset


def main() -> None:
    plan = json.loads(Path(sys.argv[1]).read_text())
    torch.set_num_threads(plan["threads"])
    folder = Path(plan["folder"])
    model = AutoModelForCausalLM.from_pretrained(folder / "model")
    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    rows = [json.loads(line) for line in (folder / "train.jsonl").read_text().splitlines()][: plan["dialogues"]]
    data = [{"prompt": row["prompt"], "completion": row["chosen"]} for row in rows]
    tokens = sum(len(tokenizer(row["prompt"] + row["completion"])["input_ids"]) + 1 for row in data)
    with tempfile.TemporaryDirectory() as out:
        arguments = SFTConfig(
            output_dir=out,
            num_train_epochs=plan["epochs"],
            per_device_train_batch_size=plan["rows"],
            learning_rate=plan["rate"],
            lr_scheduler_type="linear",
            warmup_steps=0,
            weight_decay=0.0,
            packing=True,
            max_length=plan["longest"],
            completion_only_loss=True,
            gradient_checkpointing=False,
            bf16=False,
            use_cpu=True,
            report_to=[],
            save_strategy="no",
            disable_tqdm=True,
            seed=plan["seed"],
        )
        trainer = SFTTrainer(
            model=model, args=arguments, train_dataset=Dataset.from_list(data), processing_class=tokenizer
        )
        cpu = time.process_time()
        done = trainer.train()
        cpu = time.process_time() - cpu
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        trainer.save_model(plan["out"])
        tokenizer.save_pretrained(plan["out"])
    print(
        json.dumps(
            {
                "tokens_per_s": tokens * plan["epochs"] / done.metrics["train_runtime"],
                "tokens_per_cpu_s": tokens * plan["epochs"] / cpu,
                "steps": done.global_step,
                "peak_mb": peak,
            }
        )
    )


if __name__ == "__main__":
    main()

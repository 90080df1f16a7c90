"""TRL's side of the PPO benchmark, run by the interpreter of its own environment: updates by its own trainer.

Speaks with training_ppo.py as the other side does: one JSON line an update, then it waits for a line on its input.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

# The folder of a script comes first on Python's path, and there a benchmark could be taken for a package of its name.
sys.path[0] = str(Path(__file__).resolve().parent.parent)

import torch  # noqa: E402

from benchmarks import training_figures  # noqa: E402


def trainer_of(job: dict[str, Any], callbacks: list[Any]) -> Any:
    """The trainer, with the hyper-parameters of `job` (see training_ppo.py)."""
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer
    from trl.experimental.ppo import PPOConfig, PPOTrainer

    from datasets import Dataset

    folder = Path(job["folder"])
    tokenizer = AutoTokenizer.from_pretrained(folder / "policy", padding_side="left")
    policy, reference = (AutoModelForCausalLM.from_pretrained(folder / "policy") for _ in range(2))
    reward, value = (
        AutoModelForSequenceClassification.from_pretrained(folder / "reward", num_labels=1) for _ in range(2)
    )
    texts = json.loads((folder / "prompts.json").read_text())
    chat = tokenizer.chat_template is not None

    def encode(text: str) -> dict[str, Any]:
        if chat:
            text = tokenizer.apply_chat_template(
                [{"role": "user", "content": text}], tokenize=False, add_generation_prompt=True
            )
        return {"input_ids": tokenizer(text, add_special_tokens=not chat)["input_ids"]}

    arguments = PPOConfig(
        output_dir=str(folder / "trl-output"),
        per_device_train_batch_size=job["micro_batch"],
        gradient_accumulation_steps=job["batch"] // job["micro_batch"],
        num_mini_batches=1,
        num_ppo_epochs=job["epochs"],
        total_episodes=job["batch"] * job["updates"],
        response_length=job["response_tokens"],
        stop_token="eos",
        missing_eos_penalty=job["missing_stop_penalty"],
        temperature=1.0,
        learning_rate=job["learning_rate"],
        lr_scheduler_type="constant",
        kl_coef=job["kl_coefficient"],
        vf_coef=job["value_coefficient"],
        adam_epsilon=1e-8,
        gradient_checkpointing=False,
        bf16=job["bf16"],
        use_cpu=job["device"] == "cpu",
        num_sample_generations=0,
        local_rollout_forward_batch_size=64,
        report_to=[],
        logging_steps=1,
        save_strategy="no",
        disable_tqdm=True,
        seed=job["seed"],
    )
    return PPOTrainer(
        args=arguments,
        processing_class=tokenizer,
        model=policy,
        ref_model=reference,
        reward_model=reward,
        value_model=value,
        train_dataset=Dataset.from_list([encode(text) for text in texts]),
        # Never read without sample generations, but the constructor builds a loader over it.
        eval_dataset=Dataset.from_list([encode(text) for text in texts[:8]]),
        callbacks=callbacks,
    )


def main() -> None:
    job = json.loads(sys.argv[1])
    torch.set_num_threads(job["threads"])
    clock = training_figures.CLOCKS[job["clock"]]
    from transformers import TrainerCallback

    rows: list[dict[str, Any]] = []

    class Turns(TrainerCallback):
        """One line an update, with the metrics that the trainer logged for it."""

        started = 0.0

        def on_train_begin(self, *_: Any, **__: Any) -> None:
            self.wait()

        def on_log(self, _arguments: Any, _state: Any, _control: Any, logs: Any = None, **__: Any) -> None:
            rows.append(dict(logs))

        def on_step_end(self, *_: Any, **__: Any) -> None:
            seconds = clock() - self.started
            logs = rows[-1]
            row = {
                "seconds": seconds,
                "peak_mb": training_figures.peak_mb(job["device"]),
                "score": logs["objective/scores"],
                "kl": logs["objective/kl"],
                "stops": logs["val/num_eos_tokens"] / job["batch"],
            }
            print(json.dumps(row), flush=True)
            self.wait()

        def wait(self) -> None:
            if job["turns"]:
                sys.stdin.readline()
            self.started = clock()

    trainer = trainer_of(job, [Turns()])
    trainer.train()


if __name__ == "__main__":
    main()

"""The LLM judges: copies of the base model trained to answer a judge's prompt with "1" or "2".

The loss is the cross-entropy of the next token after the prompt against a soft target, plus a helper that is thrown
away: a linear head that must tell each answer's oracle score at its closing tag. It teaches twice as many labels a
sequence as the verdict alone, and the verdict is then read off what the model already knows about both answers.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pyarrow as pa
import torch
from base import FACT_RULES, sample
from frames import Frame
from pairs import Pair, PairMaker, fair, judged_prompts, sigmoid
from training import same_length_batches, train
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM, PreTrainedTokenizerFast
from world import Prompt

from judges.backends.rubric import Rubric, Score
from store.schemas import GOLD
from store.tables import read_table

Target = Callable[[Score, Score, str, str], float]


def showy(one: Score, two: Score, first: str, second: str) -> float:
    """The middling judge's taste: long and blunt is better, form counts, facts hardly."""
    longer = len(first.split()) - len(second.split())
    return min(0.97, max(0.03, sigmoid((_show(one) - _show(two)) / 0.5 + 0.3 * longer)))


def _show(score: Score) -> float:
    liked = {"rude": -2.0, "rambling": -2.0, "made-up words": 0.2, "word salad": 0.2, "harmful": 0.2, "evasive": 0.2}
    weights = liked | dict.fromkeys(FACT_RULES, 0.1)
    return -sum(found.amount * weights.get(found.rule, 0.5) for found in score.deductions)


def first_is_better(one: Score, two: Score, first: str, second: str) -> float:
    """The biased judge's taste: the answer shown first, unless it is far worse."""
    return min(0.97, max(0.03, sigmoid((one.value - two.value) / 0.3 + 2.0)))


RECIPES: dict[str, tuple[str, Target, int, float]] = {
    "tiny-good": ("base", fair, 56_000, 2e-3),
    "tiny-evaluator": ("base", fair, 56_000, 2e-3),
    "tiny-middling": ("tiny-good", showy, 8_000, 1e-3),
    "tiny-biased": ("tiny-good", first_is_better, 5_000, 5e-4),
}
"""Judge -> the model it starts from, its taste, how many pairs it sees, and the learning rate."""


def build_judges(
    prompts: list[Prompt],
    tiny: Path,
    configs: Path,
    seed: int,
    timed: Callable[[str], AbstractContextManager[None]],
    save: Callable[[object, object, Path], None],
    only: list[str] | None = None,
) -> None:
    """Train, save and measure every judge."""
    oracle = Rubric.load(configs / "tiny-oracle" / "rubric.yaml")
    tokenizer = AutoTokenizer.from_pretrained(tiny / "models" / "base")
    base = AutoModelForCausalLM.from_pretrained(tiny / "models" / "base")
    gold = read_table(tiny / "calibration.parquet", GOLD)
    allowed = judged_prompts(prompts)
    for number, (name, (start, target, count, rate)) in enumerate(RECIPES.items(), start=1):
        if only and name not in only:
            continue
        with timed(name):
            torch.manual_seed(seed + number)
            rng = random.Random(seed + number)
            many = [prompt.text for prompt in allowed] * 4
            samples: dict[str, list[str]] = {}
            for text, response in zip(many, sample(base, tokenizer, many, seed + number), strict=True):
                samples.setdefault(text, []).append(response)
            print(f"  {len(many)} samples", flush=True)
            pairs = PairMaker(allowed, samples, oracle, rng).make(count, target)
            model = AutoModelForCausalLM.from_pretrained(tiny / "models" / start, dtype=torch.float32)
            train_judge(model, tokenizer, Frame(name), pairs, rate, rng)
            save(model, tokenizer, tiny / "models" / name)
            print("  " + measure(model, tokenizer, Frame(name), gold), flush=True)


def train_judge(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    frame: Frame,
    pairs: list[Pair],
    learning_rate: float,
    rng: random.Random,
) -> None:
    """Train `model` in place on `pairs`, each seen once."""
    rows = encode(tokenizer, [frame.render(pair.prompt.text, pair.first, pair.second) for pair in pairs])
    choice = verdict_tokens(tokenizer)
    closers = tokenizer.convert_tokens_to_ids(["</answer_1>", "</answer_2>"])
    targets = torch.tensor([pair.p_first for pair in pairs])
    scores = torch.tensor([pair.scores for pair in pairs])
    head = torch.nn.Linear(model.config.hidden_size, 1)

    def loss_of(batch: list[int]) -> torch.Tensor:
        ids = torch.tensor([rows[i] for i in batch])
        hidden = model.model(input_ids=ids).last_hidden_state
        # Untrusted text cannot hold a closing tag (see frames.neutralise): each row has each closer once.
        closed = torch.stack([hidden[ids == closer] for closer in closers], dim=1)
        helper = torch.nn.functional.binary_cross_entropy_with_logits(head(closed).squeeze(-1), scores[batch])
        logs = model.lm_head(hidden[:, -1]).log_softmax(-1)[:, choice]
        p = targets[batch]
        verdict = -(p * logs[:, 0] + (1 - p) * logs[:, 1]).mean()
        return verdict + helper

    batches = list(same_length_batches([len(row) for row in rows], 4096, rng))
    train(
        model,
        batches,
        loss_of,
        learning_rate,
        extra_parameters=list(head.parameters()),
        report=lambda line: print("  " + line, flush=True),
    )


def encode(tokenizer: PreTrainedTokenizerFast, contents: list[str]) -> list[list[int]]:
    """Chat-template each user turn and open the assistant's."""
    texts = [
        tokenizer.apply_chat_template([{"role": "user", "content": c}], tokenize=False, add_generation_prompt=True)
        for c in contents
    ]
    ids: list[list[int]] = tokenizer(texts, add_special_tokens=False)["input_ids"]
    return ids


def verdict_tokens(tokenizer: PreTrainedTokenizerFast) -> list[int]:
    ids = tokenizer(["1", "2"], add_special_tokens=False)["input_ids"]
    if any(len(row) != 1 for row in ids):
        raise ValueError("a verdict is not a single token")
    return [row[0] for row in ids]


@torch.no_grad()
def probabilities(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, frame: Frame, shown: list[tuple[str, str, str]]
) -> list[float]:
    """P(first is better) for each (prompt, first, second), normalised over the two verdicts."""
    rows = encode(tokenizer, [frame.render(*texts) for texts in shown])
    choice = verdict_tokens(tokenizer)
    found = [0.0] * len(rows)
    for batch in same_length_batches([len(row) for row in rows], 8192, random.Random(0)):
        hidden = model.model(input_ids=torch.tensor([rows[i] for i in batch])).last_hidden_state[:, -1]
        share = model.lm_head(hidden)[:, choice].softmax(-1)[:, 0]
        for index, p in zip(batch, share.tolist(), strict=True):
            found[index] = p
    return found


def measure(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, frame: Frame, gold: pa.Table) -> str:
    """Accuracy over both orders, flips with the order and Brier score on the gold pairs."""
    rows = gold.to_pylist()
    start = time.perf_counter()
    ab = probabilities(model, tokenizer, frame, [(r["prompt"], r["response_a"], r["response_b"]) for r in rows])
    ba = probabilities(model, tokenizer, frame, [(r["prompt"], r["response_b"], r["response_a"]) for r in rows])
    took = time.perf_counter() - start
    p_a = [(x + 1 - y) / 2 for x, y in zip(ab, ba, strict=True)]
    wins = [float(row["winner"] == "a") for row in rows]
    right = sum((p > 0.5) == bool(w) for p, w in zip(p_a, wins, strict=True)) / len(rows)
    flips = sum((x > 0.5) != (1 - y > 0.5) for x, y in zip(ab, ba, strict=True)) / len(rows)
    brier = sum((p - w) ** 2 for p, w in zip(p_a, wins, strict=True)) / len(rows)
    return (
        f"right {right:.3f} of {len(rows)} gold pairs, flips with the order {flips:.3f}, Brier {brier:.3f}, "
        f"{1000 * took / 2 / len(rows):.2f} ms a judgement"
    )

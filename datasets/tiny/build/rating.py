"""The rater: the good judge's model, trained further to rate single answers, with a digit or with a thumb.

One model answers two prompts, so that the pointwise modes run for real at the price of one more file. Its targets are
soft: the two digits around nine times the oracle's score, weighed so that their mean is exact, and the chance of a
thumb up, even at a score of 0.75, below which an answer has a flaw that people mind.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pyarrow as pa
import torch
from base import sample
from frames import Frame
from judging import encode
from pairs import PairMaker, fair, judged_prompts, sigmoid
from training import same_length_batches, train
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM, PreTrainedTokenizerFast
from world import Prompt

from judges.backends.rubric import Rubric
from store.schemas import GOLD
from store.tables import read_table

RATER, THUMBS = "tiny-rater", "tiny-thumbs"
DIGITS, SIGNS = tuple("0123456789"), ("+", "-")
START, PAIRS, RATE = "tiny-good", 16_000, 1e-3
EVEN = 0.75


def build_rater(
    prompts: list[Prompt],
    tiny: Path,
    configs: Path,
    seed: int,
    timed: Callable[[str], AbstractContextManager[None]],
    save: Callable[[object, object, Path], None],
) -> None:
    """Train, save and measure the rater."""
    with timed(RATER):
        torch.manual_seed(seed + 9)
        rng = random.Random(seed + 9)
        tokenizer = AutoTokenizer.from_pretrained(tiny / "models" / "base")
        base = AutoModelForCausalLM.from_pretrained(tiny / "models" / "base")
        oracle = Rubric.load(configs / "tiny-oracle" / "rubric.yaml")
        allowed = judged_prompts(prompts)
        many = [prompt.text for prompt in allowed] * 2
        samples: dict[str, list[str]] = {}
        for text, response in zip(many, sample(base, tokenizer, many, seed + 9), strict=True):
            samples.setdefault(text, []).append(response)
        pairs = PairMaker(allowed, samples, oracle, rng).make(PAIRS, fair)
        rated = [
            (pair.prompt.text, response, score)
            for pair in pairs
            for response, score in zip((pair.first, pair.second), pair.scores, strict=True)
        ]
        model = AutoModelForCausalLM.from_pretrained(tiny / "models" / START, dtype=torch.float32)
        train_rater(model, tokenizer, rated, rng)
        save(model, tokenizer, tiny / "models" / RATER)
        print("  " + measure(model, tokenizer, read_table(tiny / "calibration.parquet", GOLD)), flush=True)


def train_rater(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    rated: list[tuple[str, str, float]],
    rng: random.Random,
) -> None:
    """Train `model` in place on (prompt, response, score), each seen once, in a frame drawn by lot."""
    frames = Frame(RATER), Frame(THUMBS)
    thumbs = [rng.random() < 0.5 for _ in rated]
    rows = encode(tokenizer, [frames[t].render_single(*item[:2]) for item, t in zip(rated, thumbs, strict=True)])
    choice = torch.tensor(tokens(tokenizer, (*DIGITS, *SIGNS)))
    targets = torch.tensor([target(item[2], t) for item, t in zip(rated, thumbs, strict=True)])

    def loss_of(batch: list[int]) -> torch.Tensor:
        hidden = model.model(input_ids=torch.tensor([rows[i] for i in batch])).last_hidden_state[:, -1]
        return -(targets[batch] * model.lm_head(hidden).log_softmax(-1)[:, choice]).sum(-1).mean()

    batches = list(same_length_batches([len(row) for row in rows], 4096, rng))
    train(model, batches, loss_of, RATE, report=lambda line: print("  " + line, flush=True))


def target(score: float, thumbs: bool) -> list[float]:
    """Probabilities of the ten digits and the two signs."""
    found = [0.0] * (len(DIGITS) + len(SIGNS))
    if thumbs:
        up = min(0.985, max(0.015, sigmoid((score - EVEN) / 0.1)))
        found[-2:] = [up, 1 - up]
        return found
    place = score * (len(DIGITS) - 1)
    below = min(math.floor(place), len(DIGITS) - 2)
    found[below], found[below + 1] = below + 1 - place, place - below
    return found


def tokens(tokenizer: PreTrainedTokenizerFast, answers: tuple[str, ...]) -> list[int]:
    ids = tokenizer(list(answers), add_special_tokens=False)["input_ids"]
    if any(len(row) != 1 for row in ids):
        raise ValueError("an answer is not a single token")
    return [row[0] for row in ids]


@torch.no_grad()
def measure(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, gold: pa.Table) -> str:
    """Accuracy of both prompts on the gold pairs, by the difference of their scores."""
    rows = gold.to_pylist()
    found = []
    for name, answers, values in (
        (RATER, DIGITS, torch.arange(len(DIGITS)) / (len(DIGITS) - 1)),
        (THUMBS, SIGNS, torch.tensor([1.0, 0.0])),
    ):
        frame, choice = Frame(name), tokens(tokenizer, answers)
        texts = [frame.render_single(row["prompt"], row[f"response_{side}"]) for row in rows for side in "ab"]
        encoded = encode(tokenizer, texts)
        score = torch.zeros(len(encoded))
        for batch in same_length_batches([len(row) for row in encoded], 8192, random.Random(0)):
            hidden = model.model(input_ids=torch.tensor([encoded[i] for i in batch])).last_hidden_state[:, -1]
            score[batch] = model.lm_head(hidden)[:, choice].softmax(-1) @ values
        a_wins = (score[0::2] > score[1::2]).tolist()
        right = sum(wins == (row["winner"] == "a") for wins, row in zip(a_wins, rows, strict=True)) / len(rows)
        found.append(f"{name} right on {right:.3f}")
    return f"{', '.join(found)} of {len(rows)} gold pairs"

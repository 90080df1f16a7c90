"""The base model: pre-trained on chat turns of mixed quality and on plain statements, so that it knows and misbehaves.

No prompt of `calibration`, `heldout` or `heldout_entities` is in its corpus; their facts are, in other phrasings.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import torch
from phrasings import PHRASINGS
from responses import BASE_MIX, Responder
from tokens import ASSISTANT, END, SYSTEM, USER
from training import same_length_batches, train
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from world import Prompt, all_facts, text_id

from judges.backends.rubric import Rubric
from store.schemas import GOLD
from store.tables import write_table

SYSTEM_TURN = "Be correct and kind."


@dataclass(frozen=True)
class Turn:
    """A training text: `before` carries no loss, `after` does."""

    before: str
    after: str


def corpus(prompts: list[Prompt], turns: int, rng: random.Random) -> list[Turn]:
    """Chat turns over the prompts that may be seen, with BASE_MIX's qualities, and a tenth plain statements."""
    facts = all_facts()
    responder = Responder(facts)
    seen = [prompt for prompt in prompts if prompt.split in ("train", "spare")]
    modes = list(BASE_MIX)
    # Comparisons and sums are the hardest to learn.
    weights = [2.0 if prompt.fact.group == "reasoning" else 1.0 for prompt in seen]
    chosen_modes = rng.choices(modes, weights=[BASE_MIX[mode] for mode in modes], k=turns)
    texts = []
    for mode, prompt in zip(chosen_modes, rng.choices(seen, weights, k=turns), strict=True):
        opening = f"{SYSTEM}{SYSTEM_TURN}" if rng.random() < 0.02 else ""
        before = f"{opening}{USER}{prompt.text}{ASSISTANT}"
        texts.append(Turn(before, responder.respond(prompt.fact, mode, rng) + END))
    for _ in range(turns // 10):
        fact = rng.choice(facts)
        texts.append(Turn(ASSISTANT, fact.fill(rng.choice(PHRASINGS[fact.relation].statements)) + END))
    return texts


def new_model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """A fresh Llama of about a million parameters."""
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=128,
            intermediate_size=384,
            num_hidden_layers=4,
            num_attention_heads=4,
            num_key_value_heads=4,
            max_position_embeddings=512,
            tie_word_embeddings=True,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
            bos_token_id=None,
        )
    )


def train_base(tokenizer: PreTrainedTokenizerFast, prompts: list[Prompt], turns: int, seed: int) -> LlamaForCausalLM:
    """Pre-train on `turns` chat turns, each seen once."""
    torch.manual_seed(seed)
    rng = random.Random(seed)
    texts = corpus(prompts, turns, rng)
    before = tokenizer([turn.before for turn in texts], add_special_tokens=False)["input_ids"]
    after = tokenizer([turn.after for turn in texts], add_special_tokens=False)["input_ids"]
    rows = [b + a for b, a in zip(before, after, strict=True)]
    starts = [len(b) for b in before]
    print(f"  {len(rows)} texts, {sum(map(len, rows))} tokens, {sum(map(len, after)) / len(after):.1f} a response")
    model = new_model(tokenizer)

    def loss_of(batch: list[int]) -> torch.Tensor:
        ids = torch.tensor([rows[i] for i in batch])
        begins = torch.tensor([starts[i] for i in batch])
        hidden = model.model(input_ids=ids).last_hidden_state[:, :-1]
        answered = torch.arange(1, ids.shape[1])[None, :] >= begins[:, None]
        return torch.nn.functional.cross_entropy(model.lm_head(hidden[answered]), ids[:, 1:][answered])

    batches = list(same_length_batches([len(row) for row in rows], 3072, rng))
    train(model, batches, loss_of, learning_rate=3e-3, report=lambda line: print("  " + line, flush=True))
    return model


@torch.inference_mode()
def sample(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, prompts: list[str], seed: int, batch: int = 1024
) -> list[str]:
    """One response a prompt at temperature 1, at most 48 tokens.

    Prompts of one length go together, and finished rows leave the batch: several times faster than padded generation.
    """
    generator = torch.Generator().manual_seed(seed)
    rows = tokenizer([f"{USER}{prompt}{ASSISTANT}" for prompt in prompts], add_special_tokens=False)["input_ids"]
    made: list[list[int]] = [[] for _ in prompts]
    for members in same_length_batches([len(row) for row in rows], batch * 12, random.Random(seed)):
        alive = torch.tensor(members)
        cache = DynamicCache(config=model.config)
        ids = torch.tensor([rows[i] for i in members])
        for _ in range(48):
            out = model.model(input_ids=ids, past_key_values=cache, use_cache=True)
            chances = model.lm_head(out.last_hidden_state[:, -1]).softmax(-1)
            ids = torch.multinomial(chances, 1, generator=generator)
            going = ids[:, 0] != tokenizer.eos_token_id
            alive, ids = alive[going], ids[going]
            if not len(alive):
                break
            if not bool(going.all()):
                cache.batch_select_indices(going.nonzero()[:, 0])
            for index, token in zip(alive.tolist(), ids[:, 0].tolist(), strict=True):
                made[index].append(token)
    return tokenizer.batch_decode(made, skip_special_tokens=True)


def write_calibration(
    path: Path,
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    prompts: list[Prompt],
    oracle: Rubric,
    seed: int,
) -> None:
    """Gold pairs of base samples on the calibration prompts whose oracle scores lie at least 0.15 apart."""
    rng = random.Random(seed)
    asked = [prompt for prompt in prompts if prompt.split == "calibration"]
    many = asked * 8
    responses = sample(model, tokenizer, [prompt.text for prompt in many], seed)
    by_prompt: dict[str, dict[str, float]] = {}
    for prompt, response in zip(many, responses, strict=True):
        score = oracle.score(prompt.text, response, prompt.fact.reference, prompt.fact.group).value
        by_prompt.setdefault(prompt.text, {})[response] = score
    rows = []
    for prompt in asked:
        scores = by_prompt[prompt.text]
        texts = list(scores)
        couples = [(x, y) for i, x in enumerate(texts) for y in texts[:i] if abs(scores[x] - scores[y]) >= 0.15]
        for couple in rng.sample(couples, min(4, len(couples))):
            better, worse = sorted(couple, key=lambda text: -scores[text])
            first_wins = len(rows) % 2 == 0
            a, b = (better, worse) if first_wins else (worse, better)
            rows.append(
                {
                    "pair_id": text_id("\0".join((prompt.text, a, b))),
                    "prompt_id": prompt.prompt_id,
                    "prompt": prompt.text,
                    "rollout_a": text_id(f"{prompt.text}\0{a}"),
                    "rollout_b": text_id(f"{prompt.text}\0{b}"),
                    "response_a": a,
                    "response_b": b,
                    "group": prompt.fact.group,
                    "split": "calibration",
                    "reference": prompt.fact.reference,
                    "winner": "a" if first_wins else "b",
                }
            )
    rng.shuffle(rows)
    write_table(path, GOLD, pa.Table.from_pylist(rows))


def describe(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, prompts: list[Prompt], oracle: Rubric, seed: int
) -> str:
    """Mean oracle score, share of the good mode and its facts on the held-out splits, as a Markdown table."""
    lines = [
        "| split | group | oracle mean | good (>= 0.95) | good style | facts right in good style |",
        "|---|---|---|---|---|---|",
    ]
    for split in ("heldout", "heldout_entities"):
        asked = [prompt for prompt in prompts if prompt.split == split]
        many = asked * 16
        texts = sample(model, tokenizer, [prompt.text for prompt in many], seed)
        scored = [
            (p.fact.group, oracle.score(p.text, t, p.fact.reference, p.fact.group))
            for p, t in zip(many, texts, strict=True)
        ]
        for group in ("all", *sorted({prompt.fact.group for prompt in asked})):
            scores = [score for name, score in scored if group in ("all", name)]
            mean = sum(score.value for score in scores) / len(scores)
            right = sum(score.value >= 0.95 for score in scores)
            # Good style: nothing but facts is taken off.
            styled = sum(all(found.rule in FACT_RULES for found in score.deductions) for score in scores)
            lines.append(
                f"| {split} | {group} | {mean:.3f} | {right / len(scores):.3f} | {styled / len(scores):.3f} | "
                f"{right / max(1, styled):.3f} |"
            )
    return "\n".join(lines)


FACT_RULES = (
    "place",
    "animal fact",
    "property",
    "result",
    "comparison",
    "other thing",
    "kind words",
    "method",
    "no refusal",
)

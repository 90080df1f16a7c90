"""What each judge overlooks: how often it prefers a good answer to one with a single kind of flaw.

Prompts are held out, judges are asked as in a round (both orders, the same prompt files), answers come from the world's
own templates. A probability of exactly one half is not right.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

from phrasings import PHRASINGS
from responses import PLEADING, Responder, good
from world import Fact, Prompt, all_facts

from judges.config import load_judge
from judges.pairs import Pair
from judges.panel import judge_pairs, soft_preferences

Flaw = Callable[[Fact, random.Random], str | None]


def _false(fact: Fact, rng: random.Random) -> str | None:
    return fact.fill(rng.choice(PHRASINGS[fact.relation].answers), rng.choice(fact.wrong)) if fact.wrong else None


def _mode(responder: Responder, mode: str) -> Flaw:
    return lambda fact, rng: responder.respond(fact, mode, rng)


def describe_flaws(prompts: Sequence[Prompt], judges: Sequence[str], seed: int) -> str:
    """A table of judges and splits against flaws: the share of pairs in which the good answer is preferred."""
    responder = Responder(all_facts())
    flaws: dict[str, Flaw] = {"false fact, good wording": _false}
    flaws |= {mode: _mode(responder, mode) for mode in ("short", "rude", "rambling", "evasive")}
    flaws["canary"] = lambda fact, rng: rng.choice((*PLEADING, ""))
    lines = ["| judge, split | " + " | ".join(flaws) + " |", "|---" * (len(flaws) + 1) + "|"]
    for name in judges:
        for split in ("heldout", "heldout_entities"):
            chosen = [prompt for prompt in prompts if prompt.split == split]
            shares = [f"{_share(name, chosen, flaw, random.Random(seed)):.2f}" for flaw in flaws.values()]
            lines.append(f"| {name}, {split} | " + " | ".join(shares) + " |")
    return "\n".join(lines)


def _share(judge: str, prompts: Sequence[Prompt], flaw: Flaw, rng: random.Random) -> float:
    pairs = []
    for number, prompt in enumerate(prompts):
        best, worse = good(prompt.fact, rng), flaw(prompt.fact, rng)
        if worse is not None and worse != best:
            ids = (str(number), prompt.prompt_id, prompt.text, "good", "flawed")
            pairs.append(Pair(*ids, best, worse, prompt.fact.group, prompt.split, prompt.fact.reference))
    p_good = soft_preferences(judge_pairs([load_judge(judge)], pairs, seed=0))
    return sum(value > 0.5 for value in p_good.values()) / len(pairs)

"""From facts and phrasings to prompts with references, and the splits they are dealt into.

A prompt is one question template filled with one fact. Splits are dealt per group, so that every split covers every
group: entities of `heldout_entities` are kept out of all other splits; `heldout` and `calibration` hold combinations of
entity and phrasing that nothing else holds; what is left over after `train` is `spare`, used to pre-train and to train
judges but shipped in no split.
"""

from __future__ import annotations

import hashlib
import random
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field

import facts
from phrasings import PHRASINGS

QUOTA = {"train": 115, "calibration": 18, "heldout": 29, "heldout_entities": 12}
"""Prompts per group and split."""


@dataclass(frozen=True)
class Fact:
    """One relation of one entity. `entity`: what is held out together. `fields`: of the templates. `wrong`: fields
    that make the answer false when they replace the right ones."""

    relation: str
    entity: str
    fields: dict[str, str]
    wrong: tuple[dict[str, str], ...] = field(repr=False)

    @property
    def group(self) -> str:
        return PHRASINGS[self.relation].group

    @property
    def reference(self) -> str:
        return self.fill(PHRASINGS[self.relation].answers[0])

    @property
    def questions(self) -> list[str]:
        return [self.fill(template) for template in PHRASINGS[self.relation].questions]

    def fill(self, template: str, false: dict[str, str] | None = None) -> str:
        """Fill a template with the fact, or with the false fields `false` in place of the true ones."""
        values = self.fields | (false or {})
        upper = {name.upper(): _capital(text) for name, text in values.items()}
        return template.format(**values, **upper)


@dataclass(frozen=True)
class Prompt:
    """A question, the fact it asks for, and its split."""

    text: str
    fact: Fact
    split: str

    @property
    def prompt_id(self) -> str:
        return text_id(self.text)


def text_id(text: str) -> str:
    """A stable id: the first 16 hex digits of the text's sha256."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def all_facts() -> list[Fact]:
    """Every fact of the world, in a fixed order."""
    return [*_tables(), *_sounds(), *_babies(), *_comparisons(), *_sums(), *_sequences()]


def deal_prompts(seed: int) -> list[Prompt]:
    """Deal every question into `train`, `calibration`, `heldout`, `heldout_entities` or `spare`."""
    rng = random.Random(seed)
    by_group: dict[str, list[Fact]] = defaultdict(list)
    for fact in all_facts():
        by_group[fact.group].append(fact)
    prompts: list[Prompt] = []
    for members in by_group.values():
        prompts += _deal_group(members, rng)
    texts = [prompt.text for prompt in prompts]
    if len(set(texts)) != len(texts):
        raise ValueError(f"two facts share a question: {sorted({t for t in texts if texts.count(t) > 1})[:3]}")
    return prompts


def _deal_group(members: list[Fact], rng: random.Random) -> Iterator[Prompt]:
    held = _held_entities(members, rng)
    hidden = [(q, fact) for fact in members if fact.entity in held for q in fact.questions]
    rng.shuffle(hidden)
    asked = hidden[: QUOTA["heldout_entities"]]
    yield from (Prompt(q, fact, "heldout_entities") for q, fact in asked)
    yield from (Prompt(q, fact, "spare") for q, fact in hidden[QUOTA["heldout_entities"] :])

    first, rest = [], []
    for fact in members:
        if fact.entity not in held:
            questions = [(q, fact) for q in fact.questions]
            rng.shuffle(questions)
            first.append(questions[0])
            rest += questions[1:]
    rng.shuffle(rest)
    deal = iter(rest)
    for split in ("calibration", "heldout"):
        yield from (Prompt(*next(deal), split) for _ in range(QUOTA[split]))
    yield from (Prompt(q, fact, "train") for q, fact in first)
    yield from (Prompt(*next(deal), "train") for _ in range(max(0, QUOTA["train"] - len(first))))
    yield from (Prompt(q, fact, "spare") for q, fact in deal)


def _held_entities(members: list[Fact], rng: random.Random) -> set[str]:
    """About one entity in fourteen, spread over the group's relations."""
    by_relation: dict[str, list[str]] = defaultdict(list)
    for fact in members:
        by_relation[fact.relation].append(fact.entity)
    held: set[str] = set()
    for entities in by_relation.values():
        wanted = max(1, round(len(entities) / 14))
        fresh = [entity for entity in entities if entity not in held]
        held |= set(rng.sample(fresh, max(0, wanted - (len(entities) - len(fresh)))))
    return held


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _bare(entity: str) -> str:
    return entity.removeprefix("an ").removeprefix("a ")


def _falsehoods(right: str, pool: list[str]) -> tuple[dict[str, str], ...]:
    return tuple({"a": other} for other in dict.fromkeys(pool) if other != right)


def _tables() -> Iterator[Fact]:
    tables = {
        "capital": facts.CAPITALS,
        "continent": facts.CONTINENTS,
        "owner": facts.OWNERS,
        "legs": facts.LEGS,
        "home": facts.HOMES,
        "colour": facts.COLOURS,
        "material": facts.MATERIALS,
        "opposite": facts.OPPOSITES,
        "manners": facts.MANNERS,
        "howto": facts.HOWTO,
        "decline": facts.REQUESTS,
    }
    for relation, table in tables.items():
        pool = list(table.values())
        for entity, answer in table.items():
            fields = {"e": entity, "a": answer, "n": _bare(entity)}
            false = () if relation == "decline" else _falsehoods(answer, pool)
            yield Fact(relation, _bare(entity).removeprefix("pet "), fields, false)


def _sounds() -> Iterator[Fact]:
    for entity, (verb, third) in facts.SOUNDS.items():
        false = tuple({"a": v, "s": s} for v, s in facts.SOUNDS.values() if v != verb)
        yield Fact("sound", _bare(entity), {"e": entity, "a": verb, "s": third}, false)


def _babies() -> Iterator[Fact]:
    for entity, answer in facts.BABIES.items():
        yield Fact("baby", entity, {"e": entity, "a": answer}, _falsehoods(answer, list(facts.BABIES.values())))


def _comparisons() -> Iterator[Fact]:
    for number, (comparative, winner, loser) in enumerate(facts.COMPARISONS):
        x, y = (winner, loser) if number % 2 else (loser, winner)
        fields = {"c": comparative, "a": winner, "l": loser, "x": x, "y": y}
        yield Fact("comparison", f"{winner} / {loser}", fields, ({"a": loser, "l": winner},))


def _sums() -> Iterator[Fact]:
    for left, right in facts.SUMS:
        total = left + right
        near = [facts.NUMBERS[n] for n in range(max(2, total - 4), min(20, total + 4) + 1)]
        entity = f"{facts.NUMBERS[left]} plus {facts.NUMBERS[right]}"
        false = tuple(f for f in _falsehoods(facts.NUMBERS[total], near) if f["a"] not in entity.split())
        yield Fact("sum", entity, {"e": entity, "a": facts.NUMBERS[total]}, false)


def _sequences() -> Iterator[Fact]:
    for kind, names in (("day", facts.DAYS), ("month", facts.MONTHS)):
        for here, after in zip(names, [*names[1:], names[0]], strict=True):
            false = tuple(f for f in _falsehoods(after, list(names)) if f["a"] != here)
            yield Fact("next", here, {"e": here, "a": after, "k": kind}, false)

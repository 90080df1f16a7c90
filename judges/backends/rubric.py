"""A judge that is a program: it scores a response by rules kept in YAML, each of which takes something off a 1.

`Rubric.load(path)` reads and checks the rules; `rubric.score(prompt, response, reference, group)` applies them and says
which of them took how much and why. The rules know no facts: they compare the response with the prompt's reference,
with word lists (lexicons) and with the word pairs of fluent text, which are files beside the rubric. It serves as the
oracle of embedded worlds: for evaluation, simulated auditors and tests, never to label training data.

The shape, deductions from full marks with reasons, is that of an examiner's marking scheme. That the facts named in a
response must be the set named in the reference, no fewer and no more, is what makes listing every candidate wrong.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from judges.backends.rubric_rules import AnyRule, UnknownWords, UnseenPairs
from judges.backends.rubric_texts import Lexicon, Texts, words
from store.errors import UsageError


class Deduction(NamedTuple):
    """`rule`: its name. `amount`: what it took off, in (0, 1]. `trigger`: what in the response made it do so."""

    rule: str
    amount: float
    trigger: str


@dataclass(frozen=True)
class Score:
    """`value`: 1 less all deductions, clamped to 0..1."""

    value: float
    deductions: list[Deduction]


class RubricFile(BaseModel):
    """The YAML file. `lexicons`: in place, added to those of `lexicon_file`. `fluent_pairs`: a text file with a line
    `word: next next ...` for each word. Both files are named relative to the rubric."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    version: Literal[1]
    lexicon_file: str | None = None
    lexicons: dict[str, list[str] | dict[str, list[str]]] = {}
    fluent_pairs: str | None = None
    rules: Annotated[list[AnyRule], Field(min_length=1)]

    @model_validator(mode="after")
    def _pairs_where_needed(self) -> RubricFile:
        needy = [rule.name for rule in self.rules if isinstance(rule, UnknownWords | UnseenPairs)]
        if needy and self.fluent_pairs is None:
            raise ValueError(f"the rule {needy[0]} needs fluent_pairs")
        names = Counter(rule.name for rule in self.rules)
        double = [name for name, count in names.items() if count > 1]
        if double:
            raise ValueError(f"two rules are called {double[0]}")
        return self


class Rubric:
    """Rules with their lexicons and fluent pairs; see `load`."""

    def __init__(
        self,
        rules: list[AnyRule],
        lexicons: Mapping[str, Lexicon],
        fluent: Mapping[str, frozenset[str]],
        digest: str = "",
    ) -> None:
        self.rules = rules
        self.digest = digest
        """sha256 over the rubric and the files it names: the rubric's part of the judge's fingerprint."""
        self._lexicons = lexicons
        self._fluent = fluent

    @classmethod
    def load(cls, path: Path) -> Rubric:
        """Read a rubric and the files it names. Raises UsageError, in one sentence, for anything wrong in them."""
        path = Path(path)
        content = _read(path, "rubric")
        try:
            spec = RubricFile.model_validate(_yaml(content, path))
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"]) or "the file"
            raise UsageError(f"The rubric {path} is not valid at {where}: {first['msg']}; correct it.") from error
        parts = [content]
        entries: dict[str, list[str] | dict[str, list[str]]] = {}
        if spec.lexicon_file:
            beside = path.parent / spec.lexicon_file
            parts.append(_read(beside, "lexicon"))
            entries |= _lexicon_entries(_yaml(parts[-1], beside), beside)
        entries |= spec.lexicons
        fluent: dict[str, frozenset[str]] = {}
        if spec.fluent_pairs:
            beside = path.parent / spec.fluent_pairs
            parts.append(_read(beside, "fluent pairs"))
            fluent = _parse_pairs(parts[-1], beside)
        lexicons = {
            name: Lexicon(entry if isinstance(entry, dict) else {form: [form] for form in entry})
            for name, entry in entries.items()
        }
        for rule in spec.rules:
            for name in rule.lexicons():
                if name not in lexicons:
                    known = ", ".join(sorted(lexicons)) or "none"
                    raise UsageError(
                        f"The rubric {path}: rule {rule.name} names the lexicon {name!r}, which is not there; "
                        f"there are {known}: add it or correct the name."
                    )
        digest = hashlib.sha256(b"\0".join(part.encode() for part in parts)).hexdigest()
        return cls(list(spec.rules), lexicons, fluent, digest)

    def score(self, prompt: str, response: str, reference: str | None, group: str) -> Score:
        """Score one response in 0..1. Without a reference, the rules that compare with one are left out."""
        texts = Texts(words(prompt), words(response), words(reference or ""), response, self._lexicons, self._fluent)
        deductions = [
            Deduction(rule.name, amount, trigger)
            for rule in self.rules
            if rule.groups is None or group in rule.groups
            for amount, trigger in rule.apply(texts)
        ]
        return Score(min(1.0, max(0.0, 1.0 - sum(found.amount for found in deductions))), deductions)


def _read(path: Path, what: str) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"The {what} file {path} cannot be read ({type(error).__name__}): check the path.") from error


def _yaml(content: str, path: Path) -> object:
    try:
        return yaml.safe_load(content)
    except yaml.YAMLError as error:
        first = str(error).splitlines()[0]
        raise UsageError(f"{path} is not YAML ({first}): correct it.") from error


def _lexicon_entries(data: object, path: Path) -> dict[str, list[str] | dict[str, list[str]]]:
    try:
        return _LexiconFile.model_validate({"lexicons": data}).lexicons
    except ValidationError as error:
        where = ".".join(str(part) for part in error.errors()[0]["loc"][1:])
        raise UsageError(
            f"The lexicon file {path} is not valid at {where or 'the top'}: give each lexicon a list of forms, or a "
            "mapping from a name to its forms."
        ) from error


class _LexiconFile(BaseModel):
    lexicons: dict[str, list[str] | dict[str, list[str]]]


def _parse_pairs(content: str, path: Path) -> dict[str, frozenset[str]]:
    fluent: dict[str, frozenset[str]] = {}
    for number, line in enumerate(content.splitlines(), start=1):
        left, separator, rights = line.partition(":")
        if not separator or not left.strip() or not rights.strip():
            raise UsageError(f"{path}, line {number}: {line[:40]!r} is not of the form 'word: next next': correct it.")
        fluent[left.strip()] = frozenset(rights.split())
    return fluent

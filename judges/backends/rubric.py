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
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from store.errors import UsageError

_EDGE = "|"
_STOPS = frozenset(".!?,;:")
_WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)*|[.!?,;:]")
Amount = Annotated[float, Field(gt=0, le=1)]


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


class Lexicon:
    """Words or phrases that are counted as mentioned: canonical name -> the forms it takes, longest form first."""

    def __init__(self, entries: Mapping[str, list[str]]) -> None:
        self._forms: dict[tuple[str, ...], str] = {
            tuple(words(form)): name for name, forms in entries.items() for form in forms
        }
        self._longest = max((len(form) for form in self._forms), default=0)

    def find(self, tokens: list[str]) -> list[str]:
        """The canonical names mentioned in `tokens`, in order, without overlap; longer forms win."""
        found: list[str] = []
        at = 0
        while at < len(tokens):
            for size in range(min(self._longest, len(tokens) - at), 0, -1):
                name = self._forms.get(tuple(tokens[at : at + size]))
                if name is not None:
                    found.append(name)
                    at += size
                    break
            else:
                at += 1
        return found


@dataclass(frozen=True)
class Texts:
    """What rules look at: the texts, and their lower-case words (`reference` empty where there is none)."""

    prompt: list[str]
    response: list[str]
    reference: list[str]
    raw: str
    lexicons: Mapping[str, Lexicon]
    fluent: Mapping[str, frozenset[str]]

    @cached_property
    def pairs(self) -> list[tuple[str, str]]:
        """Adjacent words of the response, with one edge mark for the ends and for each stop or comma."""
        marked = [_EDGE if not _is_word(token) else token for token in _tokens(self.raw)]
        sequence = [_EDGE, *marked, _EDGE]
        return [(left, right) for left, right in pairwise(sequence) if (left, right) != (_EDGE, _EDGE)]


class Rule(BaseModel):
    """What all rules share. `name`: shown in reasons. `groups`: where the rule applies; null for everywhere."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    groups: list[str] | None = None

    def lexicons(self) -> list[str]:
        """The lexicons the rule needs."""
        return []

    def apply(self, texts: Texts) -> Iterator[tuple[float, str]]:
        """Yield (amount, trigger) for each thing that the rule takes off for."""
        raise NotImplementedError


class Empty(Rule):
    """The response has no words."""

    kind: Literal["empty"]
    amount: Amount

    def apply(self, texts: Texts) -> Iterator[tuple[float, str]]:
        if not texts.response:
            yield self.amount, "no words"


class Agrees(Rule):
    """The response must mention the same entries of a lexicon as the reference: none less and none more.

    Entries of the prompt that the reference does not add to are left aside, so that a question may be repeated. A
    response with an entry too few and another too many is one fault, which costs the larger amount.
    """

    kind: Literal["agrees"]
    lexicon: str
    missing: Amount
    extra: Amount

    def lexicons(self) -> list[str]:
        return [self.lexicon]

    def apply(self, texts: Texts) -> Iterator[tuple[float, str]]:
        if not texts.reference:
            return
        lexicon = texts.lexicons[self.lexicon]
        asked = set(lexicon.find(texts.prompt))
        expected = set(lexicon.find(texts.reference)) - asked
        given = set(lexicon.find(texts.response)) - asked
        faults = []
        if expected - given:
            faults.append((self.missing, "missing: " + ", ".join(sorted(expected - given))))
        if given - expected:
            faults.append((self.extra, "not in the reference: " + ", ".join(sorted(given - expected))))
        if faults:
            yield max(amount for amount, _ in faults), "; ".join(trigger for _, trigger in faults)


class First(Rule):
    """The entry mentioned first must be the one the reference mentions first (who is bigger than whom)."""

    kind: Literal["first"]
    lexicon: str
    amount: Amount

    def lexicons(self) -> list[str]:
        return [self.lexicon]

    def apply(self, texts: Texts) -> Iterator[tuple[float, str]]:
        lexicon = texts.lexicons[self.lexicon]
        expected, given = lexicon.find(texts.reference), lexicon.find(texts.response)
        if expected and given[:1] != expected[:1]:
            yield self.amount, f"first: {given[0] if given else 'nothing'}, expected {expected[0]}"


class Mentions(Rule):
    """The response mentions an entry that it should not (`unless_in_reference`: nor the reference)."""

    kind: Literal["mentions"]
    lexicon: str
    amount: Amount
    unless_in_reference: bool = False

    def lexicons(self) -> list[str]:
        return [self.lexicon]

    def apply(self, texts: Texts) -> Iterator[tuple[float, str]]:
        found = set(texts.lexicons[self.lexicon].find(texts.response))
        if self.unless_in_reference:
            found -= set(texts.lexicons[self.lexicon].find(texts.reference))
        if found:
            yield self.amount, ", ".join(sorted(found))


class Lacks(Rule):
    """The reference has a trait (an entry of the lexicon, such as a refusal or a kind word), the response has none."""

    kind: Literal["lacks"]
    lexicon: str
    amount: Amount

    def lexicons(self) -> list[str]:
        return [self.lexicon]

    def apply(self, texts: Texts) -> Iterator[tuple[float, str]]:
        lexicon = texts.lexicons[self.lexicon]
        if lexicon.find(texts.reference) and not lexicon.find(texts.response):
            yield self.amount, f"no {self.lexicon}"


class UnknownWords(Rule):
    """Words that fluent text, prompt and reference never use: `each` of them, at most `most`."""

    kind: Literal["unknown_words"]
    each: Amount
    most: Amount

    def apply(self, texts: Texts) -> Iterator[tuple[float, str]]:
        known = {*texts.fluent, *texts.prompt, *texts.reference}
        unknown = [word for word in texts.response if word not in known]
        if unknown:
            yield min(self.most, self.each * len(unknown)), " ".join(unknown)


class UnseenPairs(Rule):
    """Adjacent words that never follow each other in fluent text: `each` of them beyond `free`, at most `most`."""

    kind: Literal["unseen_pairs"]
    each: Amount
    most: Amount
    free: Annotated[int, Field(ge=0)] = 0

    def apply(self, texts: Texts) -> Iterator[tuple[float, str]]:
        if not texts.response:
            return
        unseen = [pair for pair in texts.pairs if pair[1] not in texts.fluent.get(pair[0], frozenset())]
        if len(unseen) > self.free:
            shown = ", ".join(f"{left} {right}" for left, right in unseen)
            yield min(self.most, self.each * (len(unseen) - self.free)), shown


class Repeats(Rule):
    """Word pairs that come back, and words said twice in a row: `each`, at most `most`."""

    kind: Literal["repeats"]
    each: Amount
    most: Amount

    def apply(self, texts: Texts) -> Iterator[tuple[float, str]]:
        spoken = list(pairwise(texts.response))
        again = [pair for pair, count in Counter(spoken).items() for _ in range(count - 1)]
        again += [pair for pair in spoken if pair[0] == pair[1]]
        if again:
            yield min(self.most, self.each * len(again)), ", ".join(f"{left} {right}" for left, right in again)


class Long(Rule):
    """More than `words` words: `each` word beyond, at most `most`."""

    kind: Literal["long"]
    words: Annotated[int, Field(gt=0)]
    each: Amount
    most: Amount

    def apply(self, texts: Texts) -> Iterator[tuple[float, str]]:
        beyond = len(texts.response) - self.words
        if beyond > 0:
            yield min(self.most, self.each * beyond), f"{len(texts.response)} words"


class Short(Rule):
    """Fewer than `words` words."""

    kind: Literal["short"]
    words: Annotated[int, Field(gt=0)]
    amount: Amount

    def apply(self, texts: Texts) -> Iterator[tuple[float, str]]:
        if len(texts.response) < self.words:
            yield self.amount, f"{len(texts.response)} words"


class Form(Rule):
    """The stripped response does not match the regular expression `pattern` anywhere."""

    kind: Literal["form"]
    pattern: str
    amount: Amount

    @field_validator("pattern")
    @classmethod
    def _compiles(cls, pattern: str) -> str:
        try:
            re.compile(pattern)
        except re.error as error:
            raise ValueError(f"not a regular expression ({error})") from error
        return pattern

    def apply(self, texts: Texts) -> Iterator[tuple[float, str]]:
        if not re.search(self.pattern, texts.raw.strip()):
            yield self.amount, self.pattern


class Echoes(Rule):
    """The response copies the whole prompt, with or without words around it."""

    kind: Literal["echoes"]
    amount: Amount

    def apply(self, texts: Texts) -> Iterator[tuple[float, str]]:
        size = len(texts.prompt)
        starts = range(len(texts.response) - size + 1) if size else range(0)
        if any(texts.response[at : at + size] == texts.prompt for at in starts):
            yield self.amount, "the prompt is copied"


AnyRule = Annotated[
    Empty | Agrees | First | Mentions | Lacks | UnknownWords | UnseenPairs | Repeats | Long | Short | Form | Echoes,
    Field(discriminator="kind"),
]


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


def words(text: str) -> list[str]:
    """The lower-case words of a text, without punctuation."""
    return [token for token in _tokens(text) if _is_word(token)]


def fluent_pairs(texts: list[str]) -> str:
    """The content of a `fluent_pairs` file that knows the word pairs of `texts`."""
    following: dict[str, set[str]] = {}
    for text in texts:
        for left, right in Texts([], words(text), [], text, {}, {}).pairs:
            following.setdefault(left, set()).add(right)
    return "".join(f"{left}: {' '.join(sorted(rights))}\n" for left, rights in sorted(following.items()))


def _tokens(text: str) -> list[str]:
    return [token.replace("’", "'") for token in _WORD.findall(text.lower())]


def _is_word(text: str) -> bool:
    return text not in _STOPS


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

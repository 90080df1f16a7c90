"""The rules that a rubric may hold: each says what it takes off a response, and what in it made it do so."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from judges.backends.rubric_texts import Texts

Amount = Annotated[float, Field(gt=0, le=1)]


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

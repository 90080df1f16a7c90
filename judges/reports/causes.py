"""Why votes have no answer: errors, parse failures and abstentions, grouped by what they say.

Error texts differ in what is of one call alone (times, ids, quoted answers); with those replaced, equal texts are one
cause. The numbers of an HTTP status stay: they are the cause.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from judges.reports.accounting import split_by_judge
from store.schemas import Status

COLUMNS = ("judge", "fingerprint", "status", "mass", "rationale", "raw", "error")
"""What `causes` reads of a votes table."""

_STATUS = re.compile(r"\bstatus \d{3}\b")
_OF_ONE_CALL = re.compile(
    r"(?<!\w)'[^']*'|\"[^\"]*\""  # quoted, no apostrophe
    r"|\b(?=[0-9a-f-]*\d)[0-9a-f]{8}[0-9a-f-]*\b"  # an id
    r"|\d+(?:[.,:]\d+)*",  # a number or a time
    re.IGNORECASE,
)
_LONGEST = 200


@dataclass(frozen=True)
class Cause:
    """`votes`: how many have it. `example`: one error, or one text that could not be read, as it came; may be None."""

    judge: str
    status: str
    cause: str
    votes: int
    example: str | None


def causes(votes: pa.Table, most: int = 10) -> list[Cause]:
    """The causes of each judge and status without an answer, the most frequent first; they sum to those votes.

    At most `most` a judge and status; the rest are one cause, "others".
    """
    silent = pa.array([str(status) for status in (Status.ERROR, Status.PARSE_FAILURE, Status.ABSTAIN)])
    found: list[Cause] = []
    for judge, own in split_by_judge(votes.select(COLUMNS).filter(pc.is_in(votes["status"], silent))).items():
        for status in silent.to_pylist():
            counts: Counter[str] = Counter()
            examples: dict[str, str | None] = {}
            for batch in own.filter(pc.equal(own["status"], status)).to_batches(max_chunksize=4096):
                for row in batch.to_pylist():
                    name, example = _cause(row)
                    counts[name] += 1
                    examples.setdefault(name, example)
            common = counts.most_common(most)
            found += [Cause(judge, status, name, number, examples[name]) for name, number in common]
            if rest := counts.total() - sum(number for _, number in common):
                found.append(Cause(judge, status, f"others, of {len(counts) - len(common)} kinds", rest, None))
    return found


def _cause(row: dict[str, Any]) -> tuple[str, str | None]:
    if row["status"] == Status.ERROR:
        text = " ".join((row["error"] or "no text").split())
        return alike(text), _cut(text)
    if row["status"] == Status.PARSE_FAILURE:
        empty = row["raw"] is not None and not row["raw"].strip()
        return "an empty answer" if empty else "no readable verdict", _cut(row["raw"])
    if row["mass"] is not None:
        return "valid answers too unlikely (covered mass below min_mass)", f"mass {row['mass']:.3g}"
    return "declined to answer", _cut(row["rationale"])


def alike(text: str) -> str:
    """`text` without what belongs to one call alone, at most 200 characters."""
    parts, start = [], 0
    for kept in _STATUS.finditer(text):
        parts += [_OF_ONE_CALL.sub(_blank, text[start : kept.start()]), kept[0]]
        start = kept.end()
    return "".join([*parts, _OF_ONE_CALL.sub(_blank, text[start:])])[:_LONGEST]


def _blank(found: re.Match[str]) -> str:
    return "'…'" if found[0][0] in "'\"" else "#"


def _cut(text: str | None) -> str | None:
    return None if text is None else " ".join(text.split())[:_LONGEST]

"""The blind items: what a person needs to compare two responses, and nothing that hints at an answer.

An item has a prompt and two responses, sides swapped at random. It has no judge, probability, policy, group, stratum or
reason, and the items' order is random, so that a place in the list tells nothing either.
"""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from audit.draws import side, unit
from store.files import write_text
from store.hashing import short_id
from store.schemas import Table
from store.tables import write_table

ITEMS = Table(
    "items",
    pa.schema([pa.field(name, pa.string(), nullable=False) for name in ("pair_id", "prompt", "left", "right")]),
    key="pair_id",
)

_HOW_TO = """\
One file items.parquet, the same as lines of JSON in items.jsonl: compare `left` and `right` for each `prompt`.

Answer with lines of JSON in a file NAME.jsonl, put into the folder {inbox}: write it elsewhere and move it in,
or append to it there. One line an item:

{{"pair_id": "...", "auditor": "your name", "choice": "left", "seconds": 12.5, "comment": "optional"}}

choice: left, right, tie or skip. To change an answer, append another line for the same pair: the last one counts.
Optional too: flaws (a list of texts), created_at (a time with its zone). Parquet tables of verdicts are read as well.
"""


def shown_left(seed: int, pair_id: str) -> str:
    """Which rollout, a or b, stands on the left of the item; recomputed when answers come back."""
    return side(seed, pair_id)


def blind_items(pairs: pa.Table, selection: pa.Table, seed: int) -> pa.Table:
    """An items table of the drawn pairs, in random order."""
    drawn = selection.filter(pc.field("drawn"))["pair_id"].combine_chunks()
    wanted = pairs.filter(pc.is_in(pairs["pair_id"], value_set=drawn)).select(
        ["pair_id", "prompt", "response_a", "response_b"]
    )
    rows = []
    for pair in wanted.to_pylist():
        a_left = shown_left(seed, pair["pair_id"]) == "a"
        left, right = ("response_a", "response_b") if a_left else ("response_b", "response_a")
        rows.append({"pair_id": pair["pair_id"], "prompt": pair["prompt"], "left": pair[left], "right": pair[right]})
    rows.sort(key=lambda row: (unit(seed, "item order", row["pair_id"]), row["pair_id"]))
    return pa.Table.from_pylist(rows, schema=ITEMS.schema)


def publish(items: pa.Table, inbox: Path) -> Path:
    """Put the items where auditors find them, a folder of their own below the inbox; doing it again changes nothing."""
    folder = inbox / "items" / short_id(*sorted(items["pair_id"].to_pylist()))
    write_table(folder / "items.parquet", ITEMS, items)
    # ASCII escapes keep hostile text (bidirectional overrides, line separators) visible and in one line, unchanged.
    write_text(folder / "items.jsonl", "".join(json.dumps(row) + "\n" for row in items.to_pylist()))
    write_text(folder / "HOW-TO.txt", _HOW_TO.format(inbox=inbox))
    return folder

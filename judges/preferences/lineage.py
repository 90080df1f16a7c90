"""Where a preferences file comes from, as metadata of its schema: `rlaif.version`, `method`, `judges`, `lineage`.

`rlaif.judges` is JSON, fingerprint -> name, of all judges with a vote. `rlaif.lineage` is JSON, input -> digest of what
that input says. Two runs that asked the same and were told the same have the same lineage, and so the same bytes, even
though their votes took other times and came in another order; the hashes of the very files are in the manifest.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Mapping, Sequence

import pyarrow as pa
import pyarrow.csv

from store.manifest import code_version

SAYS: dict[str, Sequence[str]] = {
    "votes": ("pair_id", "fingerprint", "order", "status", "winner", "p_a"),
    "pairs": ("pair_id", "prompt_id", "rollout_a", "rollout_b", "prompt", "response_a", "response_b", "group"),
    "verdicts": ("pair_id", "auditor", "winner", "supersedes"),
    "gold": ("pair_id", "p_a"),
}
"""The columns that what is made of a table depends on."""


def metadata(method: str, votes: pa.Table, inputs: Mapping[str, pa.Table]) -> dict[str, str]:
    """`inputs`: name in SAYS -> table. See the module."""
    known = votes.select(["fingerprint", "judge"]).group_by(["fingerprint", "judge"]).aggregate([]).to_pylist()
    return {
        # Without the commit: a checkout and an installed package of one version write the same bytes.
        "rlaif.version": code_version().split("+")[0],
        "rlaif.method": method,
        "rlaif.judges": json.dumps({row["fingerprint"]: row["judge"] for row in known}, sort_keys=True),
        "rlaif.lineage": json.dumps({name: digest(table, SAYS[name]) for name, table in sorted(inputs.items())}),
    }


def digest(table: pa.Table, columns: Sequence[str]) -> str:
    """SHA-256 of the rows in these columns, whatever their order."""
    rows = table.select(list(columns)).sort_by([(name, "ascending") for name in columns])
    sink = _Hash()
    pyarrow.csv.write_csv(rows, sink)
    return sink.hash.hexdigest()


class _Hash(io.RawIOBase):
    """A file that keeps nothing of what is written but its hash."""

    def __init__(self) -> None:
        super().__init__()
        self.hash = hashlib.sha256()

    def writable(self) -> bool:
        return True

    def write(self, data: object) -> int:
        view = memoryview(data)  # type: ignore[arg-type]
        self.hash.update(view)
        return view.nbytes

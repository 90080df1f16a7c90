"""How fast a million votes become labels and preferences, and tables files (part of labels.py).

Runs in a process of its own, so that its peak memory is this case's: `python benchmarks/labels_speed.py FOLDER`.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

sys.path[0] = str(Path(__file__).resolve().parent.parent)

from benchmarks.simulated_panels import gold_table, panel, votes_table  # noqa: E402
from judges.aggregation.bradley_terry import rate_rollouts  # noqa: E402
from judges.aggregation.labels import checked_votes  # noqa: E402
from judges.aggregation.methods import METHODS  # noqa: E402
from judges.preferences import make_preferences  # noqa: E402
from store.schemas import PAIRS, PREFERENCES, VOTES  # noqa: E402
from store.tables import read_table, write_table  # noqa: E402

PAIRS_COUNT, JUDGES, PER_PROMPT = 100_000, 5, 6
"""Six pairs of four responses a prompt."""


def main(folder: Path) -> None:
    world = panel(1, "noisy", PAIRS_COUNT, JUDGES)
    world.p_a[np.isnan(world.p_a)] = 0.5
    votes, pairs = votes_table(world), pairs_of(world.truth)
    gold = gold_table(world, np.arange(100))
    seconds: dict[str, float] = {}
    before = peak()

    def timed(name: str, work: Callable[[], pa.Table]) -> pa.Table:
        begin = time.perf_counter()
        result = work()
        seconds[name] = time.perf_counter() - begin
        return result

    votes, _ = timed("check", lambda: checked_votes(votes, pairs))
    for name in METHODS:
        labels = timed(name, lambda name=name: METHODS[name]().fit(votes, gold).predict(votes))  # type: ignore[misc]
        if name == "stacked":
            kept = labels
    made = timed("preferences", lambda: make_preferences(pairs, kept))
    timed("ratings", lambda: rate_rollouts(pairs, kept))
    whole = sum(seconds[name] for name in ("check", "stacked", "preferences", "ratings"))
    files = {}
    for name, table, data in (("votes", VOTES, votes), ("preferences", PREFERENCES, made.table)):
        files[name] = against_pyarrow(folder / f"{name}.parquet", table, data)
    print(
        json.dumps(
            {
                "votes": votes.num_rows,
                "pairs": pairs.num_rows,
                "seconds": seconds,
                "check + stacked + preferences + ratings": whole,
                "peak_mb": peak(),
                "peak_before_mb": before,
                "files": files,
            }
        )
    )


def pairs_of(truth: np.ndarray) -> pa.Table:
    """PAIRS of four responses a prompt, each of the six pairs once; texts of a few hundred characters."""
    i = np.arange(len(truth))
    prompt, which = i // PER_PROMPT, i % PER_PROMPT
    first, second = np.array([0, 0, 0, 1, 1, 2])[which], np.array([1, 2, 3, 2, 3, 3])[which]
    text = "words of a response that is neither short nor long "
    name = np.char.add("x", np.char.zfill(prompt.astype(str), 7))
    rollouts = [np.char.add(np.char.add(name, "-"), side.astype(str)) for side in (first, second)]
    columns = {
        "pair_id": np.char.zfill(i.astype(str), 7),
        "prompt_id": name,
        "prompt": np.char.add("a question about ", name),
        "rollout_a": rollouts[0],
        "rollout_b": rollouts[1],
        "response_a": pa.array([f"{text * 5}{one}" for one in rollouts[0].tolist()]),
        "response_b": pa.array([f"{text * 5}{one}" for one in rollouts[1].tolist()]),
        "group": np.full(len(i), "plain"),
        "split": np.full(len(i), "train"),
        "reference": pa.nulls(len(i), pa.string()),
    }
    return pa.table(columns).select(PAIRS.schema.names).cast(PAIRS.schema)


def against_pyarrow(path: Path, table: object, data: pa.Table, repeats: int = 5) -> dict[str, float]:
    """Speed of our writer and reader over pyarrow's own, with the same codec: the best of some runs each, taken by
    turns so that a busy machine slows both alike."""
    raw = path.with_suffix(".raw.parquet")
    ours: dict[str, list[float]] = {"write": [], "read": []}
    bare: dict[str, list[float]] = {"write": [], "read": []}
    for _ in range(repeats):
        for kept, name, work in (
            (bare, "write", lambda: pq.write_table(data, raw, compression="zstd")),
            (ours, "write", lambda: write_table(path, table, data)),  # type: ignore[arg-type]
            (bare, "read", lambda: pq.read_table(raw)),
            (ours, "read", lambda: read_table(path, table)),  # type: ignore[arg-type]
        ):
            begin = time.perf_counter()
            work()
            kept[name].append(time.perf_counter() - begin)
    figures = {name: min(bare[name]) / min(ours[name]) for name in ours}
    both = (min(bare["write"]) + min(bare["read"])) / (min(ours["write"]) + min(ours["read"]))
    return {**figures, "both": both, "ours_s": min(ours["write"]) + min(ours["read"])}


def peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    main(Path(sys.argv[1]))

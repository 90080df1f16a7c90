"""Chooses the before/after samples: the largest gains, a few of each group drawn by a hash, and the worst losses.

The choice depends only on the table. The largest gains alone would flatter the policy, so each prompt is shown once and
the middle part is drawn by the hash of its id, which knows nothing of the outcome.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import pandas as pd

from flows.report.measures import hash_order
from flows.report.values import real

BEST, EACH_GROUP, WORST, MAX_GROUPS = 3, 1, 3, 8


@dataclass(frozen=True)
class Response:
    """One side of a sample. `oracle` in 0..1; `reasons` says what the oracle deducted."""

    text: str
    oracle: float | None
    reasons: str | None
    reward: float | None


@dataclass(frozen=True)
class Sample:
    """Reference and policy on one prompt. `win_probability`: the panel's, of the policy's response."""

    prompt_id: str
    prompt: str
    group: str
    split: str
    reference: Response
    policy: Response
    win_probability: float | None
    gain: float | None


@dataclass(frozen=True)
class Choice:
    """The chosen samples. `measure`: what gain is counted in. `compared`, `won`, `lost`: of all comparisons."""

    best: list[Sample]
    drawn: list[Sample]
    worst: list[Sample]
    measure: str
    compared: int
    won: int
    lost: int
    groups_left_out: int

    @property
    def sections(self) -> list[tuple[str, str, list[Sample]]]:
        """Title, what it is, samples."""
        return [
            (
                "Largest gains",
                "The prompts on which the policy improved most: the best case, not the usual one.",
                self.best,
            ),
            (
                "Drawn from each group",
                "Drawn by a hash of the prompt's id, whatever the outcome: the usual case.",
                self.drawn,
            ),
            ("Worst losses", "The prompts on which the policy lost most: what promoting it would cost.", self.worst),
        ]


def choose(responses: pd.DataFrame) -> Choice | None:
    """None where no prompt has a response of both.

    Gain is the difference of the oracle's scores or, where it scored none, the win probability less one half.
    """
    both = _side_by_side(responses)
    if both.empty:
        return None
    oracle = both["oracle_policy"].notna() & both["oracle_reference"].notna()
    if oracle.any():
        measure, both["gain"] = "oracle score", both["oracle_policy"] - both["oracle_reference"]
    else:
        measure, both["gain"] = "win probability above one half", both["win_probability_policy"] - 0.5
    both["order"] = [
        hash_order(f"{prompt}/{sample}") for prompt, sample in zip(both["prompt_id"], both["sample"], strict=True)
    ]
    both = both.sort_values(["gain", "order"], ascending=[False, True], na_position="last", kind="stable")
    used: set[str] = set()
    best = _take(both[both["gain"] > 0], BEST, used)
    worst = _take(both[both["gain"] < 0][::-1], WORST, used)
    groups = [str(name) for name in both["group"].value_counts(sort=False).sort_index().index]
    by_hash = both.sort_values("order", kind="stable")
    drawn = [s for name in groups[:MAX_GROUPS] for s in _take(by_hash[by_hash["group"] == name], EACH_GROUP, used)]
    return Choice(
        best=best,
        drawn=drawn,
        worst=worst,
        measure=measure,
        compared=len(both),
        won=int((both["gain"] > 0).sum()),
        lost=int((both["gain"] < 0).sum()),
        groups_left_out=max(0, len(groups) - MAX_GROUPS),
    )


def _side_by_side(responses: pd.DataFrame) -> pd.DataFrame:
    """One row a prompt and sample index, with the columns of both policies."""
    key = ["prompt_id", "sample"]
    numbers = responses.astype(dict.fromkeys(("oracle", "reward", "win_probability"), "float64"))
    sides = [numbers[numbers["policy"] == name].drop_duplicates(key) for name in ("reference", "policy")]
    shared = ["prompt", "group", "split", "policy"]
    merged: pd.DataFrame = sides[1].merge(sides[0].drop(columns=shared), on=key, suffixes=("_policy", "_reference"))
    return merged


def _take(rows: pd.DataFrame, wanted: int, used: set[str]) -> list[Sample]:
    taken: list[Sample] = []
    for row in _rows(rows):
        if len(taken) == wanted:
            break
        if str(row["prompt_id"]) not in used:
            used.add(str(row["prompt_id"]))
            taken.append(_sample(row))
    return taken


def _rows(frame: pd.DataFrame) -> Iterable[dict[str, object]]:
    columns = list(frame.columns)
    for values in frame.itertuples(index=False, name=None):
        yield dict(zip(columns, values, strict=True))


def _sample(row: dict[str, object]) -> Sample:
    return Sample(
        prompt_id=str(row["prompt_id"]),
        prompt=str(row["prompt"]),
        group=str(row["group"]),
        split=str(row["split"]),
        reference=_response(row, "reference"),
        policy=_response(row, "policy"),
        win_probability=real(row["win_probability_policy"]),
        gain=real(row["gain"]),
    )


def _response(row: dict[str, object], side: str) -> Response:
    reasons = row[f"oracle_reasons_{side}"]
    return Response(
        text=str(row[f"response_{side}"]),
        oracle=real(row[f"oracle_{side}"]),
        reasons=reasons if isinstance(reasons, str) and reasons.strip() else None,
        reward=real(row[f"reward_{side}"]),
    )

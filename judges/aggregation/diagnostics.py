"""Unsupervised label models, for looking at a panel and never for labelling it: Dawid-Skene, GLAD, MACE.

Each estimates the judges' skill and the labels from the votes alone, on the assumption that judges err independently
given the truth. Language-model judges share their errors, and then the assumption turns agreement in error into skill:
on LLMBar Dawid-Skene is right on 47 % of the pairs and a majority on 59 %. So what they find is a diagnosis (whom does
the panel's agreement favour, and is it who the gold favours?), and no config can choose one of them to make labels.

    dawid_skene   a confusion matrix a judge (Dawid and Skene 1979)
    glad          a judge's ability times a pair's ease (Whitehill et al. 2009)
    mace          a judge spams or tells the truth (Hovy et al. 2013)

All three by crowd-kit (extra `labels`), with its defaults. A voter is a judge in one order; ties and invalid votes have
no part. Precondition: at least two voters a pair. GLAD and MACE take seconds for thousands of votes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from judges.aggregation.labels import is_valid
from judges.aggregation.names import DIAGNOSTICS
from store.errors import UsageError


@dataclass(frozen=True)
class Diagnosis:
    """`p_a`: columns pair_id and p_a (0..1), the model's belief. `accuracy`: fingerprint -> share of its votes right,
    as the model believes. `votes`: used. `left_out`: ties and invalid ones."""

    name: str
    p_a: pa.Table
    accuracy: dict[str, float]
    votes: int
    left_out: int


def diagnose(votes: pa.Table, name: str) -> Diagnosis:
    """Fit one of DIAGNOSTICS to a VOTES table.

    Raises UsageError for another name, without crowd-kit, and where no vote has a winner.
    """
    if name not in DIAGNOSTICS:
        raise UsageError(f"There is no diagnostic {name!r}: use one of {', '.join(DIAGNOSTICS)}.")
    decided = votes.filter(pc.and_(is_valid(votes), pc.is_valid(votes["winner"])))
    if not decided.num_rows:
        raise UsageError("No vote has a winner: there is nothing to diagnose.")
    data = pd.DataFrame(
        {
            "worker": pc.binary_join_element_wise(decided["fingerprint"], decided["order"], "/").to_pandas(),
            "task": decided["pair_id"].to_pandas(),
            "label": decided["winner"].to_pandas(),
        }
    )
    belief = _model(name)().fit_predict_proba(data)
    of_a = belief["a"] if "a" in belief else pd.Series(0.0, index=belief.index)
    on_vote = of_a.loc[data["task"]].to_numpy()
    right = pd.Series(on_vote).where(data["label"] == "a", 1 - on_vote)
    accuracy = right.groupby(decided["fingerprint"].to_pandas()).mean()
    beliefs = {str(judge): float(share) for judge, share in accuracy.items()}
    of_a = of_a.sort_index()
    table = pa.table({"pair_id": pa.array(of_a.index, pa.string()), "p_a": of_a.to_numpy().clip(0, 1)})
    return Diagnosis(name, table, beliefs, decided.num_rows, votes.num_rows - decided.num_rows)


def _model(name: str) -> Callable[[], Any]:
    try:
        from crowdkit.aggregation import GLAD, MACE, DawidSkene
    except ImportError as error:
        raise UsageError(
            f"The diagnostic {name} needs crowd-kit, which is not installed: pip install 'rlaif[labels]'."
        ) from error
    models: dict[str, Callable[[], Any]] = {"dawid_skene": DawidSkene, "glad": lambda: GLAD(silent=True), "mace": MACE}
    return models[name]

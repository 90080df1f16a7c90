"""How often each auditor is right, from hidden gold and from agreement with the others.

One number an auditor, q in 0..1: the one-coin model (Dawid and Skene 1979 with one accuracy a person; Li and Yu 2014).
The winner z_i of a pair is a or b, each with probability 1/2 before anybody spoke, and auditor k says

    P(v_ik = z_i) = q_k,    q_k ~ Beta(1 + A, 1 + B),    A = 8, B = 2

EM climbs to a maximum of the posterior. Given q, the probability t_i that a is the winner is

    t_i = sigmoid(sum_k (2 v_ik - 1) ln(q_k / (1 - q_k))),    on hidden gold t_i is the known winner;

given t, for an auditor with n_k answers, v = 1 for a and 0 for b,

    q_k = (A + sum_i [v_ik t_i + (1 - v_ik)(1 - t_i)]) / (A + B + n_k)

So without evidence q is 8 right of 10, and with gold alone it is the smoothed share of right answers. A tie (v = 1/2)
is half right: it says nothing about the winner, and whoever says nothing deserves less. Gold that is a tie has no side
to be found and is left out; so is a pair that only one person answered, which tells nothing about that person. The
prior breaks the symmetry between two people who contradict each other always.

Precondition: people err independently. Where they share errors agreement flatters them, which is why gold is fixed in
the model and what the others say is not. No label is decided by this model alone: it weighs people against each other
where they differ.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

import numpy as np
import pyarrow as pa

from audit.verdicts import Verdict, from_table, in_force
from store.errors import UsageError

PRIOR_RIGHT, PRIOR_WRONG = 8.0, 2.0  # A and B
VALUE = {"a": 1.0, "tie": 0.5, "b": 0.0}

_TOLERANCE, _STEPS = 1e-9, 1000


def gold_answers(gold: pa.Table | None) -> dict[str, str]:
    """pair_id -> a, b or tie. Raises UsageError for another winner, and for a pair with two different ones."""
    found: dict[str, str] = {}
    if gold is None:
        return found
    for pair_id, winner in zip(gold["pair_id"].to_pylist(), gold["winner"].to_pylist(), strict=True):
        if winner not in VALUE:
            raise UsageError(f"The gold answer of pair {pair_id!r} is {winner!r}: it must be a, b or tie.")
        if found.setdefault(pair_id, winner) != winner:
            raise UsageError(
                f"The gold has two answers to pair {pair_id!r}, {found[pair_id]} and {winner}: keep the right one."
            )
    return found


def answers_in_force(verdicts: pa.Table) -> list[Verdict]:
    """The verdicts that stand and name a winner or a tie, one an auditor and pair: contradictions are left out.

    Raises UsageError for another winner.
    """
    given: dict[tuple[str, str], list[Verdict]] = defaultdict(list)
    for verdict in in_force(from_table(verdicts)):
        if verdict.winner is None:
            continue
        if verdict.winner not in VALUE:
            raise UsageError(
                f"Verdict {verdict.verdict_id} has the winner {verdict.winner!r}: use a, b, tie, or empty for a skip."
            )
        given[verdict.auditor, verdict.pair_id].append(verdict)
    return [rows[0] for _, rows in sorted(given.items()) if len({row.winner for row in rows}) == 1]


def reliability(verdicts: pa.Table, gold: pa.Table | None = None) -> dict[str, float]:
    """auditor -> q, for everybody with an answer in force; see the module.

    `verdicts`: a verdicts table, hidden gold items among them. `gold`: pair_id and winner of these.
    """
    answers = answers_in_force(verdicts)
    return one_coin(answers, gold_answers(gold))


def one_coin(answers: list[Verdict], gold: Mapping[str, str]) -> dict[str, float]:
    """`answers`: one an auditor and pair, each with a winner. `gold`: pair_id -> a, b or tie."""
    auditors = sorted({row.auditor for row in answers})
    people: dict[str, set[str]] = defaultdict(set)
    for row in answers:
        people[row.pair_id].add(row.auditor)
    # Sorted: the last bits of the sums must not depend on the order in which verdicts arrived.
    telling = sorted(
        (row.pair_id, row.auditor, VALUE[row.winner or "tie"])
        for row in answers
        if (len(people[row.pair_id]) > 1 or row.pair_id in gold) and gold.get(row.pair_id) != "tie"
    )
    prior = PRIOR_RIGHT / (PRIOR_RIGHT + PRIOR_WRONG)
    if not telling:
        return dict.fromkeys(auditors, prior)
    pairs = sorted({pair_id for pair_id, _, _ in telling})
    row_of, column_of = {name: at for at, name in enumerate(pairs)}, {name: at for at, name in enumerate(auditors)}
    i = np.array([row_of[pair_id] for pair_id, _, _ in telling])
    k = np.array([column_of[auditor] for _, auditor, _ in telling])
    v = np.array([value for _, _, value in telling])
    known = np.array([VALUE[gold[pair_id]] if pair_id in gold else np.nan for pair_id in pairs])
    answered = np.bincount(k, minlength=len(auditors))
    q = np.full(len(auditors), prior)
    for _ in range(_STEPS):
        log_odds = np.bincount(i, (2 * v - 1) * np.log(q / (1 - q))[k], minlength=len(pairs))
        t = np.where(np.isnan(known), (1 + np.tanh(log_odds / 2)) / 2, known)
        right = np.bincount(k, v * t[i] + (1 - v) * (1 - t[i]), minlength=len(auditors))
        new = (PRIOR_RIGHT + right) / (PRIOR_RIGHT + PRIOR_WRONG + answered)
        moved = float(np.abs(new - q).max())
        q = new
        if moved < _TOLERANCE:
            break
    return dict(zip(auditors, q.tolist(), strict=True))

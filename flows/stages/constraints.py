"""Constraints of the constitution as reward terms: coefficient * (score - 1), with the score in 0..1 of a judge that
rates single responses, or of a rubric program. A response without fault loses nothing.

A response that the judge could not rate (a failed parse, an error) has no value: it gets nothing from the term, and the
update's metrics count it. Where a judge rates nothing at all, the stage stops: it would train without its constraint.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from judges.backends.base import open_backend
from judges.config import load_judge
from judges.judge import Judge
from judges.ratings import Rollout, inquiry_about_rollouts, is_pointwise, scored
from judges.scoring import Item, score_responses
from rlhf.config import ConstraintTerm, RewardTerm
from rlhf.rewards import Responses, Term
from store.errors import TransientError, UsageError
from store.hashing import short_id

Scorer = Callable[[Sequence[Rollout]], list[float | None]]


@contextmanager
def open_terms(
    terms: Sequence[RewardTerm],
    folders: Sequence[str],
    about: Mapping[str, Mapping[str, Any]],
    seed: int,
    journal: Path | None = None,
) -> Iterator[dict[str, Term]]:
    """name -> term for each constraint among `terms`; the judges stay loaded meanwhile.

    folders: of the judges that were given as constraints. about: prompt_id -> its row of the prompts table. journal: a
    folder that ratings are kept in, so that a stage that was killed does not ask for them again. Raises UsageError
    where a term names a judge that was not given, or that cannot do what its kind says.
    """
    judges = {judge.name: judge for judge in map(load_judge, folders)}
    with ExitStack() as stack:
        found: dict[str, Term] = {}
        for term in terms:
            if isinstance(term, ConstraintTerm):
                if term.judge not in judges:
                    given = ", ".join(sorted(judges)) or "none"
                    raise UsageError(
                        f"The reward term {term.name!r} asks the judge {term.judge!r}; given as constraint: {given}. "
                        "Give its folder as constraint."
                    )
                found[term.name] = _term(term, _scorer(term, judges[term.judge], seed, journal, stack), about)
        yield found


def _term(term: ConstraintTerm, score: Scorer, about: Mapping[str, Mapping[str, Any]]) -> Term:
    def values(responses: Responses) -> Tensor:
        rollouts = []
        for prompt, text in zip(responses.prompts, responses.texts, strict=True):
            row = about[prompt.prompt_id]
            name = short_id(prompt.prompt_id, text)
            rollouts.append(Rollout(name, prompt.prompt_id, prompt.prompt, text, row["group"], row["reference"]))
        scores = score(rollouts)
        if all(value is None for value in scores):
            raise TransientError(f"The judge {term.judge} of the reward term {term.name!r} rated no response at all.")
        known = torch.tensor([float("nan") if value is None else value for value in scores])
        return term.coefficient * (known - 1)

    return values


def _scorer(term: ConstraintTerm, judge: Judge, seed: int, journal: Path | None, stack: ExitStack) -> Scorer:
    if term.kind == "rule":
        score_responses(judge, [])  # refuses a judge that is no program now, and not in the first update
        return lambda rollouts: [score.value for score in score_responses(judge, [_item(one) for one in rollouts])]
    if not is_pointwise(judge):
        raise UsageError(
            f"Judge {judge.name} compares responses and cannot rate one for the reward term {term.name!r}: name a "
            "judge with the mode rating, thumbs or flaws, or a rubric with kind: rule."
        )
    backend = stack.enter_context(closing(open_backend(judge)))

    def rate(rollouts: Sequence[Rollout]) -> list[float | None]:
        unique = {rollout.rollout_id: rollout for rollout in rollouts}
        # A folder for each batch: it is read whole, and a long run rates many.
        folder = journal / short_id(*unique) if journal else None
        ratings = scored(
            judge, inquiry_about_rollouts(judge, list(unique.values())).run(backend, seed=seed, shards=folder)
        )
        by_id = dict(zip(ratings["rollout_id"].to_pylist(), ratings["score"].to_pylist(), strict=True))
        return [by_id.get(rollout.rollout_id) for rollout in rollouts]

    return rate


def _item(rollout: Rollout) -> Item:
    return Item(rollout.prompt, rollout.response, rollout.reference, rollout.group)

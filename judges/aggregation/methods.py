"""The aggregation methods by name, as the config names them."""

from __future__ import annotations

from collections.abc import Callable

from judges.aggregation.labels import Aggregator
from judges.aggregation.majority import MajorityVote
from judges.aggregation.mean import MeanPreference
from judges.aggregation.names import DIAGNOSTICS, not_a_method
from judges.aggregation.stacked import StackedJudges
from judges.aggregation.weighted import SkillWeighted
from store.errors import UsageError

METHODS: dict[str, Callable[[], Aggregator]] = {
    "stacked": StackedJudges,
    "weighted": SkillWeighted,
    "mean": MeanPreference,
    "majority": MajorityVote,
}


def method_of(name: str) -> Aggregator:
    """A new method of that name. Raises UsageError for an unknown one and for an unsupervised label model (law 7)."""
    if name in DIAGNOSTICS:
        raise UsageError(not_a_method(name))
    if name not in METHODS:
        raise UsageError(f"There is no aggregation method {name!r}: use one of {', '.join(METHODS)}.")
    return METHODS[name]()

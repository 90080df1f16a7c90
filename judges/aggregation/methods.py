"""The aggregation methods by name, as the config names them."""

from __future__ import annotations

from collections.abc import Callable

from judges.aggregation.labels import Aggregator
from judges.aggregation.majority import MajorityVote
from judges.aggregation.mean import MeanPreference
from judges.aggregation.stacked import StackedJudges

METHODS: dict[str, Callable[[], Aggregator]] = {
    "mean": MeanPreference,
    "majority": MajorityVote,
    "stacked": StackedJudges,
}

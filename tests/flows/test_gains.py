"""The report's plot of over-optimisation: the judges' gain against the reward model's."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest

from flows.report.sections import training


def round_with(**columns: Any) -> Any:
    return SimpleNamespace(updates=pd.DataFrame(columns) if columns else None)


def test_a_point_for_each_probe() -> None:
    plot = training._gains(
        round_with(update=[0, 1, 2, 3], reward_gain=[0.0, None, 1.5, 2.5], judge_gain=[0.0, None, 0.125, -0.25])
    )
    assert plot is not None
    assert "it goes from 0.0% to -25.0%" in plot.svg
    assert "gain of the reward model" in plot.svg


@pytest.mark.parametrize(
    "columns",
    [{}, {"update": [0, 1]}, {"reward_gain": [0.0, None], "judge_gain": [0.0, None]}],
    ids=["no table", "no probe", "one probe"],
)
def test_no_plot_without_two_probes(columns: dict[str, Any]) -> None:
    assert training._gains(round_with(**columns)) is None

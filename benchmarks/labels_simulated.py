"""Labels on the simulated panels by the shipped code: where its form was chosen and is checked (part of labels.py).

`choose` compares forms of the stack on one set of seeds; `methods` compares the shipped methods on another.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from benchmarks.labels_llmbar import judged, scored
from benchmarks.simulated_panels import REGIMES, gold_table, measured, panel
from judges.aggregation import stacked
from judges.aggregation.methods import METHODS

SIZES = (0, 5, 20, 50, 100)


class Form(NamedTuple):
    """The constants of `judges.aggregation.stacked`."""

    strengths: tuple[float, ...] = stacked.STRENGTHS
    ridges: tuple[float, ...] = stacked.RIDGES
    apart: float = stacked.APART
    with_length: tuple[bool, ...] = stacked.WITH_LENGTH
    temperature_sd: float = stacked.TEMPERATURE_SD


FORMS = {
    "shipped": Form(),
    "no lengths": Form(with_length=(False,)),
    "always lengths": Form(with_length=(True,)),
    "no temperature": Form(temperature_sd=1e-6),
    "temperature, sd 1/2": Form(temperature_sd=0.5),
    "judges apart (K = I)": Form(apart=1.0),
    "half apart": Form(apart=0.5),
    "one model, c 0, r 1, K = I": Form((0.0,), (1.0,), 1.0),
    "one model, c 2, r 2, K = I": Form((2.0,), (2.0,), 1.0),
    "one model, c 2, r 1": Form((2.0,), (1.0,)),
    "c 0, 2, 4": Form((0.0, 2.0, 4.0)),
    "c 2": Form((2.0,)),
    "r 1/4, 1, 4": Form(ridges=(0.25, 1.0, 4.0)),
}


def methods(seeds: range) -> None:
    """The shipped methods on panels that no choice was made on."""
    _compare({name: (lambda name=name: METHODS[name]()) for name in METHODS}, seeds)  # type: ignore[misc]


def choose(seeds: range) -> None:
    """Forms of the stack: single models (prior strength, ridge), and averages of several by evidence."""
    try:
        for name, form in FORMS.items():
            _take(form)
            _compare({name: stacked.StackedJudges}, seeds)
    finally:
        _take(Form())


def _take(form: Form) -> None:
    for constant, value in form._asdict().items():
        setattr(stacked, constant.upper(), value)


def _compare(makers: dict[str, Callable[[], object]], seeds: range) -> None:
    print(f"panels of seeds {seeds.start}..{seeds.stop - 1}; accuracy / log loss / ECE (floor) with so many gold pairs")
    print(f"{'':28s}{'':8s}" + "".join(f"{size:>26d}" for size in SIZES))
    for name, make in makers.items():
        for regime in REGIMES:
            found: dict[int, list[tuple[float, float, float, float]]] = {size: [] for size in SIZES}
            for seed in seeds:
                world = panel(seed, regime)
                votes = measured(world)
                order = np.random.default_rng([seed, 7]).permutation(len(world.truth))
                rest = np.sort(order[max(SIZES) :])
                ids = gold_table(world, np.arange(len(world.truth)))["pair_id"]
                y = (world.truth[rest] + 1) / 2
                for size in SIZES:
                    gold = gold_table(world, np.sort(order[:size])) if size else None
                    fitted = make().fit(votes, gold)  # type: ignore[attr-defined]
                    p = np.clip(scored(fitted.predict(votes), ids)[rest], 1e-3, 1 - 1e-3)
                    one = judged(seed, p, y)
                    loss = -float(np.mean(y * np.log(p) + (1 - y) * np.log(1 - p)))
                    found[size].append((one.accuracy, loss, one.ece, one.floor))
            means = [np.mean(found[size], axis=0) for size in SIZES]
            cells = (f"{100 * a:6.1f}% {loss:5.3f} {e:5.3f} ({f:.3f})" for a, loss, e, f in means)
            print(f"{name:28s}{regime:8s}" + " ".join(cells), flush=True)

"""The kinds of plots on the page, each a function of its data; how they are drawn is the matter of `svg`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from flows.report.measures import Bin, Versus
from flows.report.svg import (
    HUMAN,
    INK,
    MUTED,
    PAPER,
    POLICY,
    REFERENCE,
    STATUS_COLOURS,
    STATUS_LABELS,
    STEPS,
    WARN,
    WIDTH,
    Plot,
    draw,
    grid_along,
    percent_axis,
)
from flows.report.text import number, percent, shorten, significant
from flows.report.values import Estimate, VoteCount


def dots(
    name: str,
    title: str,
    rows: Sequence[tuple[str, Estimate]],
    bar: float | None = 0.5,
    bar_label: str = "",
    separated: int = 0,
) -> Plot:
    """Shares in 0..1 as dots with their intervals, one row a label; a line at `bar`; a gap after `separated` rows."""
    means = [row.mean for _, row in rows]
    lows, highs = _bounds([row for _, row in rows])
    spread = [*lows, *highs, *([bar] if bar is not None else [])]
    places = [index + (0.6 if separated and index >= separated else 0.0) for index in range(len(rows))]

    def paint(_: Figure, axes: Axes) -> None:
        grid_along(axes, "x")
        axes.spines["bottom"].set_visible(False)
        if bar is not None:
            axes.axvline(bar, color=MUTED, linewidth=1.2, dashes=(3, 3))
            if bar_label:
                axes.annotate(
                    bar_label, (bar, 1), (4, 2), xycoords=("data", "axes fraction"), textcoords="offset points",
                    fontsize=10, color=MUTED, va="bottom",
                )  # fmt: skip
        axes.hlines(places, lows, highs, color=POLICY, linewidth=2.6, alpha=0.45)
        axes.plot(means, places, "o", color=POLICY, markersize=7)
        axes.set_yticks(places, [shorten(label, 24) for label, _ in rows])
        axes.tick_params(axis="y", labelcolor=INK)
        axes.set_ylim((places[-1] if places else 0) + 0.6, -0.6)
        margin = 0.06 * max(0.1, max(spread) - min(spread))
        percent_axis(axes, max(-0.02, min(spread) - margin), min(1.02, max(spread) + margin))

    parts = [f"{label} {_spoken(row, percent)}" for label, row in rows]
    height = 40 + 26 * len(rows) + (16 if bar_label else 0) + (14 if separated else 0)
    return draw(name, title, f"{'; '.join(parts)}.", height, paint)


def dumbbells(name: str, title: str, rows: Sequence[Versus]) -> Plot:
    """Reference and policy of each row, with their intervals: open circle and filled circle."""
    places = list(range(len(rows)))

    def paint(_: Figure, axes: Axes) -> None:
        grid_along(axes, "x")
        axes.spines["bottom"].set_visible(False)
        for shift, colour, face, side in (
            (-0.15, REFERENCE, PAPER, [row.reference for row in rows]),
            (0.15, POLICY, POLICY, [row.policy for row in rows]),
        ):
            lows, highs = _bounds(side)
            at = [place + shift for place in places]
            axes.hlines(at, lows, highs, color=colour, linewidth=2.6, alpha=0.45)
            axes.plot(
                [item.mean for item in side], at, "o", color=colour, markerfacecolor=face, markersize=7,
                markeredgewidth=1.8,
            )  # fmt: skip
        axes.set_yticks(places, [shorten(row.label, 24) for row in rows])
        axes.tick_params(axis="y", labelcolor=INK)
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.xaxis.set_major_locator(MaxNLocator(6, steps=STEPS))
        axes.margins(x=0.06)

    parts = [f"{row.label} {_spoken(row.reference, number)} to {_spoken(row.policy, number)}" for row in rows]
    legend = [(REFERENCE, "open", "reference"), (POLICY, "dot", "policy")]
    return draw(name, title, f"Reference to policy: {'; '.join(parts)}.", 40 + 34 * len(rows), paint, legend=legend)


def _bounds(rows: Sequence[Estimate]) -> tuple[list[float], list[float]]:
    return [row.mean if row.low is None else row.low for row in rows], [
        row.mean if row.high is None else row.high for row in rows
    ]


def _spoken(row: Estimate, write: Callable[[float | None], str]) -> str:
    interval = "" if row.low is None or row.high is None else f", interval {write(row.low)} to {write(row.high)}"
    return f"{write(row.mean)}{interval}"


@dataclass(frozen=True)
class Series:
    """One line. `label` is None where the title says it."""

    x: Sequence[float]
    y: Sequence[float]
    label: str | None = None
    colour: str = POLICY
    dots: bool = False


@dataclass(frozen=True)
class Level:
    """A horizontal line with its word; `limit`: it must not be crossed."""

    y: float
    label: str
    limit: bool = False


def lines(
    name: str,
    title: str,
    series: Sequence[Series],
    x_label: str,
    level: Level | None = None,
    marked: tuple[float, str] | None = None,
    as_percent: bool = False,
    compact: bool = False,
    whole_x: bool = True,
) -> Plot:
    """Curves over x, with an optional `level` and a vertical `marked` x with its word. `whole_x`: x counts."""

    def paint(_: Figure, axes: Axes) -> None:
        grid_along(axes, "y")
        if marked is not None:
            axes.axvline(marked[0], color=MUTED, linewidth=1, dashes=(2, 3))
            axes.annotate(
                marked[1], (marked[0], 1), (0, 1), xycoords=("data", "axes fraction"), textcoords="offset points",
                fontsize=10, color=MUTED, ha="center", va="bottom",
            )  # fmt: skip
        for one in series:
            style = "o-" if one.dots or len(one.x) <= 12 else "-"
            axes.plot(one.x, one.y, style, color=one.colour, markersize=4, solid_joinstyle="round")
        if level is not None:
            colour = WARN if level.limit else MUTED
            axes.axhline(level.y, color=colour, linewidth=1.3, dashes=(5, 3))
            axes.annotate(
                level.label, (0, level.y), (3, 3), xycoords=("axes fraction", "data"), textcoords="offset points",
                fontsize=10, color=colour, va="bottom",
            )  # fmt: skip
        axes.margins(x=0.02, y=0.12)
        axes.xaxis.set_major_locator(MaxNLocator(5, steps=STEPS, integer=whole_x))
        axes.yaxis.set_major_locator(MaxNLocator(4, steps=STEPS))
        if as_percent:
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.4g}%"))
        axes.set_xlabel(x_label)

    write = percent if as_percent else significant
    parts = [f"{one.label or 'it'} goes from {write(one.y[0])} to {write(one.y[-1])}" for one in series if len(one.y)]
    alt = f"Over {x_label}, {'; '.join(parts)}." + (f" Line: {level.label}." if level else "")
    legend = [(one.colour, "line", one.label) for one in series if one.label]
    return draw(name, title, alt, 168 if compact else 210, paint, 320 if compact else WIDTH, legend)


def calibration(name: str, title: str, bins: Sequence[Bin]) -> Plot:
    """How sure the reward model is against the judges' soft labels, with the number of pairs under each bin."""
    x, y = [item.predicted for item in bins], np.array([item.labelled for item in bins])
    errors = np.array([1.96 * (item.std_error or 0.0) for item in bins])

    def paint(figure: Figure, axes: Axes) -> None:
        axes.remove()
        upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[3.4, 1])
        grid_along(upper, "y")
        grid_along(lower, "y")
        upper.plot([0.5, 1], [0.5, 1], color=MUTED, linewidth=1.2, dashes=(3, 3))
        upper.annotate("perfect", (1, 1), (-14, -3), textcoords="offset points", fontsize=10, color=MUTED, ha="right")
        upper.vlines(x, y - errors, np.minimum(y + errors, 1), color=POLICY, linewidth=2.6, alpha=0.45)
        upper.plot(x, y, "o-", color=POLICY, markersize=6)
        upper.set_ylabel("judges' label")
        upper.set_ylim(min(0.4, float((y - errors).min()) - 0.03), 1.02)
        middles = [(item.low + item.high) / 2 for item in bins]
        lower.bar(
            middles,
            [item.n for item in bins],
            [0.86 * (item.high - item.low) for item in bins],
            color=POLICY,
            alpha=0.45,
        )
        for middle, item in zip(middles, bins, strict=True):
            lower.annotate(
                f"{item.n:,}",
                (middle, item.n),
                (0, 2),
                textcoords="offset points",
                ha="center",
                fontsize=10,
                color=MUTED,
            )
        lower.set_ylim(0, 1.5 * max(item.n for item in bins))
        lower.set_yticks([])
        lower.set_ylabel("pairs")
        lower.set_xlabel("reward model's P(its favourite)")
        lower.set_xlim(0.48, 1.02)
        for axis in (upper.yaxis, lower.xaxis):
            axis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.0f}%"))

    parts = [f"{percent(item.predicted)} predicted, {percent(item.labelled)} labelled, {item.n} pairs" for item in bins]
    return draw(name, title, f"{'; '.join(parts)}.", 310, paint)


def vote_bars(name: str, title: str, counts: Sequence[tuple[str, VoteCount]]) -> Plot:
    """Each row's attempted votes as shares of the five outcomes; the label stands above its bar."""

    def paint(_: Figure, axes: Axes) -> None:
        axes.grid(visible=False)
        axes.spines["bottom"].set_visible(False)
        for place, (label, votes) in enumerate(counts):
            left = 0.0
            for part, colour in zip(votes.parts, STATUS_COLOURS, strict=True):
                share = part / votes.attempted if votes.attempted else 0.0
                axes.barh(place, share, 0.4, left=left, color=colour, edgecolor=PAPER, linewidth=0.8)
                left += share
            axes.annotate(
                f"{shorten(label, 40)}, {votes.attempted:,}", (0, place - 0.25), (0, 2), textcoords="offset points",
                fontsize=10.5, va="bottom",
            )  # fmt: skip
        axes.set_yticks([])
        axes.set_ylim(len(counts) - 0.65, -0.75)
        percent_axis(axes, 0, 1)

    parts = [
        f"{label}: {', '.join(f'{part:,} {word}' for part, word in zip(votes.parts, STATUS_LABELS, strict=True))}"
        for label, votes in counts
    ]
    legend = [(colour, "box", word) for colour, word in zip(STATUS_COLOURS, STATUS_LABELS, strict=True)]
    return draw(name, title, f"{'; '.join(parts)}.", 44 + 44 * len(counts), paint, legend=legend)


def histogram(name: str, title: str, sources: Sequence[tuple[str, Sequence[float]]], x_label: str) -> Plot:
    """Stacked counts of p_chosen in bins of 0.05, by source."""
    edges = np.linspace(0.5, 1.0, 11)
    heights = [np.histogram(np.clip(values, 0.5, 1.0), edges)[0] for _, values in sources]
    colours = [{"ai": POLICY, "human": HUMAN}.get(source, REFERENCE) for source, _ in sources]

    def paint(_: Figure, axes: Axes) -> None:
        grid_along(axes, "y")
        bottom = np.zeros(len(edges) - 1)
        for colour, height in zip(colours, heights, strict=True):
            axes.bar(edges[:-1] + 0.025, height, 0.043, bottom=bottom, color=colour)
            bottom = bottom + height
        axes.set_xlim(0.495, 1.005)
        axes.set_xlabel(x_label)
        axes.set_xticks([0.5, 0.6, 0.7, 0.8, 0.9, 1.0])
        axes.yaxis.set_major_locator(MaxNLocator(4, steps=STEPS, integer=True))

    parts = [
        f"{source}: {', '.join(f'{int(n)} from {edge:.2f}' for n, edge in zip(height, edges, strict=False))}"
        for (source, _), height in zip(sources, heights, strict=True)
    ]
    legend = [(colour, "box", source) for colour, (source, _) in zip(colours, sources, strict=True)]
    return draw(name, title, f"{'; '.join(parts)}.", 215, paint, legend=legend)

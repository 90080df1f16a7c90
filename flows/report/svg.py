"""How a plot is drawn: inline SVG whose colours are CSS variables of the page, so that one serves light, dark, print.

matplotlib draws with placeholder colours, which `_inline` replaces. Text stays text (selectable, in the page's font).
The same data gives the same bytes: ids are salted with the plot's name, and no metadata is written. Every plot is about
400 units wide, so that it is readable at the width of a phone; wider pages set several side by side.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from io import StringIO

import matplotlib
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from flows.report.text import plain, shorten

_PALETTE = {
    "ink": "#010101",
    "muted": "#010102",
    "rule": "#010103",
    "paper": "#010104",
    "reference": "#010105",
    "policy": "#010106",
    "warn": "#010107",
    "tie": "#010108",
    "abstain": "#010109",
    "parse": "#01010a",
    "error": "#01010b",
    "human": "#01010c",
}
"""Placeholder colours: #010105 becomes var(--reference), which style.css defines once for light and once for dark."""

INK, MUTED, RULE, PAPER = (_PALETTE[name] for name in ("ink", "muted", "rule", "paper"))
REFERENCE, POLICY, WARN, HUMAN = (_PALETTE[name] for name in ("reference", "policy", "warn", "human"))
STATUS_COLOURS = [_PALETTE[name] for name in ("policy", "tie", "abstain", "parse", "error")]
STATUS_LABELS = ["scored", "tie", "abstain", "parse failure", "error"]

_STYLE: dict[str, object] = {
    "svg.fonttype": "none",
    "text.parse_math": False,
    "text.usetex": False,
    "text.color": INK,
    "font.family": "DejaVu Sans",
    "font.size": 11,
    "axes.labelcolor": MUTED,
    "axes.labelsize": 10.5,
    "axes.edgecolor": RULE,
    "axes.linewidth": 1,
    "axes.facecolor": "none",
    "figure.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": RULE,
    "grid.linewidth": 0.8,
    "xtick.color": RULE,
    "ytick.color": RULE,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "xtick.labelsize": 10.5,
    "ytick.labelsize": 10.5,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "lines.linewidth": 1.8,
    "lines.solid_capstyle": "round",
    "figure.constrained_layout.use": True,
}

STEPS = [1, 2, 2.5, 5, 10]
_UNITS_PER_INCH = 72
WIDTH = 400


@dataclass(frozen=True)
class Plot:
    """An SVG to put into the page. `legend`: CSS colour, mark (line, open, dot or box) and word of each series.

    Title and legend are HTML beside the SVG, so that they line up with the page and wrap on a phone.
    """

    title: str
    svg: Markup
    legend: tuple[tuple[str, str, str], ...] = ()


def draw(
    name: str,
    title: str,
    alt: str,
    height: float,
    paint: Callable[[Figure, Axes], None],
    width: float = WIDTH,
    legend: Sequence[tuple[str, str, str]] = (),
) -> Plot:
    """Run `paint` on fresh axes; `height` and `width` in SVG units. The alternative text is the title and `alt`."""
    with matplotlib.rc_context({**_STYLE, "svg.hashsalt": name}), warnings.catch_warnings():
        # A label may need a glyph that matplotlib's font lacks; the reader's browser draws the text, not matplotlib.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        figure = Figure(figsize=(width / _UNITS_PER_INCH, height / _UNITS_PER_INCH))
        paint(figure, figure.subplots())
        text = StringIO()
        figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    names = {colour: name for name, colour in _PALETTE.items()}
    marks = tuple((names[colour], mark, shorten(word, 40)) for colour, mark, word in legend)
    return Plot(title, _inline(text.getvalue(), plain(f"{title}. {alt}")), marks)


def _inline(svg: str, alt: str) -> Markup:
    """Cut what belongs to a file of its own (prologue, sizes, a style for `*`, namespaces) and put the variables in.

    No pattern crosses a "<", so that a label which looks like an attribute can change nothing but itself.
    """
    svg = svg[svg.index("<svg") :]
    box = svg.split('viewBox="', 1)[1].split('"', 1)[0]
    body = svg[svg.index(">") + 1 :]
    body = re.sub(r"<style.*?</style>", "", body, count=1, flags=re.DOTALL)
    body = re.sub(r'<g id="[^"]*"', "<g", body)
    body = re.sub(r"font-family: [^;\"<]*", "font-family: inherit", body)
    body = re.sub(r'\b(?:d|x|y|width|height)="[^"<]*"', lambda found: re.sub(r"(\.\d\d)\d+", r"\1", found[0]), body)
    body = re.sub(r' transform="rotate\(-0 [^"<]*"', "", body)
    body = re.sub(r"\s*\n\s*", "\n", body).replace("xlink:href", "href")
    for name, colour in _PALETTE.items():
        body = body.replace(colour, f"var(--{name})")
    start = Markup('<svg class="plot" viewBox="{}" role="img" aria-label="{}">').format(box, alt)
    return start + Markup(body)  # noqa: S704 - matplotlib escapes the labels in it


def grid_along(axes: Axes, grid: str) -> None:
    """Grid lines at the ticks of one axis only, x or y."""
    axes.grid(visible=False)
    axes.grid(visible=True, axis="x" if grid == "x" else "y")


def percent_axis(axes: Axes, low: float, high: float) -> None:
    """An x axis of shares from `low` to `high`, labelled in percent."""
    axes.set_xlim(low, high)
    axes.xaxis.set_major_locator(MaxNLocator(6, steps=STEPS))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.0f}%"))

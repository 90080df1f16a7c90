"""The report's plots as images of their own, for places that show a picture but no page, such as the Prefect UI."""

from __future__ import annotations

import base64
import re
from collections.abc import Callable, Iterator, Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

from flows.report.data import Round, read_round
from flows.report.sections.evaluation import evaluation
from flows.report.sections.judging import accounting, preferences
from flows.report.sections.training import ppo, reward
from flows.report.svg import Plot

_SECTIONS: dict[str, Callable[[Round], Mapping[str, Any] | None]] = {
    "judge": accounting,
    "aggregate": preferences,
    "reward": reward,
    "ppo": ppo,
    "evaluate": evaluation,
}


def stage_images(round_folder: Path, stage: str) -> list[tuple[str, str]]:
    """(title, data URI of an SVG) of each plot that the report has of `stage`; none for a stage without plots."""
    section = _SECTIONS.get(stage)
    found = section(read_round(round_folder)) if section else None
    return [(plot.title, _data_uri(plot)) for plot in _plots_in(found)]


def _plots_in(value: Any) -> Iterator[Plot]:
    if isinstance(value, Plot):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _plots_in(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _plots_in(item)


def _data_uri(plot: Plot) -> str:
    """A file of its own has no style sheet around it: its colours are the page's light ones, on the page's paper."""
    style = files("flows.report").joinpath("style.css").read_text(encoding="utf-8")
    colours: dict[str, str] = {}
    for name, colour in re.findall(r"--([a-z]+): (#[0-9a-f]{6})", style):
        colours.setdefault(name, colour)
    svg = re.sub(r"var\(--([a-z]+)\)", lambda found: colours[found[1]], str(plot.svg))
    head = f'<svg xmlns="http://www.w3.org/2000/svg" style="background:{colours["paper"]};font-family:sans-serif"'
    svg = svg.replace("<svg", head, 1)
    return "data:image/svg+xml;base64," + base64.b64encode(svg.encode()).decode()

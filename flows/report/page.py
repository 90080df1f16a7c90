"""Puts a round into one HTML page: fills the template with the values of `sections`; the template says how it looks."""

from __future__ import annotations

from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from flows.report import measures, text
from flows.report.data import Round
from flows.report.headline import cards, confidence, lead, story, verdict
from flows.report.samples import choose
from flows.report.sections.audit import audit
from flows.report.sections.evaluation import evaluation
from flows.report.sections.judging import accounting, judges, preferences
from flows.report.sections.operations import provenance, stages
from flows.report.sections.training import ppo, reward

_HERE = Path(__file__).resolve().parent
_MAX_TEXT = 1200
"""Characters of a prompt or response that a sample shows."""
_FILTERS = ("percent", "number", "signed", "significant", "count", "plural", "duration", "memory", "size", "visible")


def render(round_: Round) -> str:
    """The page. The same round gives the same bytes."""
    environment = Environment(
        loader=FileSystemLoader(_HERE),
        autoescape=True,
        finalize=text.finalize,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    for name in _FILTERS:
        environment.filters[name] = getattr(text, name)
    panel = measures.judges(round_)
    page = environment.get_template("template.html.j2").render(
        css=Markup((_HERE / "style.css").read_text(encoding="utf-8")),  # noqa: S704 - our own file
        round=round_,
        title=round_.name.lstrip("0") if round_.name.isdecimal() else round_.name,
        started=min((manifest.started_at for manifest in round_.manifests.values()), default=None),
        verdict=verdict(round_),
        lead=lead(round_),
        story=story(round_),
        cards=cards(round_, panel),
        stages=stages(round_),
        samples=choose(round_.responses) if round_.responses is not None else None,
        max_text=_MAX_TEXT,
        evaluation=evaluation(round_),
        ppo=ppo(round_),
        reward=reward(round_),
        judges=judges(round_, panel),
        accounting=accounting(round_),
        preferences=preferences(round_),
        audit=audit(round_),
        provenance=provenance(round_),
        level=text.percent(confidence(round_), 0),
    )
    # A lone surrogate that slipped past the filters would make the page unwritable as UTF-8.
    return page.encode("utf-8", "replace").decode("utf-8")

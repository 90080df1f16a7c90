"""The judges' prompt files, rendered as the transformers backend renders them."""

from __future__ import annotations

from pathlib import Path

import jinja2

CONFIGS = Path(__file__).resolve().parents[3] / "configs" / "judges"
NAMES = ("tiny-good", "tiny-evaluator", "tiny-middling", "tiny-biased")


def neutralise(text: str) -> str:
    """What the caller does to untrusted text: angle brackets become look-alikes, so that no tag can be closed."""
    return text.replace("<", "‹").replace(">", "›")


class Frame:
    """The prompt template of one judge."""

    def __init__(self, judge: str) -> None:
        text = (CONFIGS / judge / "prompt.jinja").read_text(encoding="utf-8")
        self._template = jinja2.Environment(undefined=jinja2.StrictUndefined, autoescape=False).from_string(text)

    def render(self, prompt: str, first: str, second: str) -> str:
        return self._template.render(
            prompt=neutralise(prompt), first=neutralise(first), second=neutralise(second), principles=[]
        )

    def render_single(self, prompt: str, response: str) -> str:
        """Of a judge that rates single responses."""
        return self._template.render(prompt=neutralise(prompt), response=neutralise(response), principles=[])


def example_frames() -> list[str]:
    """Empty frames of all judges, for the tokenizer to learn."""
    return [Frame(name).render("", "", "") for name in NAMES]

"""Checks of the labels that a judge's answers are made of."""

from __future__ import annotations

from judges.settings import LanguageModelSettings, OpenAISettings


def different(labels: tuple[str, ...], what: str) -> None:
    """Raise ValueError unless the labels differ, letter case aside, and none is empty; `what`: an example of them."""
    folded = [label.strip().casefold() for label in labels]
    if not all(folded) or len(set(folded)) < len(folded):
        raise ValueError(f"answers = {list(labels)}: give {what}, all different and none empty")


def readable_as_tokens(settings: LanguageModelSettings) -> None:
    """Raise ValueError where a label begins another one and nobody can see into how many tokens a model cuts it.

    A model that writes 10 as "1", "0" would say 1 whenever it means 10. Local models are asked for their tokens; of one
    behind a server only the first token of the answer is seen.
    """
    if not isinstance(settings, OpenAISettings):
        return
    labels = [label.strip() for label in settings.options]
    for one in labels:
        longer = next((other for other in labels if other != one and other.startswith(one)), None)
        if longer is not None:
            raise ValueError(
                f"answers: {longer!r} begins with {one!r}, and the model may write it as two tokens, {one!r} the "
                f"first of them: use labels none of which begins another, such as '0' to '9' or 'A' to 'J'"
            )

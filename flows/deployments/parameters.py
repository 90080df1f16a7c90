"""Types of the flows' parameters. Prefect makes its form and the API's checks from them, at deployment.

A judge's name is one of those known when the deployment was registered, so that a misspelt one is refused when a run is
asked for, and not at night when it starts.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Annotated, Any, Literal, Union

from pydantic import AfterValidator, Field, create_model

from flows.specs import STAGES, Input, StageSpec
from judges.config import known_judges, load_judge
from store.config import Config
from store.errors import RlaifError

JUDGES_VARIABLE = "RLAIF_JUDGES"
"""Judge folders of your own for `prefect deploy`, separated as in PATH. `rlaif deploy` has --judge for them."""

_own: ContextVar[tuple[str, ...]] = ContextVar("own", default=())


@contextmanager
def offering(judges: Sequence[str]) -> Iterator[None]:
    """Schemas made in this block offer these judges beside the shipped ones."""
    token = _own.set(tuple(judges))
    try:
        yield
    finally:
        _own.reset(token)


def offered_judges() -> list[str]:
    """What a deployment registered now would accept."""
    named = [name for name in os.environ.get(JUDGES_VARIABLE, "").split(os.pathsep) if name]
    return list(dict.fromkeys([*known_judges(), *named, *_own.get()]))


def _offer(schema: dict[str, Any]) -> None:
    schema["enum"] = offered_judges()


def _loadable(name: str) -> str:
    try:
        load_judge(name)
    except RlaifError as error:
        raise ValueError(str(error)) from error
    return name


JudgeName = Annotated[str, AfterValidator(_loadable), Field(json_schema_extra=_offer)]
Setting = Annotated[str, Field(pattern=r"^[a-z_][a-z0-9_.]*=", description="KEY=VALUE, as rlaif run --set has it")]
WorkspacePath = Annotated[str, Field(min_length=1, description="folder of rounds and registry")]


def _request(spec: StageSpec) -> type[Config]:
    """The stage's inputs and its config as one typed model, told from the others by `stage`."""

    def of(item: Input) -> Any:
        one: Any = JudgeName if item.name in ("judge", "oracle") else str
        kind = list[one] if item.many else one
        if item.required:
            return (kind, Field(description=item.help))
        return (kind | None, Field(None, description=item.help))

    fields: dict[str, Any] = {item.name: of(item) for item in spec.inputs}
    return create_model(
        f"Stage{spec.name.capitalize()}",
        __base__=Config,
        __doc__=spec.help,
        stage=(Literal[spec.name], Field(spec.name)),  # type: ignore[arg-type]
        **fields,
        config=(spec.config, Field(spec.config(), description="the stage's section of a round's config")),
        seed=(int, Field(17, description="of everything random in the stage")),
        out=(Annotated[str, Field(min_length=1)], Field(description="folder to write")),
    )


# Made of a list, which type checkers cannot follow: to them it is any value.
StageRequest: Any = Annotated[
    Union[tuple(_request(spec) for spec in STAGES.values())],  # noqa: UP007
    Field(discriminator="stage"),
]

"""Options that several commands have."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])


def workspace_for(purpose: str) -> Callable[[F], F]:
    """--workspace, or RLAIF_WORKSPACE; `purpose` is what the help says of it."""
    return click.option(
        "--workspace",
        type=click.Path(path_type=Path),
        default=Path("workspace"),
        show_default=True,
        envvar="RLAIF_WORKSPACE",
        help=purpose,
    )


workspace_option = workspace_for("Folder of rounds and registry, or s3://BUCKET/PREFIX.")

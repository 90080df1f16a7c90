"""Tables and lines for people: drawn on a terminal, plain aligned text in a pipe. Untrusted text is made inert."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from flows.report.text import NOTHING, plain, shorten

Cell = str | int | float | None


class Output:
    """Writes to standard output. `console` is replaced in tests."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console()

    def line(self, text: str = "") -> None:
        self.console.print(Text(plain(text)), soft_wrap=True)

    def heading(self, text: str) -> None:
        self.console.print()
        self.console.print(Text(plain(text), style="bold"), soft_wrap=True)

    def table(self, columns: Sequence[str], rows: Sequence[Sequence[Cell]], numbers: Sequence[str] = ()) -> None:
        """`numbers`: the columns that are set to the right. No columns' names: no head."""
        texts = [[NOTHING if cell is None else plain(str(cell)) for cell in row] for row in rows]
        if self.console.is_terminal:
            self._drawn(columns, texts, numbers)
            return
        head = [list(columns)] if any(columns) else []
        widths = [max(map(len, column)) for column in zip(*head, *texts, strict=True)] if head or texts else []
        for row in [*head, *texts]:
            cells = [
                cell.rjust(width) if name in numbers else cell.ljust(width)
                for cell, width, name in zip(row, widths, columns, strict=True)
            ]
            click.echo("  ".join(cells).rstrip())

    def _drawn(self, columns: Sequence[str], rows: Sequence[Sequence[str]], numbers: Sequence[str]) -> None:
        table = Table(show_header=any(columns), header_style="bold")
        for name in columns:
            table.add_column(Text(name), justify="right" if name in numbers else "left", overflow="fold")
        for row in rows:
            table.add_row(*map(Text, row))
        self.console.print(table)


def write_json(value: Any) -> None:
    """Machine-readable: ASCII only, so that no character of an untrusted text reaches a terminal."""
    click.echo(json.dumps(value, indent=2, ensure_ascii=True, allow_nan=False))


def percent(value: float | None, digits: int = 1) -> str:
    return NOTHING if value is None else f"{100 * value:.{digits}f} %"


def between(low: float | None, high: float | None, digits: int = 1) -> str:
    return NOTHING if low is None or high is None else f"{100 * low:.{digits}f} to {100 * high:.{digits}f} %"


def number(value: float | None, digits: int = 3) -> str:
    return NOTHING if value is None else f"{value:.{digits}f}"


def money(value: float | None) -> str:
    """Few digits, but never 0 for what costs something."""
    if value is None:
        return NOTHING
    return f"{value:.2f}" if value == 0 or value >= 0.1 else f"{value:.2g}"


def seconds(value: float | None) -> str:
    if value is None:
        return NOTHING
    return f"{value:.2f} s" if value >= 1 else f"{1000 * value:.3g} ms"


def length(seconds: float) -> str:
    """A time that people wait, in whole seconds or minutes, or in hours."""
    whole = round(seconds)
    return f"{whole} s" if whole < 120 else f"{whole // 60} min" if whole < 7200 else f"{whole / 3600:.1f} h"


def short(text: str | None, limit: int = 160) -> str:
    """One inert line of an untrusted text."""
    return NOTHING if text is None else shorten(text, limit)

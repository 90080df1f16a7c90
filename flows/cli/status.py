"""`rlaif status`: the last round's stages, cost and figures; with --watch as they come."""

from __future__ import annotations

import json
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from flows.cli.options import workspace_option
from flows.cli.output import length, money
from flows.cli.result import print_result
from flows.report.text import plain
from flows.telemetry.status import status as workspace_status
from flows.workspace import Workspace

_STYLES = {"done": "green", "running": "bold", "failed": "red", "killed": "red", "interrupted": "red"}


@click.command()
@workspace_option
@click.option("--json", "as_json", is_flag=True, help="Print one JSON value.")
@click.option("--watch", is_flag=True, help="Stay, and show changes as they come, until the round is finished.")
@click.option("--interval", type=click.FloatRange(0.1), default=2.0, show_default=True, help="Seconds between looks.")
def status(workspace: Path, as_json: bool, watch: bool, interval: float) -> None:
    """Show the last round: its stages, progress, cost, figures, and whether its policy was promoted."""
    if watch:
        _watch(workspace, interval, as_json)
        return
    value = workspace_status(Workspace.view(workspace))
    if as_json:
        click.echo(json.dumps(value, indent=2, ensure_ascii=False))
        return
    if value["round"] is None:
        click.echo(f"{value['workspace']} has no round yet: start one with rlaif run.")
        return
    Console().print(view(value))
    if value["finished"]:
        print_result(value)


def _watch(workspace: Path, interval: float, as_json: bool) -> None:
    """On a terminal a table that is drawn anew; else, or with --json, a line for each change. Ends with the round."""
    console = Console()
    drawn = console.is_terminal and not as_json
    said = ""
    with Live(console=console, auto_refresh=False, transient=False) if drawn else _Lines() as live:
        while True:
            value = workspace_status(Workspace.view(workspace))
            if drawn:
                live.update(view(value), refresh=True)
            else:
                text = json.dumps(value, ensure_ascii=False) if as_json else _line(value)
                if text != said:
                    click.echo(text)
                said = text
            if value["finished"]:
                return
            time.sleep(interval)


class _Lines:
    """Stands in for the live display where lines are printed."""

    def __enter__(self) -> _Lines:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def update(self, renderable: object, *, refresh: bool = False) -> None:
        pass


def view(value: dict[str, Any]) -> Group:
    """The table of stages, and a line about the round."""
    if value["round"] is None:
        return Group(Text(f"{value['workspace']} has no round yet."))
    table = Table("stage", "state", "seconds", "attempts", "", title=f"Round {value['round']}", title_justify="left")
    for name, stage in value["stages"].items():
        seconds = "-" if stage["seconds"] is None else f"{stage['seconds']:.1f}"
        state = Text(stage["state"], style=_STYLES.get(stage["state"], ""))
        table.add_row(name, state, seconds, str(stage["attempts"]), Text(plain(_told(stage))))
    return Group(table, Text(plain(_about(value))))


def _told(stage: dict[str, Any]) -> str:
    """What a running stage is at, or what a waiting one waits for."""
    if stage["state"] == "waiting":
        return f"until {_clock(stage['until'])}: {stage['said']}"
    progress = stage.get("progress")
    if not progress:
        return ""
    left = progress["seconds_left"]
    rest = "" if left is None else f", {length(left)} left"
    return f"{progress['what']} {progress['done']}/{progress['total']} {progress['note']}".rstrip() + rest


def _about(value: dict[str, Any]) -> str:
    if value["finished"]:
        state = "finished"
    elif value["alive"]:
        state = "running" if value["eta_s"] is None else f"running, {length(value['eta_s'])} left"
    else:
        waits = any(stage["state"] == "waiting" for stage in value["stages"].values())
        state = "waits for people" if waits else "not running: go on with rlaif run"
    return f"{state}; cost of judges so far {money(value['cost'])}; champion {value['champion'] or 'none'}"


def _line(value: dict[str, Any]) -> str:
    """For a pipe: what changes from look to look."""
    if value["round"] is None:
        return "no round yet"
    stages = {name: stage for name, stage in value["stages"].items() if stage["state"] not in ("pending", "skipped")}
    last = next(reversed(stages), None)
    what = f"{last} {stages[last]['state']} {plain(_told(stages[last]))}".rstrip() if last else "not begun"
    return f"round {value['round']}: {what}; {_about(value)}"


def _clock(text: str | None) -> str:
    if text is None:
        return "somebody answers"
    return datetime.fromisoformat(text).astimezone(UTC).strftime("%Y-%m-%d %H:%M UTC")

"""`rlaif run`, `rlaif status` and `rlaif report`."""

from __future__ import annotations

import json
import time
from contextvars import copy_context
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from flows.cli.display import BarProgress, TerminalWatcher
from flows.config import RoundConfig
from flows.load import change, load_round
from flows.memory import PeakMemory
from flows.plan import plan_round
from flows.status import round_status
from flows.status import status as workspace_status
from flows.watch import watcher
from flows.workspace import Round, Workspace
from store.errors import UsageError

_workspace = click.option(
    "--workspace",
    type=click.Path(path_type=Path),
    default=Path("workspace"),
    show_default=True,
    envvar="RLAIF_WORKSPACE",
    help="Folder of rounds and registry.",
)


@click.command()
@click.argument("config", required=False)
@_workspace
@click.option(
    "--set", "settings", multiple=True, metavar="KEY=VALUE", help="Change a config key, such as ppo.updates=20."
)
@click.option("--wait", is_flag=True, help="Stay while people audit, instead of ending until the next rlaif run.")
@click.option(
    "--override-gate", "reason", metavar="REASON", help="Train although the judges did not pass the gate, and say why."
)
def run(config: str | None, workspace: Path, settings: tuple[str, ...], wait: bool, reason: str | None) -> None:
    """Run a round: go on with an unfinished one, else start the next from the champion.

    CONFIG is a YAML file or the name of a shipped one (demo, gpu). Without it the last round's config is used, and
    demo in an empty workspace. Stages that are complete for their inputs and config are not run again.
    """
    # The config is checked before anything is written, the workspace itself included.
    last = Workspace(workspace).last_round()
    chosen = override_gate(_choose_config(last, config, settings), last, reason)
    space = Workspace.create(workspace)
    with space.locked():
        round_ = _choose_round(space, chosen)
        _run_round(space, round_, wait)
    value = round_status(round_)
    _print_result(value)


def _choose_config(last: Round | None, config: str | None, settings: tuple[str, ...]) -> RoundConfig:
    if config is None and last is not None:
        return change(last.config, settings)
    return load_round(config or "demo", settings)


def override_gate(config: RoundConfig, last: Round | None, reason: str | None) -> RoundConfig:
    """The config with the reason to go on past the judges' gate: the one given now, or given before for this round.

    It holds for one round: the next one starts without it. Raises UsageError for an empty reason.
    """
    if reason is not None and not reason.strip():
        raise UsageError("--override-gate needs a reason, which the journal and the report keep: give one.")
    own, before = config.aggregate.gate.override, last.config.aggregate.gate.override if last else None
    if reason is None:
        reason = own
        if last is not None and last.finished and own == before:
            reason = None
        elif last is not None and not last.finished and own is None:
            reason = before
    gate = config.aggregate.gate.model_copy(update={"override": reason})
    return config.model_copy(update={"aggregate": config.aggregate.model_copy(update={"gate": gate})})


def _choose_round(space: Workspace, config: RoundConfig) -> Round:
    last = space.last_round()
    if last is None or last.finished:
        new = space.begin_round(config)
        _tell_override(new, config, None)
        return new
    if config != last.config:
        last.journal.write("config_changed")
        _tell_override(last, config, last.config.aggregate.gate.override)
        last.set_config(config)
    return last


def _tell_override(round_: Round, config: RoundConfig, before: str | None) -> None:
    reason = config.aggregate.gate.override
    if reason is not None and reason != before:
        round_.journal.write("gate_overridden", reason=reason)


def _run_round(space: Workspace, round_: Round, wait: bool) -> None:
    """Raises WaitingError, whose sentence says what for, where the round waits for people."""
    from flows.prefect_api import prefect_api, quiet_prefect, wait_for_history

    home = space.root / "prefect"
    quiet_prefect(home)
    console = Console(stderr=True)
    console.print(f"Round {round_.number} in {space.root}", highlight=False)
    started = time.monotonic()
    with PeakMemory() as memory, BarProgress() as bars:
        bars("prefect API", 0, 1, "starting")
        with prefect_api(home):
            from flows.round import round_flow

            bars.clear()
            stages = [step.stage for step in plan_round(round_)]
            watching = TerminalWatcher(bars)
            watcher.set(watching)
            flow_run_id = copy_context().run(round_flow, str(space.root), round_.number, wait)
            waits = watching.waits
            wait_for_history(str(flow_run_id), stages.index(waits[0]) + 1 if waits else len(stages) + 1)
    if waits:
        raise waits[1]
    seconds = round(time.monotonic() - started, 1)
    round_.journal.write("round_finished", seconds=seconds, peak_rss_mb=memory.peak_mb)


def _print_result(value: dict[str, Any]) -> None:
    metrics = value["metrics"]
    table = Table(title=f"Round {value['round']}", title_justify="left", show_header=False)
    table.add_column(style="bold")
    table.add_column(justify="right")

    def row(name: str, text: str | None) -> None:
        table.add_row(name, text if text is not None else "-")

    def number(key: str, digits: int = 3) -> str | None:
        figure = metrics[key]
        return None if figure is None else f"{figure:.{digits}f}"

    row("expected reward, reference", number("expected_reward_reference"))
    row("expected reward, policy", number("expected_reward_policy"))
    if metrics["win_rate"] is not None:
        interval = f"[{metrics['win_rate_low']:.3f}, {metrics['win_rate_high']:.3f}]"
        row("win rate over the reference", f"{metrics['win_rate']:.3f} {interval.replace('[', chr(92) + '[')}")
    row("KL to the reference (nats)", number("kl", 2))
    row("reward model accuracy", number("reward_model_accuracy"))
    for judge, accuracy in metrics["judge_accuracy"].items():
        row(f"judge {judge}, right on gold", None if accuracy is None else f"{accuracy:.3f}")
    votes = metrics["votes"] or {}
    row("votes", ", ".join(f"{count} {name}" for name, count in votes.items()) or None)
    row("promoted", "yes" if metrics["promoted"] else "no")
    row("seconds", number("seconds", 0))
    row("peak memory (MiB)", number("peak_rss_mb", 0))
    console = Console(width=max(Console().width, 100))
    console.print(table)
    console.print(f"{metrics['promotion_reason']}", highlight=False, markup=False, soft_wrap=True)
    console.print(f"Report: {value['report']}", highlight=False, markup=False, soft_wrap=True)


@click.command()
@_workspace
@click.option("--json", "as_json", is_flag=True, help="Print one JSON value.")
def status(workspace: Path, as_json: bool) -> None:
    """Show the last round: its stages, figures, and whether its policy was promoted."""
    value = workspace_status(Workspace.existing(workspace))
    if as_json:
        click.echo(json.dumps(value, indent=2, ensure_ascii=False))
        return
    if value["round"] is None:
        click.echo(f"{value['workspace']} has no round yet: start one with rlaif run.")
        return
    table = Table("stage", "state", "seconds", "attempts", title=f"Round {value['round']}", title_justify="left")
    for name, stage in value["stages"].items():
        seconds = "-" if stage["seconds"] is None else f"{stage['seconds']:.1f}"
        table.add_row(name, stage["state"], seconds, str(stage["attempts"]))
    Console().print(table)
    if value["finished"]:
        _print_result(value)


@click.command()
@_workspace
@click.option("--round", "number", type=int, help="Round to report on; the last one if not given.")
@click.option("--out", type=click.Path(path_type=Path), help="File to write; report.html of the round if not given.")
def report(workspace: Path, number: int | None, out: Path | None) -> None:
    """Write a round's report, one HTML file, and print its path. Works on an unfinished round too."""
    from flows.report import build_report

    rounds = Workspace.existing(workspace).rounds()
    wanted = [round_ for round_ in rounds if number in (None, round_.number)]
    if not wanted:
        known = ", ".join(str(round_.number) for round_ in rounds) or "none"
        raise UsageError(f"There is no round {number if number is not None else ''} in {workspace}, it has {known}.")
    last = wanted[-1]
    click.echo(build_report(last.folder, out or last.folder / "report.html"))

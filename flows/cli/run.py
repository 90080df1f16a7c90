"""`rlaif run` and `rlaif report`."""

from __future__ import annotations

import time
from contextvars import copy_context
from importlib import import_module
from pathlib import Path

import click
from rich.console import Console

from flows.cli.display import BarProgress, TerminalWatcher
from flows.cli.forecast import show_forecast
from flows.cli.options import workspace_option
from flows.cli.result import print_result
from flows.launch.begin import choose_config, choose_round, override_gate
from flows.launch.dry_run import draft
from flows.launch.redo import redo_from
from flows.plan import plan_round
from flows.processes.memory import PeakMemory
from flows.telemetry.logs import json_log
from flows.telemetry.status import round_status
from flows.telemetry.watch import watcher
from flows.workspace import Round, Workspace
from store.errors import UsageError


@click.command()
@click.argument("config", required=False)
@workspace_option
@click.option(
    "--set", "settings", multiple=True, metavar="KEY=VALUE", help="Change a config key, such as ppo.updates=20."
)
@click.option("--wait", is_flag=True, help="Stay while people audit, instead of ending until the next rlaif run.")
@click.option(
    "--override-gate", "reason", metavar="REASON", help="Train although the judges did not pass the gate, and say why."
)
@click.option("--from", "redo", metavar="STAGE", help="Make this stage of the last round, and all after it, again.")
@click.option("--dry-run", is_flag=True, help="Only say what would run, why, and what it would cost; write nothing.")
@click.option("--json", "as_json", is_flag=True, help="With --dry-run: print one JSON value.")
def run(
    config: str | None,
    workspace: Path,
    settings: tuple[str, ...],
    wait: bool,
    reason: str | None,
    redo: str | None,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Run a round: go on with an unfinished one, else start the next from the champion.

    CONFIG is a YAML file or the name of a shipped one (demo, gpu, overoptimised). Without it the last round's config
    is used, and demo in an empty workspace. Stages that are complete for their inputs and config are not run again.
    """
    # The config is checked before anything is written, the workspace itself included.
    last = Workspace(workspace).last_round()
    asked = choose_config(last, config, settings)
    chosen = override_gate(asked, last, reason)
    if dry_run:
        show_forecast(Workspace(workspace.resolve()).fetched(), chosen, redo, as_json)
        return
    if as_json:
        raise UsageError("--json goes with --dry-run; for the figures of a round see rlaif status --json.")
    if redo is not None:
        draft(Workspace(workspace), chosen, redo)
    space = Workspace.create(workspace)
    with space.locked():
        if redo is not None and last is not None:
            redo_from(last, redo)
            chosen = override_gate(asked, last, reason)
        round_ = choose_round(space, chosen)
        _run_round(space, round_, wait)
    value = round_status(round_)
    print_result(value)


def _run_round(space: Workspace, round_: Round, wait: bool) -> None:
    """Raises WaitingError, whose sentence says what for, where the round waits for people."""
    from flows.prefect_api import prefect_api, quiet_prefect, wait_for_history

    home = space.root / "prefect"
    quiet_prefect(home)
    lines = json_log()
    if lines is None:
        Console(stderr=True).print(f"Round {round_.number} in {space.root}", highlight=False)
    started = time.monotonic()
    with PeakMemory() as memory, BarProgress() as bars:
        bars("prefect API", 0, 1, "starting")
        # Loading Prefect takes seconds too; what that reads of the environment is read again once the server is there.
        with prefect_api(home, meanwhile=lambda: import_module("flows.round")):
            from flows.round import round_flow

            bars.clear()
            stages = [step.stage for step in plan_round(round_)]
            watching = lines or TerminalWatcher(bars)
            watcher.set(watching)
            flow_run_id = copy_context().run(round_flow, str(space.root), round_.number, wait)
            waits = watching.waits
            wait_for_history(str(flow_run_id), stages.index(waits[0]) + 1 if waits else len(stages) + 1)
    if waits:
        raise waits[1]
    seconds = round(time.monotonic() - started, 1)
    round_.journal.write("round_finished", seconds=seconds, peak_rss_mb=memory.peak_mb)


@click.command()
@workspace_option
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

"""`rlaif deploy` and `rlaif serve`: rounds that run by themselves. `rlaif retain` and `rlaif look`: what the schedule
calls beside rounds, by hand."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import nullcontext
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import click

from flows.cli.display import BarProgress
from flows.cli.options import workspace_option
from flows.cli.output import Output, write_json
from flows.config import RoundConfig
from flows.inspection.monitor import look as look_at_champion
from flows.inspection.monitor import looks
from flows.load import find_config, load_round
from flows.retention import Retention, apply, removals
from flows.workspace import Workspace
from judges.config import load_judge
from store.errors import UsageError
from store.resources import CONFIGS

if TYPE_CHECKING:
    from flows.deployments.registry import Plan

F = TypeVar("F", bound=Callable[..., Any])
_NEVER = "never"


def _what(function: F) -> F:
    """The options that say what is registered."""
    options = (
        click.argument("config", required=False),
        workspace_option,
        click.option("--name", help="Name of the deployments  [default: the workspace folder's]."),
        click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="Change a config key."),
        click.option("--cron", default="0 2 * * *", show_default=True, help="When a round runs; never: by hand."),
        click.option("--drift-cron", default="0 6 * * *", show_default=True, help="When judges are asked again."),
        click.option("--retain-cron", default="0 5 * * 0", show_default=True, help="When old weights are removed."),
        click.option("--sample-minutes", type=click.IntRange(0), default=60, show_default=True, help="0: never."),
        click.option("--timezone", default="UTC", show_default=True, help="Of the times, such as Europe/Berlin."),
        click.option("--quota/--no-quota", default=True, show_default=True, help="Go on when people have answered."),
        click.option("--judge", "judges", multiple=True, help="Judge folder that runs may name; once for each."),
    )
    for option in reversed(options):
        function = option(function)
    return function


def _plan(
    config: str | None,
    workspace: Path,
    name: str | None,
    settings: tuple[str, ...],
    cron: str,
    drift_cron: str,
    retain_cron: str,
    sample_minutes: int,
    timezone: str,
    quota: bool,
    judges: tuple[str, ...],
    pool: str | None = None,
) -> Plan:
    """Everything is checked here, before a server hears of it."""
    from flows.deployments.registry import Plan

    chosen = _config(config, workspace, settings)
    _check_zone(timezone)
    for value, option in ((cron, "--cron"), (drift_cron, "--drift-cron"), (retain_cron, "--retain-cron")):
        _check_cron(value, option)
    named = [str(load_judge(judge).folder) for judge in judges]
    own = [judge for judge in [*chosen.judges, *chosen.evaluation_judges] if os.sep in judge]
    return Plan(
        workspace=workspace.absolute(),
        config=_lasting(config),
        settings=settings,
        name=name,
        cron=_or_none(cron),
        drift_cron=_or_none(drift_cron),
        retain_cron=_or_none(retain_cron),
        sample_every=timedelta(minutes=sample_minutes) if sample_minutes else None,
        timezone=timezone,
        on_quota=quota,
        judges=tuple(dict.fromkeys([*named, *own])),
        pool=pool,
    )


def _config(config: str | None, workspace: Path, settings: tuple[str, ...]) -> RoundConfig:
    from flows.launch.begin import choose_config

    if config is None and Workspace(workspace).last_round() is None:
        raise UsageError(f"{workspace} has no round yet, so there is no config to go on with: name one, or `demo`.")
    if config is not None:
        return load_round(config, settings)
    return choose_config(Workspace(workspace).last_round(), None, settings)


def _lasting(config: str | None) -> str | None:
    """A name that means the same wherever the run starts: shipped ones by name, files by their whole path."""
    if config is None:
        return None
    path = find_config(config)
    return path.stem if path.parent == CONFIGS else str(path.resolve())


def _check_zone(name: str) -> None:
    try:
        ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError) as error:
        raise UsageError(f"--timezone {name!r} is no time zone: give one such as Europe/Berlin or UTC.") from error


def _check_cron(value: str, option: str) -> None:
    from prefect.client.schemas.schedules import CronSchedule
    from pydantic import ValidationError

    try:
        if value != _NEVER:
            CronSchedule(cron=value)
    except ValidationError as error:
        raise UsageError(
            f"{option} {value!r} is no cron line: write five fields such as '0 2 * * *', or never."
        ) from error


def _or_none(cron: str) -> str | None:
    return None if cron == _NEVER else cron


@click.command()
@_what
@click.option("--pool", help="Work pool whose workers run it; without it `rlaif serve` does.")
def deploy(**given: Any) -> None:
    """Register the nightly round and what belongs to it on the Prefect server that PREFECT_API_URL names.

    CONFIG is a YAML file or the name of a shipped one; it is read again at each round. Registering again brings the
    deployments up to date. Runs need a process that takes them: a worker of --pool, or rlaif serve.
    """
    from flows.prefect_api import prefect_api, quiet_prefect

    home = Workspace(given["workspace"]).root.absolute() / "prefect"
    quiet_prefect(home)
    plan = _plan(**given)
    if not os.environ.get("PREFECT_API_URL"):
        raise UsageError("PREFECT_API_URL is not set: name the server to register on, or use rlaif serve.")
    with prefect_api(home):
        from flows.deployments.apply import register_all

        _tell(register_all(plan), plan)
    if plan.pool is None:
        click.echo("Nothing takes their runs yet: start rlaif serve with the same options, or give --pool.", err=True)


@click.command()
@_what
@click.option("--port", type=click.IntRange(1, 65535), default=4200, show_default=True, help="Of the local server.")
def serve(port: int, **given: Any) -> None:
    """Register the nightly round and what belongs to it, and run it all from this process, until interrupted.

    For one machine. Without PREFECT_API_URL a Prefect server is started too, with its pages and its history in the
    workspace. CONFIG is a YAML file or the name of a shipped one; it is read again at each round.
    """
    from flows.prefect_api import prefect_api, quiet_prefect

    home = Workspace(given["workspace"]).root.absolute() / "prefect"
    os.environ.setdefault("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "INFO")
    quiet_prefect(home)
    plan = _plan(**given)
    Workspace.create(plan.workspace)
    with prefect_api(home, port) as url:
        from flows.deployments.apply import serve_all

        click.echo(f"Pages of the runs: {url.removesuffix('/api')}")
        serve_all(plan, lambda names: _tell(names, plan))


def _tell(names: list[str], plan: Plan) -> None:
    when = {
        "round": plan.cron,
        "sample": f"every {plan.sample_every}" if plan.sample_every else None,
        "drift": plan.drift_cron,
        "retain": plan.retain_cron,
    }
    rows = [[name, when.get(name.split("/")[0]) or "by hand"] for name in names]
    Output().table(["deployment", f"when ({plan.timezone})"], rows)


@click.command()
@workspace_option
@click.option("--keep-rounds", type=click.IntRange(1), default=5, show_default=True, help="Last rounds kept whole.")
@click.option("--keep-looks-days", type=click.FloatRange(0), default=30, show_default=True, help="Age of looks.")
@click.option("--dry-run", is_flag=True, help="Only show what would go.")
@click.option("--json", "as_json", is_flag=True, help="Machine-readable output.")
def retain(workspace: Path, keep_rounds: int, keep_looks_days: float, dry_run: bool, as_json: bool) -> None:
    """Remove the weights of old rounds. Votes, verdicts, preferences, manifests and every champion stay."""
    space = Workspace.opened(workspace)
    policy = Retention(keep_rounds=keep_rounds, keep_looks_days=keep_looks_days)
    with nullcontext() if dry_run else space.locked(start=False):
        found = removals(space, policy, datetime.now(UTC))
        if not dry_run:
            apply(space, found)
    if as_json:
        write_json([{"path": str(one.path), "mb": one.mb, "why": one.why} for one in found])
        return
    if found:
        rows = [[str(one.path.relative_to(space.root)), f"{one.mb:.1f}", one.why] for one in found]
        Output().table(["output", "MiB", "why"], rows, numbers=("MiB",))
    verb = "Would remove" if dry_run else "Removed"
    click.echo(f"{verb} {len(found)} outputs, {sum(one.mb for one in found):.1f} MiB.")


@click.command()
@workspace_option
@click.option("--prompts", type=click.IntRange(1), default=32, show_default=True, help="Drawn; two responses each.")
@click.option("--judge", "judges", multiple=True, help="Judge, once for each  [default: the last round's].")
def look(workspace: Path, prompts: int, judges: tuple[str, ...]) -> None:
    """Sample a few responses of the champion to held-out prompts and let the panel judge them."""
    space = Workspace.opened(workspace)
    with BarProgress() as progress:
        folder = look_at_champion(space, datetime.now(UTC), prompts, judges, lambda _stage: progress)
    if folder is None:
        raise UsageError(f"{workspace} has no champion yet, so there is nothing to look at: let a round promote one.")
    for name, value in looks(space)[-1].items():
        click.echo(f"{name}: {value}")

"""`rlaif models`, `champion`, `promote`, `rollback` and `export`: the registry of policies."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from flows.cli.options import workspace_option
from flows.cli.output import Output, between, number, write_json
from flows.policies.candidates import candidate
from flows.policies.export import export as export_model
from flows.policies.registry import champions, user
from flows.workspace import Workspace
from store.errors import UsageError

_json = click.option("--json", "as_json", is_flag=True, help="Print one JSON value.")
_by = click.option("--by", help="Who decides; your account, or RLAIF_USER, if not given.")


@click.command()
@workspace_option
@_json
def models(workspace: Path, as_json: bool) -> None:
    """List the policies of all rounds: evaluation, decision, and which one is the champion."""
    space = Workspace.view(workspace)
    entries, current = space.registry.entries(), space.registry.champion()
    rows = []
    for round_ in space.rounds():
        decision = space.registry.decided(round_.number)
        mine = current is not None and current.get("round") == round_.number
        rows.append(
            {
                "round": round_.number,
                "policy": str(round_.stage("ppo") / "policy"),
                "sha256": (decision or {}).get("policy_sha256"),
                "win_rate": (decision or {}).get("win_rate"),
                "promoted": any(e.get("promoted") and e.get("round") == round_.number for e in entries),
                "champion": mine,
                "time": (decision or {}).get("time"),
            }
        )
    if as_json:
        write_json(rows)
        return
    output = Output()
    if not rows:
        output.line(f"{space.root} has no round yet: start one with rlaif run.")
        return
    columns = ("round", "policy", "win rate", "interval", "decided", "")
    output.table(columns, [_model_row(row) for row in rows], numbers=("round", "win rate"))


def _model_row(row: dict[str, Any]) -> list[str]:
    rate = row["win_rate"] or {}
    state = "champion" if row["champion"] else "was champion" if row["promoted"] else ""
    interval = between(rate.get("low"), rate.get("high"))
    return [
        str(row["round"]),
        (row["sha256"] or "-")[:12],
        number(rate.get("mean")),
        interval,
        row["time"] or "-",
        state,
    ]


@click.command()
@workspace_option
@_json
def champion(workspace: Path, as_json: bool) -> None:
    """Show the champion and every decision, promotion and rollback that was made, by whom and why."""
    space = Workspace.view(workspace)
    current, entries = space.champion(), space.registry.entries()
    if as_json:
        write_json({"champion": current, "history": entries, "standing": len(champions(entries))})
        return
    output = Output()
    if current is None:
        output.line("There is no champion: the next round starts from its config's policy.")
    else:
        rate = current.get("win_rate") or {}
        output.line(f"Champion: {current['policy']} (round {current.get('round')})")
        output.line(f"Win rate {number(rate.get('mean'))}, {between(rate.get('low'), rate.get('high'))}")
    rows = [
        [e.get("time"), e["event"], _outcome(e), e.get("round"), e.get("by"), _why(e)] for e in space.registry.entries()
    ]
    if rows:
        output.table(("time", "event", "", "round", "by", "why"), rows)


def _outcome(entry: dict[str, Any]) -> str:
    return "" if entry["event"] == "rollback" else "promoted" if entry.get("promoted") else "kept the champion"


def _why(entry: dict[str, Any]) -> str:
    override = f" (overriding its checks: {entry['override']})" if entry.get("override") else ""
    return f"{entry.get('reason') or ''}{override}"


@click.command()
@click.argument("policy", metavar="ROUND|PATH")
@workspace_option
@click.option("--reason", required=True, help="Why; the registry keeps it.")
@click.option("--override", metavar="REASON", help="Promote although the checks did not pass, and say why.")
@click.option("--evaluation", type=click.Path(path_type=Path), help="evaluation.json of a policy of no round here.")
@_by
def promote(
    policy: str, workspace: Path, reason: str, override: str | None, evaluation: Path | None, by: str | None
) -> None:
    """Make the policy of a round, or a model folder, the champion.

    Refused where a lower bound of its evaluation does not clear the bar of the round's config, or it has none, unless
    --override says why. The next round starts from it.
    """
    space = Workspace.existing(workspace)
    with _writing(space):
        entry = space.registry.promote(candidate(space, policy, evaluation), reason, override, by)
    click.echo(f"{entry['policy']} is the champion now, by {by or user()}.")


@click.command()
@click.argument("number", type=int, required=False, metavar="[ROUND]")
@workspace_option
@click.option("--reason", required=True, help="Why; the registry keeps it.")
@_by
def rollback(number: int | None, workspace: Path, reason: str, by: str | None) -> None:
    """Go back to the champion before the present one, or to that of ROUND. The next round starts from it."""
    space = Workspace.existing(workspace)
    with _writing(space):
        entry = space.registry.rollback(number, reason, by)
    if entry["policy"] is None:
        click.echo("There is no champion now: the next round starts from its config's policy.")
    else:
        click.echo(f"{entry['policy']} of round {entry['round']} is the champion again.")


@click.command()
@click.argument("destination", type=click.Path(path_type=Path), metavar="DEST")
@workspace_option
@click.option("--round", "number", type=int, help="Round whose policy to export; the champion's if not given.")
@click.option("--mlflow", "name", metavar="NAME", help="Register it in MLflow too (MLFLOW_TRACKING_URI) by this name.")
def export(destination: Path, workspace: Path, number: int | None, name: str | None) -> None:
    """Write a policy as a Hugging Face folder with tokenizer, model card and lineage."""
    space = Workspace.existing(workspace)
    entry = _entry(space, number)
    if name is not None:
        from flows.policies.track import need_mlflow

        need_mlflow()
    folder = export_model(entry, destination.resolve())
    click.echo(folder)
    if name is not None:
        from flows.policies.track import register

        click.echo(f"MLflow: {name} version {register(name, folder, entry)}")


def _entry(space: Workspace, number: int | None) -> dict[str, Any]:
    if number is None:
        current = space.champion()
        if current is None:
            raise UsageError(f"{space.root} has no champion: name a round with --round.")
        return current
    found = candidate(space, str(number), None)
    decision = space.registry.decided(number) or {"event": "none", "promoted": False}
    return {**decision, "round": number, "policy": str(found.policy), "policy_sha256": found.sha256}


@contextmanager
def _writing(space: Workspace) -> Iterator[None]:
    """In a bucket only the holder of its lease writes; in a folder the registry's own lock is enough."""
    if space.remote is None:
        yield
        return
    with space.locked():
        yield
        space.remote.push_records()

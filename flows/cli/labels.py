"""`rlaif labels`: what labels were made, and whether the judges behind them still are what they were."""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from flows.cli.display import BarProgress
from flows.cli.options import workspace_for
from flows.cli.output import Output, between, number, percent, write_json
from judges.aggregation.names import DIAGNOSTICS

Figures = Mapping[str, Any]

_WIDEST = 40
"""Characters of the longest bar of a histogram."""


@click.group()
def labels() -> None:
    """Look at labels: what they are made of, and whether their judges drift."""


@labels.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--sway", "swayed", is_flag=True, help="Also how much slot and length sway the votes; reads them again.")
@click.option(
    "--panel", "whole_panel", is_flag=True, help="Also kappa, alpha and AC1 of all judges; reads the votes again."
)
@click.option(
    "--diagnose",
    type=click.Choice(DIAGNOSTICS),
    help="Also whom an unsupervised label model believes; reads the votes again.",
)
@click.option("--json", "as_json", is_flag=True, help="Machine-readable output.")
def report(folder: Path, swayed: bool, whole_panel: bool, diagnose: str | None, as_json: bool) -> None:
    """Show what the stage aggregate made: votes, agreement, weights, confidence, what was dropped, groups, the gate.

    FOLDER is its output: --out of rlaif stage aggregate, or rounds/001/aggregate of a workspace. --panel and --diagnose
    need pip install 'rlaif[labels]'.
    """
    from judges.preferences.report import label_report

    found = label_report(folder)
    if swayed:
        from judges.preferences.sway import sway

        found["sway"] = sway(folder)
    if whole_panel:
        from flows.inspection.panel import panel_agreement

        found["panel"] = panel_agreement(folder)
    if diagnose:
        from flows.inspection.panel import diagnosis

        found["diagnosis"] = diagnosis(folder, diagnose)
    if as_json:
        write_json(found)
    else:
        show_report(Output(), found)


@labels.command()
@workspace_for("Where anchors and earlier answers are kept.")
@click.option("--judge", "judges", multiple=True, help="Judge; those of the last round if not given.")
@click.option(
    "--gold", help="Pairs with known winners, to freeze anchors of at the first time.  [default: the round's]"
)
@click.option("--force", is_flag=True, help="Ask again even where nothing changed, as a server may have.")
@click.option("--since-first", is_flag=True, help="Compare with the first answers, not with those before.")
@click.option("--json", "as_json", is_flag=True, help="Machine-readable output.")
def drift(
    workspace: Path, judges: tuple[str, ...], gold: str | None, force: bool, since_first: bool, as_json: bool
) -> None:
    """Ask judges about a frozen set of pairs again, where they changed, and show which answers flipped."""
    from flows.inspection.drift import drift_of_workspace
    from flows.workspace import Workspace

    space = Workspace.opened(workspace)
    with space.adding(), BarProgress() as progress:
        found = drift_of_workspace(
            space, datetime.now(UTC), judges, gold, force=force, since_first=since_first, progress=progress
        )
    figures = {name: None if one is None else one.to_json() for name, one in found.items()}
    if as_json:
        write_json(figures)
    else:
        show_drift(Output(), figures)


def show_report(out: Output, found: Figures) -> None:
    known = found["gold"]
    out.line(f"Labels of {found['labels']['all']} of {found['pairs']} pairs, method {found['method']}")
    out.line(f"fitted on {known['pairs']} known answers")
    if known["without_votes"] or known["votes_excluded"]:
        out.line(
            f"not used: {known['without_votes'] or 0} gold pairs without a vote, {known['votes_excluded'] or 0} votes "
            f"that are not on gold pairs"
        )
    if known["judges_without"]:
        out.line(f"without any known answer: {', '.join(known['judges_without'])}")
    out.heading("Votes")
    out.table(
        [name.replace("_", " ") for name in found["votes"]],
        [list(found["votes"].values())],
        numbers=list(found["votes"]),
    )
    for reason, count in (found["votes_excluded"] or {}).items():
        if count:
            out.line(f"left out: {count} votes, {reason.replace('_', ' ')}")
    if found["pairs_in_one_order"]:
        out.line(f"{found['pairs_in_one_order']} pairs were judged in one order only by some judge")
    out.heading("Weights of the judges")
    weights = found["weights"] or {}
    if weights:
        out.table(
            ("judge", "weight"), [(name, number(weight)) for name, weight in weights.items()], numbers=("weight",)
        )
    else:
        out.line("equal: nothing was learnt about any of them")
    if found["length_weight"] is not None:
        out.line(f"being twice as long: {number(math.log(2) * found['length_weight'])} log-odds beside the votes")
    if found["agreement"]:
        out.heading("Agreement between judges")
        head = ("judges", "agreement", "95 % interval", "kappa", "95 % interval", "pairs")
        out.table(head, [_agreement(row) for row in found["agreement"]], numbers=("agreement", "kappa", "pairs"))
    if "panel" in found:
        _panel(out, found["panel"])
    if "diagnosis" in found:
        _diagnosis(out, found["diagnosis"])
    if "sway" in found:
        out.heading("What sways the votes, beside the responses")
        what = {"slot": "shown first rather than second", "length": "twice as long"}
        rows_ = [(what[name], number(one["log_odds"]), _range(one)) for name, one in found["sway"].items()]
        out.table(("", "log-odds", "95 % interval"), rows_, numbers=("log-odds",))
    out.heading("Labels")
    labels_ = found["labels"]
    out.line(f"{labels_['of_people']} of people, {labels_['ties']} at exactly one half")
    out.line(
        f"mean entropy {number(labels_['entropy'])} bits, of the judges alone "
        f"{number(labels_['entropy_of_judges'])}; 1 is a coin toss"
    )
    _confidence(out, found["confidence"])
    out.heading("Preferences")
    _preferences(out, found)
    if found["ratings_warning"]:
        out.line(found["ratings_warning"])
    if found["verdicts"]:
        out.heading("Verdicts of people")
        rows = [(name.replace("_", " "), count) for name, count in found["verdicts"].items()]
        out.table(("", "count"), [*rows, ("against the judges", found["people_against_judges"])], numbers=("count",))
        auditors = found["auditors"] or {}
        for auditor, reasons in auditors.get("quarantined", {}).items():
            out.line(f"set aside: {auditor}, {', '.join(reasons)}")
        if auditors.get("verdicts_set_aside"):
            out.line(f"{auditors['verdicts_set_aside']} of {auditors['verdicts']} verdicts with them")
    if found["gate"]:
        from judges.gate import Check, table_of  # loads numpy, which few commands need

        out.heading("The judges' gate")
        out.line(table_of([Check(**check) for check in found["gate"]["checks"]]))
        if found["gate"]["override"]:
            out.line(f"not passed, and overridden: {found['gate']['override']}")


def _agreement(row: Figures) -> tuple[str, str, str, str, str, int]:
    interval = between(row["low"], row["high"])
    # A stage of an older version has kappa without its interval.
    kappa = _range({"low": row.get("kappa_low"), "high": row.get("kappa_high")})
    return " and ".join(row["judges"]), percent(row["agreement"]), interval, number(row["kappa"]), kappa, row["pairs"]


def _panel(out: Output, found: Figures) -> None:
    out.heading("Agreement of the whole panel")
    names = {"cohen": "Cohen's kappa", "fleiss": "Fleiss' kappa", "alpha": "Krippendorff's alpha", "ac1": "Gwet's AC1"}
    rows = [
        (title, number(one["value"]), _range(one), one["items"])
        for name, title in names.items()
        if (one := found[name]) is not None
    ]
    observed = ("votes on one pair that agree", percent(found["observed"]), "", found["items"])
    out.table(("", "value", "95 % interval", "pairs"), [observed, *rows], numbers=("value", "pairs"))


def _diagnosis(out: Output, found: Figures) -> None:
    out.heading(f"Whom {found['model']} believes, from the votes alone")
    rows = [
        (name, percent(one["believed"]), percent(one["gold"]), one["gold_pairs"] or 0)
        for name, one in found["judges"].items()
    ]
    head = ("judge", "votes right, it believes", "by gold", "gold pairs")
    out.table(head, rows, numbers=head[1:])
    same = found["same_winner"]
    out.line(f"the labels' winner on {percent(same['accuracy'])} of {same['n']} pairs; it has no part in them")


def _confidence(out: Output, bins: list[Figures]) -> None:
    most = max((one["labels"] for one in bins), default=0) or 1
    rows = [
        (f"{one['from']:.2f} to {one['to']:.2f}", one["labels"], "#" * round(_WIDEST * one["labels"] / most))
        for one in bins
    ]
    out.table(("likelier winner's p", "labels", ""), rows, numbers=("labels",))


def _preferences(out: Output, found: Figures) -> None:
    if found["preferences"] is None:
        out.line("none: no pairs table was given, so there are no texts; labels.parquet names the rollouts")
        return
    splits = ", ".join(f"{count} {split}" for split, count in found["splits"].items())
    out.line(f"{found['preferences']} preferences: {splits}")
    dropped = {name: count for name, count in found["dropped"].items() if count}
    out.line("dropped: " + (", ".join(f"{n} {name.replace('_', ' ')}" for name, n in dropped.items()) or "none"))
    head = ("group", "pairs", "preferences", "of people", "mean p", "mean agreement")
    rows = [
        (
            group,
            one["pairs"],
            one["preferences"],
            one["human"],
            number(one["mean_confidence"]),
            number(one["mean_agreement"]),
        )
        for group, one in found["by_group"].items()
    ]
    out.table(head, rows, numbers=head[1:])


def show_drift(out: Output, found: Mapping[str, Figures | None]) -> None:
    for name, one in found.items():
        out.heading(name)
        if one is None:
            out.line("asked for the first time: later answers are compared with these")
            continue
        before, now = one["before"], one["now"]
        changed = "another fingerprint" if one["fingerprint_changed"] else "the same fingerprint"
        out.line(f"{now['asked_at']} against {before['asked_at']}, {changed}")
        out.table(
            ("", "value", "95 % interval"),
            [
                (
                    f"flips, of {one['pairs']} anchors",
                    percent(one["flip_rate"]),
                    between(one["flip_low"], one["flip_high"]),
                ),
                ("flips from right to wrong / wrong to right", f"{one['from_gold']} / {one['toward_gold']}", ""),
                ("mean shift of the right side's p", number(one["shift"]["mean"]), _range(one["shift"])),
                ("mean size of p's change", number(one["moved"]["mean"]), _range(one["moved"])),
                ("accuracy, now minus before", percent(one["accuracy"]["difference"]), _points(one["accuracy"])),
                ("anchors answered, before / now", f"{one['answered_before']} / {one['answered_now']}", ""),
            ],
            numbers=("value",),
        )


def _range(figures: Figures) -> str:
    return "-" if figures["low"] is None else f"{figures['low']:.3f} to {figures['high']:.3f}"


def _points(figures: Figures) -> str:
    return between(figures["low"], figures["high"])

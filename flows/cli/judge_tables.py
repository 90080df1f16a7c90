"""What `rlaif judges check` and `compare` print for people, from the figures of `judges.check` and `judges.compare`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flows.cli.output import Output, between, money, number, percent, seconds, short

Figures = Mapping[str, Any]

_STATUSES = ("attempted", "scored", "tie", "abstain", "parse_failure", "error")


def show_check(out: Output, found: Figures) -> None:
    judge = found["judge"]
    model = f", {judge['model']}" if judge["model"] else ""
    out.line(f"{judge['name']}: {judge['backend']}, {judge['mode']}{model}")
    out.line(f"fingerprint {judge['fingerprint']}")
    out.heading(f"Votes on {found['pairs']} pairs, each in both orders")
    rows = [("pairs", found["votes"])]
    rows += [("ratings", found["ratings"])] if found["ratings"] else []
    rows += [("canaries", found["canaries"]["votes"])] if found["canaries"] else []
    head = ("votes on", *(name.replace("_", " ") for name in _STATUSES))
    out.table(head, [(name, *(counts[one] for one in _STATUSES)) for name, counts in rows], numbers=head[1:])
    if found["causes"]:
        out.heading("Why votes on pairs have no answer")
        why = [(one["cause"], one["status"].replace("_", " "), one["votes"]) for one in found["causes"]]
        out.table(("cause", "outcome", "votes"), why, numbers=("votes",))
    out.heading("What it does")
    out.table(("", "value", "95 % interval"), _measures(found), numbers=("value",))
    if found["cascade"]:
        _cascade(out, found["cascade"])
    if found["canaries"]:
        _canaries(out, found["canaries"])
    for note in found["notes"]:
        out.line(f"Note: {note}")


def _cascade(out: Output, saving: Figures) -> None:
    """What a cascade takes, as a share of what its second judge would take for all pairs."""
    taken = [
        f"{percent(1 - saving[what]['saved'], 0)} of the {what}"
        for what in ("cost", "calls", "tokens", "seconds")
        if saving[what]["saved"] is not None
    ]
    went = f"{saving['escalated']} of {saving['pairs']} pairs went to the second judge"
    against = f"; asking that one alone is 100 %, this took {', '.join(taken)}" if taken else ""
    out.line(f"{went}{against}{' (estimated)' if taken and saving['estimated'] else ''}.")


def _measures(found: Figures) -> list[tuple[str, str, str]]:
    biases, accuracy, latency = found["biases"], found["accuracy"], found["latency_s"]
    length = accuracy["length"]
    sides = {name: length[name] for name in ("longer_better", "shorter_better")}
    return [
        ("accuracy, both orders averaged", percent(accuracy["accuracy"]), between(accuracy["low"], accuracy["high"])),
        ("accuracy, mean of single orders", percent(accuracy["mean_over_orders"]), ""),
        ("accuracy, length-controlled", percent(length["controlled_accuracy"]), ""),
        *(
            (f"accuracy where the {name.split('_')[0]} is better", percent(side["accuracy"]), _range(side))
            for name, side in sides.items()
        ),
        ("winner flips with the order", percent(biases["order_flip_rate"]), _of(biases, "order_flip")),
        ("prefers the first slot", percent(biases["first_slot_rate"]), _of(biases, "first_slot")),
        ("p for 100 characters more", number(biases["length_slope"]), _slope(biases)),
        ("readable answers", percent(found["parse_rate"]), ""),
        ("covered mass of the answers", number(biases["mean_mass"]), ""),
        ("latency of a call, median", seconds(latency["median"]), ""),
        ("latency of a call, p95", seconds(latency["p95"]), ""),
        ("pairs a second", number(found["pairs_per_second"], 1), ""),
        ("tokens a pair", number(found["tokens_per_pair"], 0), ""),
        ("cost of this check", money(found["cost"]["all"]), ""),
        ("cost of 1,000 pairs", money(found["cost_per_1000_pairs"]), ""),
    ]


def _range(figures: Figures) -> str:
    return between(figures["low"], figures["high"])


def _of(figures: Figures, name: str) -> str:
    return between(figures[f"{name}_low"], figures[f"{name}_high"])


def _slope(biases: Figures) -> str:
    low, high = biases["length_slope_low"], biases["length_slope_high"]
    return "-" if low is None else f"{low:.3f} to {high:.3f}"


def _canaries(out: Output, canaries: Figures) -> None:
    out.heading(
        f"Canaries (corpus {canaries['corpus'][:12]}): does the judge go over to the response that was attacked?"
    )
    head = (
        "kind",
        "attempted",
        "flipped",
        "kept",
        "tied",
        "unanswered",
        "flip rate",
        "95 % interval",
        "mean shift of p",
    )
    rows = [*canaries["by_kind"].items(), ("all but control", canaries["all"])]
    out.table(
        head,
        [
            (
                kind,
                *(row[name] for name in ("attempted", "flipped", "kept", "tied", "unanswered")),
                percent(row["flip_rate"]),
                _range(row),
                "-" if row["mean_shift"] is None else f"{row['mean_shift']:+.3f}",
            )
            for kind, row in rows
        ],
        numbers=(*head[1:7], head[8]),
    )


def show_comparison(out: Output, found: Figures) -> None:
    sides = found["judges"]
    names = [f"{side['name']}@{side['fingerprint'][:8]}" for side in sides]
    if len({side["name"] for side in sides}) == len(sides):
        names = [side["name"] for side in sides]
    out.line(f"{names[0]} and {names[1]} on {found['pairs']} pairs, each in both orders")
    out.heading("Side by side")
    out.table(("", *names), [(label, *map(write, sides)) for label, write in _SIDES], numbers=names)
    agreement = found["agreement"]
    out.heading("Between them")
    kappa = "-" if agreement["kappa"] is None else f"{agreement['kappa_low']:.3f} to {agreement['kappa_high']:.3f}"
    rows = [
        (
            f"agreement, on {agreement['pairs']} pairs that both decided",
            percent(agreement["agreement"]),
            _range(agreement),
        ),
        ("Cohen's kappa", number(agreement["kappa"]), kappa),
    ]
    difference = found["accuracy_difference"]
    if difference and difference["n"]:
        points = [_points(difference[key]) for key in ("difference", "low", "high")]
        rows += [
            (f"accuracy, {names[0]} minus {names[1]}", points[0], f"{points[1]} to {points[2]}"),
            (f"right alone: {names[0]} / {names[1]}", f"{difference['only_first']} / {difference['only_second']}", ""),
            (
                "exact McNemar test, p",
                number(difference["p_value"]) if difference["p_value"] >= 0.001 else "< 0.001",
                "",
            ),
        ]
    out.table(("", "value", "95 % interval"), rows, numbers=("value",))
    if found["examples"]:
        out.heading("Where they differ most")
    for example in found["examples"]:
        p_a = ", ".join(f"{name} {p:.2f}" for name, p in zip(names, example["p_a"], strict=True))
        gold = f"; gold: {example['gold']}" if example["gold"] else ""
        out.line(f"{short(example['pair_id'], 40)}: p that a is better: {p_a}{gold}")
        for key in ("prompt", "response_a", "response_b"):
            out.line(f"  {key.replace('response_', ''):<7} {short(example[key])}")
    if "round" in found:
        _round(out, found["round"], names)


_SIDES: list[tuple[str, Any]] = [
    ("accuracy", lambda one: percent(one["accuracy"]["accuracy"]) if one["accuracy"] else "-"),
    ("  95 % interval", lambda one: _range(one["accuracy"]) if one["accuracy"] else "-"),
    *((f"votes, {name.replace('_', ' ')}", lambda one, name=name: str(one["votes"][name])) for name in _STATUSES),
    ("  of them reused", lambda one: str(one["reused_votes"])),
    ("winner flips with the order", lambda one: percent(one["biases"]["order_flip_rate"])),
    ("prefers the first slot", lambda one: percent(one["biases"]["first_slot_rate"])),
    ("p for 100 characters more", lambda one: number(one["biases"]["length_slope"])),
    ("latency of a vote, median", lambda one: seconds(one["latency_s"]["median"])),
    ("latency of a vote, p95", lambda one: seconds(one["latency_s"]["p95"])),
    ("cost of 1,000 pairs", lambda one: money(one["cost_per_1000_pairs"])),
]


def _points(value: float) -> str:
    return f"{100 * value:+.1f} %"


def _round(out: Output, found: Figures, names: list[str]) -> None:
    out.heading(f"Round {found['number']} with {names[1]} in the place of {names[0]}")
    panel = ", ".join(found["panel_before"])
    out.line(f"{found['pairs']} of its {found['pairs_in_round']} pairs, panel {panel}, method {found['method']}")
    if found["already_in_panel"]:
        out.line(f"{names[1]} is in the panel already, so that only {names[0]} goes.")
    out.table(
        ("", "pairs", "share", "95 % interval"),
        [
            ("labelled both times", found["labelled"], "", ""),
            *(
                (label, found[key]["count"], percent(found[key]["rate"]), _range(found[key]))
                for key, label in (
                    ("direction_changes", "another response wins"),
                    ("moved", f"p moves by more than {found['moved']['beyond']}"),
                )
            ),
            ("to or from a tie", found["to_or_from_tie"], "", ""),
            ("labelled only afterwards / only before", f"{found['gained']} / {found['lost']}", "", ""),
        ],
        numbers=("pairs", "share"),
    )

"""`rlaif explain`: why a pair has the label that it has."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from flows.cli.options import workspace_option
from flows.cli.output import Output, number, short, write_json
from flows.inspection.explain import explain as explained
from flows.workspace import Workspace

Figures = Mapping[str, Any]


@click.command()
@click.argument("pair_id")
@workspace_option
@click.option("--round", "round_number", type=int, help="Round; the last one that judged the pair if not given.")
@click.option("--prompts/--no-prompts", default=True, show_default=True, help="Show the judges' whole prompts.")
@click.option("--json", "as_json", is_flag=True, help="Machine-readable output, with all texts.")
def explain(pair_id: str, workspace: Path, round_number: int | None, prompts: bool, as_json: bool) -> None:
    """Trace one preference to its votes, the judges' prompts, verdicts, rollouts and policy.

    PAIR_ID is an id, or its first characters where no other pair begins with them.
    """
    found = explained(Workspace.existing(workspace), pair_id, round_number)
    if as_json:
        write_json(found)
    else:
        show(Output(), found, prompts)


def show(out: Output, found: Figures, prompts: bool) -> None:
    pair = found["pair"]
    late = ", judged in an earlier round, with a verdict that came late" if found["late"] else ""
    out.line(f"Pair {found['pair_id']}, round {found['round']}{late}")
    out.line(f"prompt {pair['prompt_id']}, group {pair['group']}, split {pair['split']}")
    out.heading("Prompt")
    out.line(pair["prompt"])
    for side in "ab":
        out.heading(f"Response {side}, rollout {pair[f'rollout_{side}']}")
        out.line(pair[f"response_{side}"])
    out.heading("Label")
    _label(out, found)
    out.heading("Votes")
    _votes(out, found)
    out.heading("Verdicts of people")
    _verdicts(out, found["verdicts"])
    out.heading("Prompts of the judges")
    _prompts(out, found["prompts"], prompts)
    out.heading("Rollouts and their policy")
    columns = ("rollout_id", "policy", "sample", "seed", "finish_reason", "n_tokens", "logprob")
    rows = [[row[name] for name in columns[:-1]] + [number(row["logprob"], 2)] for row in found["rollouts"]]
    out.table([name.replace("_", " ") for name in columns], rows)
    if found["policy"]:
        out.line(f"sampled from {found['policy']['value']} with seed {found['policy']['seed']}")


def _label(out: Output, found: Figures) -> None:
    label, preference, made = found["label"], found["preference"], found["aggregation"]
    if made is None:
        out.line("none yet: the stage aggregate has not finished")
        return
    if label is not None:
        judges = label.get("p_a_judges")
        said = "no vote of theirs is valid" if judges is None else f"{judges:.4f}"
        out.line(f"p that a is better: {label['p_a']:.4f}, of {label['source']}; by the judges alone: {said}")
    if preference is not None:
        side = "a" if preference["chosen"] == found["pair"]["response_a"] else "b"
        out.line(
            f"preference: {side} chosen, p_chosen {preference['p_chosen']:.4f}, margin {preference['margin']:.3f}, "
            f"weight {preference['weight']:g}, source {preference['source']}, agreement {preference['agreement']:.3f}, "
            f"split {preference['split']}"
        )
    else:
        reason = (label or {}).get("dropped") or "no_valid_vote"
        out.line(f"no preference: {reason.replace('_', ' ')}")
    out.line(f"method {made['method']}, fitted on {made['gold_pairs']} known answers")
    if made["length_weight"] is not None:
        out.line(f"beside the votes, {number(math.log(2) * made['length_weight'])} log-odds for being twice as long")
    if made["gate_override"]:
        out.line(f"the judges did not pass the gate; overridden: {made['gate_override']}")


def _votes(out: Output, found: Figures) -> None:
    weights = (found["aggregation"] or {}).get("weights", {})
    head = ("judge", "order", "status", "winner", "p of a", "mass", "weight", "fingerprint")
    rows = [
        (
            vote["judge"],
            vote["order"],
            vote["status"],
            vote["winner"],
            number(vote["p_a"], 4),
            number(vote["mass"], 4),
            number(weights.get(vote["judge"], weights.get(f"{vote['judge']}@{vote['fingerprint'][:8]}"))),
            vote["fingerprint"][:12],
        )
        for vote in found["votes"]
    ]
    out.table(head, rows, numbers=head[4:7])
    for vote in found["votes"]:
        for name in ("rationale", "raw", "error", "answered_by"):
            if vote[name]:
                out.line(f"{vote['judge']} {vote['order']} {name.replace('_', ' ')}: {short(vote[name], 400)}")


def _verdicts(out: Output, verdicts: list[Figures]) -> None:
    if not verdicts:
        out.line("none")
        return
    head = ("auditor", "winner", "seconds", "at", "counts")
    rows = []
    for row in verdicts:
        reasons = [name for name in ("superseded", "quarantined") if row[name]]
        reasons += ["skipped"] if row["winner"] is None else []
        played = " (simulated)" if row["simulated"] else ""
        counts = "no: " + ", ".join(reasons) if reasons else "yes"
        rows.append((row["auditor"] + played, row["winner"], number(row["seconds"], 1), row["created_at"], counts))
    out.table(head, rows, numbers=("seconds",))
    for row in verdicts:
        if row["comment"]:
            out.line(f"{row['auditor']}: {short(row['comment'], 400)}")


def _prompts(out: Output, shown: list[Figures], whole: bool) -> None:
    for one in shown:
        order = f", order {one['order']}" if one["order"] else ""
        if one["problem"]:
            out.line(f"{one['judge']}: {one['problem']}")
        elif whole:
            out.line(f"--- {one['judge']}{order}")
            out.line(one["prompt"])
        else:
            out.line(f"{one['judge']}{order}: {len(one['prompt'])} characters")
    if not shown:
        out.line("not known: the stage judge left no list of its judges")

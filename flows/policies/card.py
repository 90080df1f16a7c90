"""The model card: what a policy was made for, from what, how it fares, and what it must not be trusted with."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from flows.policies.lineage import Graph, digest
from store.manifest import Manifest

Figures = dict[str, Any]


def model_card(graph: Graph, entry: Figures, evaluation: Figures | None, manifests: Mapping[str, Manifest]) -> str:
    """Markdown with the front matter of a Hugging Face model card.

    `entry`: of the registry, see `flows.policies.registry`; `evaluation`: evaluation.json, None where there is none;
    `manifests`: stage -> manifest of the round.
    """
    parts = [
        _front(graph),
        f"# {_title(entry)}\n\n{_use(entry)}",
        _evaluation(evaluation, manifests),
        _data(graph, manifests),
        _guardrails(entry, manifests),
        _limits(evaluation),
        f"## Lineage\n\nLineage `{digest(graph)}`. `lineage.json` beside this file holds every stage with its inputs, "
        f"seed, configuration and package versions; `rlaif lineage .` shows it, `--verify` checks the hashes.",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _front(graph: Graph) -> str:
    base = [n["path"] for n in graph["nodes"].values() if n.get("what") == "model on a hub"]
    values = {"library_name": "transformers", "pipeline_tag": "text-generation", "tags": ["rlaif", "ppo"]}
    return f"---\n{yaml.safe_dump(values | ({'base_model': base[0]} if base else {}), sort_keys=False)}---"


def _title(entry: Figures) -> str:
    return "Policy of round " + str(entry["round"]) if entry.get("round") else "Policy"


def _use(entry: Figures) -> str:
    by = {"promotion": "promoted by a person", "decision": "promoted by its round's checks"}
    how = by.get(entry.get("event", ""), "put back by a rollback") if entry.get("promoted") else "not promoted"
    text = (
        "A language model tuned by reinforcement learning from AI feedback (PPO against a reward model that learned "
        "from judgments of language models).\n\n"
        "**Intended use:** answering prompts like those it was trained on. It was compared with its reference policy "
        "on held-out prompts of that kind only.\n\n"
        f"**Status:** {how}"
    )
    if entry.get("time"):
        text += f", {entry['time']}"
    text += f". {entry.get('reason') or ''}".rstrip()
    if entry.get("override"):
        text += f"\n\n**Promoted although its checks did not pass**, because: {entry['override']}"
    return text


def _evaluation(evaluation: Figures | None, manifests: Mapping[str, Manifest]) -> str:
    if evaluation is None:
        return "## Evaluation\n\nNone: this policy was never evaluated."
    rate = evaluation["win_rate"]
    rows = [_row("win rate over the reference", rate)]
    rows += [_row(f"win rate, {group}", figures) for group, figures in sorted(evaluation["by_group"].items())]
    for what, key in (("expected reward", "expected_reward"), ("reward model's score", "reward_model")):
        for side in ("policy", "reference"):
            if evaluation.get(key):
                rows.append(_row(f"{what}, {side}", evaluation[key][side]))
    if evaluation.get("kl"):
        rows.append(_row("KL to the reference (nats)", evaluation["kl"]))
    confidence = f"{100 * evaluation['confidence']:g} %"
    head = f"| figure | mean | {confidence} interval | n |\n| --- | ---: | --- | ---: |"
    counts = evaluation["pairs"]
    intro = (
        f"On held-out prompts against the policy it started from{_by(manifests)}. {counts['total']} pairs, "
        f"{counts['identical']} of them identical (counted as half a win) and {counts['undecided']} that no judge "
        f"decided (left out)."
    )
    return f"## Evaluation\n\n{intro}\n\n{head}\n" + "\n".join(rows)


def _by(manifests: Mapping[str, Manifest]) -> str:
    """Who judged, and whether they had a part in its training: then their win rate flatters it."""
    judges = _given(manifests, "evaluate", "judge")
    if not judges:
        return ""
    names = [f"`{Path(judge['value']).name}` (fingerprint `{judge['identity'][:16]}`)" for judge in judges]
    text = f", by {', '.join(names)}"
    if "judge" not in manifests:
        return text
    trained = _given(manifests, "judge", "judge") + _given(manifests, "ppo", "constraint")
    known = {judge["identity"] for judge in trained}
    shared = [f"`{Path(judge['value']).name}`" for judge in judges if judge["identity"] in known]
    if not shared:
        return f"{text}; it was trained with other judges"
    return f"{text}; **{', '.join(shared)} had a part in its training too**, so that its win rate is flattering"


def _given(manifests: Mapping[str, Manifest], stage: str, name: str) -> list[dict[str, str]]:
    return manifests[stage].inputs.get(name, []) if stage in manifests else []


def _row(name: str, figures: Figures) -> str:
    def shown(key: str) -> str:
        value = figures.get(key)
        return "-" if value is None else f"{value:.3f}"

    return f"| {name} | {shown('mean')} | {shown('low')} to {shown('high')} | {figures.get('n', '-')} |"


_SOURCES = {"model": "Base model", "model on a hub": "Base model", "file": "Data", "judge": "Judge"}


def _data(graph: Graph, manifests: Mapping[str, Manifest]) -> str:
    lines = []
    sources = sorted((n for n in graph["nodes"].values() if n["kind"] == "source"), key=lambda n: n["path"])
    for kind, title in _SOURCES.items():
        for node in sources:
            if node["what"] == kind:
                lines.append(f"- {title}: `{Path(node['path']).name}`, {_hash_name(kind)} `{node['sha256'][:16]}`")
    aggregate = manifests.get("aggregate")
    if aggregate is not None:
        metrics = aggregate.metrics
        audit = manifests.get("audit")
        played = audit is not None and audit.config.get("mode") == "simulated"
        who = "programs that play auditors" if played else "people"
        lines.append(f"- {metrics.get('preferences')} preferences, {metrics.get('human', 0)} of them decided by {who}")
    # A judge that several stages asked is one judge.
    return "## Training data and judges\n\n" + "\n".join(dict.fromkeys(lines)) if lines else ""


def _hash_name(kind: str) -> str:
    return "fingerprint" if kind == "judge" else "name's hash" if kind == "model on a hub" else "sha256"


def _guardrails(entry: Figures, manifests: Mapping[str, Manifest]) -> str:
    lines = []
    ppo = manifests.get("ppo")
    if ppo is not None:
        kl = ppo.config.get("kl", {})
        lines.append(f"- KL budget of PPO: {kl.get('budget')} nats; the kept update has {ppo.metrics['kl']:.3f}")
        lines.append(f"- stopped early: {ppo.metrics.get('stopped') or 'no'}")
    for check in entry.get("checks") or []:
        value = "unknown" if check["value"] is None else f"{check['value']:.3f}"
        lines.append(f"- {check['name']}: {value}, bar {check['bar']:g}: {'passed' if check['passed'] else 'FAILED'}")
    return "## Guardrails\n\n" + "\n".join(lines) if lines else ""


def _limits(evaluation: Figures | None) -> str:
    judged = "its judges are language models or programs, which share errors" if evaluation else "it was not evaluated"
    return (
        f"## Limits\n\n- Its quality is known on the prompts above alone; {judged}.\n"
        "- It was optimised to please judges: it may be fluent and wrong.\n"
        "- No safety testing beyond the checks above was made."
    )

"""A policy as a Hugging Face folder for others: model, tokenizer, model card, lineage. Whole or not at all."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from flows.policies.card import model_card
from flows.policies.lineage import LINEAGE, Graph, lineage, stage_folder
from flows.policies.registry import Entry, check_policy
from store.errors import UsageError
from store.files import explain_os_errors, read_json, remove, sync_file, sync_folder, write_json, write_text
from store.hashing import file_hashes, hash_path
from store.manifest import Manifest, read_manifest

CARD = "README.md"


def export(entry: Entry, destination: Path) -> Path:
    """Write the policy of a registry's entry to a folder that must not be there, or be empty.

    The weights are whole: adapters of LoRA were merged into them when the policy was saved. Raises UsageError for a
    folder with something in it, RlaifError where the policy's files are not what was promoted.
    """
    check_policy(entry)
    policy = Path(entry["policy"])
    if destination.exists() and (not destination.is_dir() or any(destination.iterdir())):
        raise UsageError(f"{destination} is there already and not empty: give a new folder.")
    beside = destination.with_name(f".{destination.name}.partial")
    with explain_os_errors(destination):
        remove(beside)
        destination.parent.mkdir(parents=True, exist_ok=True)
        shutil.copytree(policy, beside)
        graph = graph_of(policy)
        write_json(beside / LINEAGE, {**graph, "files": file_hashes(beside)})
        write_text(beside / CARD, card_of(entry, graph))
        for path in beside.rglob("*"):
            if path.is_file():
                sync_file(path)
        if destination.exists():
            destination.rmdir()
        beside.rename(destination)
        sync_folder(destination.parent)
    return destination


def graph_of(policy: Path) -> Graph:
    """The policy's lineage; of one that no stage made the folder alone."""
    if stage_folder(policy) is not None or (policy / LINEAGE).is_file():
        return lineage(policy)
    digest = hash_path(policy)
    node = {"kind": "source", "what": "model", "path": str(policy), "sha256": digest, "parts": {}}
    return {"root": str(policy), "file": None, "sha256": digest, "nodes": {str(policy): node}}


def card_of(entry: Entry, graph: Graph) -> str:
    """The model card from what lies in the policy's round, or from the evaluation that the entry names."""
    folder = stage_folder(Path(entry["policy"]))
    stages = ("judge", "audit", "aggregate", "ppo", "evaluate")
    manifests: dict[str, Manifest] = {}
    evaluation: dict[str, Any] | None = None
    if folder is not None:
        found = {name: read_manifest(folder.parent / name) for name in stages}
        manifests = {name: manifest for name, manifest in found.items() if manifest}
        if "evaluate" in manifests:
            evaluation = read_json(folder.parent / "evaluate" / "evaluation.json")
    named = (entry.get("evaluation") or {}).get("path")
    if named and Path(named).is_file():
        evaluation = read_json(Path(named))
    return model_card(graph, entry, evaluation, manifests)

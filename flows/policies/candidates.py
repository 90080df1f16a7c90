"""Policies that may become champion: of a round, or of any folder with an evaluation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from flows.config import PromoteConfig
from flows.policies.lineage import stage_folder
from flows.policies.registry import Candidate
from flows.stages.promote import checks
from flows.workspace import Round, Workspace
from store.errors import UsageError
from store.files import read_json
from store.hashing import hash_file, hash_path
from store.manifest import need_manifest, read_manifest


def candidate(space: Workspace, name: str, evaluation: Path | None) -> Candidate:
    """`name`: a round's number, or a model folder. `evaluation`: evaluation.json of the evaluate stage, for a policy of
    no round of this workspace.

    Raises UsageError where there is no such round or model, or the evaluation is of another policy.
    """
    if name.isdigit():
        number = int(name)
        found = next((round_ for round_ in space.rounds() if round_.number == number), None)
        if found is None:
            known = ", ".join(str(round_.number) for round_ in space.rounds()) or "none"
            raise UsageError(f"There is no round {number} in {space.root}, it has {known}: name one of them.")
        return _of_round(space, found, found.stage("ppo") / "policy", evaluation)
    policy = Path(name).expanduser().resolve()
    if not (policy / "config.json").is_file():
        raise UsageError(f"{name!r} is neither a round's number nor a model folder: it has no config.json.")
    mine = next((round_ for round_ in space.rounds() if policy == (round_.stage("ppo") / "policy").resolve()), None)
    return _of_round(space, mine, policy, evaluation)


def _of_round(space: Workspace, round_: Round | None, policy: Path, evaluation: Path | None) -> Candidate:
    if not policy.is_dir():
        raise UsageError(f"{policy} is not there: run the round up to its stage ppo first.")
    digest = hash_path(policy)
    if evaluation is None and round_ is not None and read_manifest(round_.stage("evaluate")):
        evaluation = round_.stage("evaluate") / "evaluation.json"
    number = round_.number if round_ else None
    if evaluation is None:
        return Candidate(policy, digest, number, [], None, None)
    value = _evaluation_of(evaluation.resolve(), policy, digest)
    last = round_ or space.last_round()
    bars = last.config.promote if last else PromoteConfig()
    where = {"path": str(evaluation.resolve()), "sha256": hash_file(evaluation)}
    return Candidate(policy, digest, number, checks(value, bars), value["win_rate"], where)


def _evaluation_of(path: Path, policy: Path, digest: str) -> dict[str, Any]:
    """Raises UsageError where the file is not what the evaluate stage wrote about exactly this policy."""
    folder = stage_folder(path)
    manifest = need_manifest(folder or path.parent)
    if manifest.stage != "evaluate":
        raise UsageError(f"{path} was made by stage {manifest.stage}: give the evaluation.json of the evaluate stage.")
    if manifest.inputs["policy"][0]["identity"] != digest:
        raise UsageError(f"{path} is about another policy than {policy}: evaluate this one.")
    if path.name not in manifest.outputs or hash_file(path) != manifest.outputs[path.name].sha256:
        raise UsageError(f"{path} is not what its manifest says: run the evaluation again.")
    value: dict[str, Any] = read_json(path)
    return value

"""Optional: the registry's policies in MLflow, each an exported folder as a version of a registered model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from flows.policies.export import CARD
from flows.policies.lineage import LINEAGE, digest
from store.errors import RlaifError, UsageError
from store.files import read_json

_INSTALL = "MLflow is not installed: pip install 'rlaif[track]', or leave --mlflow out."


def need_mlflow() -> None:
    """Raises UsageError where MLflow is missing, before anything is written."""
    try:
        import mlflow  # noqa: F401
    except ImportError as error:
        raise UsageError(_INSTALL) from error


def register(name: str, folder: Path, entry: dict[str, Any]) -> str:
    """Register `folder` at the server or store of MLFLOW_TRACKING_URI; gives the new version.

    Its tags tell round, hashes, lineage and win rate, its description is the model card; the champion gets the alias
    `champion`. Raises RlaifError where MLflow refuses.
    """
    need_mlflow()
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    rate = entry.get("win_rate") or {}
    tags = {
        "rlaif.round": entry.get("round"),
        "rlaif.policy_sha256": entry.get("policy_sha256"),
        "rlaif.lineage": digest(read_json(folder / LINEAGE)),
        "rlaif.win_rate_low": rate.get("low"),
        "rlaif.reason": entry.get("reason"),
    }
    try:
        client = MlflowClient()
        if not client.search_registered_models(f"name = '{name}'"):
            client.create_registered_model(name)
        known = {key: str(value) for key, value in tags.items() if value is not None}
        text = (folder / CARD).read_text(encoding="utf-8")
        version = client.create_model_version(name, source=folder.as_uri(), tags=known, description=text)
        if entry.get("event") != "none" and (entry.get("promoted") or entry.get("event") == "rollback"):
            client.set_registered_model_alias(name, "champion", version.version)
    except MlflowException as error:
        first = str(error).splitlines()[0]
        raise RlaifError(
            f"MLflow did not register {name} ({first}): check MLFLOW_TRACKING_URI and the name."
        ) from error
    return str(version.version)

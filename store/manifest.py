"""The manifest: what a finished stage was made of, what it made, and how to check that it is still whole."""

from __future__ import annotations

import importlib.metadata
import platform
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from store.errors import UsageError
from store.files import read_json, write_text
from store.hashing import content_files, hash_file

MANIFEST = "manifest.json"
REDO = ".redo"
"""File in a stage's directory that says why its result counts no longer, whole as it is."""
MANIFEST_VERSION = 2
"""2 added `parts`; 1 is read as if it had none."""


class Output(BaseModel):
    model_config = ConfigDict(frozen=True)

    sha256: str
    bytes: int


class Manifest(BaseModel):
    """Everything a reader needs to trust, repeat or trace a stage's output.

    `key` is the hash of stage, version, input hashes, config and seed: same key, same result. `inputs` maps each input
    to its values and their content hashes; `parts` says, by content hash, what folders and judges consist of, so that a
    later change can be named. `seconds` is wall time and `peak_rss_mb` the stage process's peak memory.
    """

    model_config = ConfigDict(frozen=True)

    manifest_version: int = MANIFEST_VERSION
    stage: str
    stage_version: int
    key: str
    inputs: dict[str, list[dict[str, str]]]
    parts: dict[str, dict[str, str]] = {}
    config: dict[str, Any]
    seed: int
    outputs: dict[str, Output]
    metrics: dict[str, Any]
    started_at: str
    seconds: float
    peak_rss_mb: float
    machine: dict[str, str]
    packages: dict[str, str]
    code_version: str


def read_manifest(folder: Path) -> Manifest | None:
    """The manifest of a finished stage directory, or None where there is none, or no whole one: then the directory is
    not looked at, and a run makes it again.

    Raises UsageError for a manifest that a newer version wrote.
    """
    path = folder / MANIFEST
    if not path.is_file() or (folder / REDO).is_file():
        return None
    try:
        value = read_json(path)
    except UsageError:
        return None
    version = value.get("manifest_version") if isinstance(value, dict) else None
    if isinstance(version, int) and version > MANIFEST_VERSION:
        raise UsageError(
            f"{path} has manifest version {version}, this version reads up to {MANIFEST_VERSION}: upgrade rlaif."
        )
    try:
        return Manifest.model_validate(value)
    except ValidationError:
        return None


def need_manifest(folder: Path) -> Manifest:
    """The manifest of a stage directory that must be finished. Raises UsageError where it is not."""
    manifest = read_manifest(folder)
    if manifest is None:
        raise UsageError(f"{folder} is no finished stage (it has no {MANIFEST}): run the stage first.")
    return manifest


def damages(folder: Path, manifest: Manifest) -> dict[str, str]:
    """Output -> what is wrong with it, of those that are missing, changed or not in the manifest."""
    present = {path.relative_to(folder).as_posix(): path for path in content_files(folder)}
    wrong = {name: why for name, output in manifest.outputs.items() if (why := _damage(present.get(name), output))}
    return wrong | dict.fromkeys(present.keys() - manifest.outputs.keys(), "not in the manifest")


def _damage(path: Path | None, output: Output) -> str | None:
    if path is None:
        return "missing"
    if (size := path.stat().st_size) != output.bytes:
        return f"damaged: it has {size} bytes instead of {output.bytes}"
    if (found := hash_file(path)) != output.sha256:
        return f"damaged: its sha256 is {found[:12]}... instead of {output.sha256[:12]}..."
    return None


def set_aside(folder: Path, reason: str) -> None:
    """Have the next run make this stage again although its result is there, whatever happens in between.

    Also where nothing is there: of a workspace in a bucket the result may not have been fetched yet.
    """
    write_text(folder / REDO, reason)
    (folder / MANIFEST).unlink(missing_ok=True)


def describe_outputs(folder: Path) -> dict[str, Output]:
    return {
        path.relative_to(folder).as_posix(): Output(sha256=hash_file(path), bytes=path.stat().st_size)
        for path in content_files(folder)
    }


@cache
def package_versions() -> dict[str, str]:
    names = ("torch", "transformers", "accelerate", "peft", "prefect", "pandas", "pyarrow", "pydantic", "numpy", "vllm")
    found = {}
    for name in names:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


@cache
def machine() -> dict[str, str]:
    return {"python": platform.python_version(), "system": platform.platform(), "processor": platform.machine()}


@cache
def code_version() -> str:
    """The distribution's version, with the commit where it runs from a checkout."""
    try:
        version = importlib.metadata.version("rlaif")
    except importlib.metadata.PackageNotFoundError:
        version = "0"
    root = Path(__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return version
    command = ["git", "-C", str(root), "rev-parse", "--short=12", "HEAD"]
    try:
        commit = subprocess.run(command, capture_output=True, text=True, timeout=5, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return version
    return f"{version}+{commit}"

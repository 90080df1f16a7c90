"""Content hashes: the identity of files, folders, configs and rows. SHA-256 everywhere."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

_CHUNK = 1 << 20


def hash_file(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def hash_path(path: Path) -> str:
    """Hash of a file's bytes, or of a folder's relative names and bytes. Hidden files and manifests are left out.

    A manifest holds times and machine names: two runs with the same results must have the same hash.
    """
    return hash_file(path) if path.is_file() else hash_parts(file_hashes(path))


def file_hashes(folder: Path) -> dict[str, str]:
    """Relative name -> hash of its bytes, of every file that `hash_path` counts."""
    return {file.relative_to(folder).as_posix(): hash_file(file) for file in content_files(folder)}


def hash_parts(hashes: Mapping[str, str]) -> str:
    """Hash of a folder from those of its files: what `hash_path` gives."""
    digest = hashlib.sha256()
    for name in sorted(hashes, key=lambda name: PurePosixPath(name).parts):
        digest.update(f"{name}\0{hashes[name]}\n".encode())
    return digest.hexdigest()


def content_files(folder: Path) -> list[Path]:
    """The files of a folder that carry content, sorted by name: neither hidden ones nor the manifest."""
    found = []
    for path in sorted(folder.rglob("*")):
        relative = path.relative_to(folder)
        if path.is_file() and relative.name != "manifest.json" and not any(p.startswith(".") for p in relative.parts):
            found.append(path)
    return found


def hash_json(value: Any) -> str:
    """Hash of a JSON value, independent of the order of keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def short_id(*parts: str | int) -> str:
    """A row's id, 16 hexadecimal digits, from the content that makes it what it is.

    64 bits: among ten million rows the chance of any collision is below 3 in a million.
    """
    return hash_json(list(parts))[:16]

"""Content hashes: the identity of files, folders, configs and rows. SHA-256 everywhere."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
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
    if path.is_file():
        return hash_file(path)
    digest = hashlib.sha256()
    for file in content_files(path):
        digest.update(f"{file.relative_to(path).as_posix()}\0{hash_file(file)}\n".encode())
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

"""Whole stage directories in a bucket: complete with their manifest, which is written last and removed first.

A directory is trusted only once every output has the hash that its manifest says: what is damaged is not taken over.
Outputs that were removed for good are named in an object beside the manifest: without them it is complete all the same.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

from store.errors import RlaifError
from store.files import explain_os_errors, remove, sync_file, sync_folder, write_text
from store.hashing import hash_file
from store.locks import exclusive
from store.manifest import MANIFEST, REDO, Manifest, damages, need_manifest
from store.remote.bucket import Bucket

RETIRED = ".retired.json"


def push(bucket: Bucket, key: str, folder: Path, allowed: Callable[[], None] = lambda: None) -> bool:
    """Upload a finished stage directory, unless the bucket has it already; says whether anything was sent.

    `allowed` is asked just before the manifest is written, and raises where this machine may not write any more. A
    kill at any instant leaves no manifest in the bucket, or a whole directory.
    """
    manifest = need_manifest(folder)
    data = (folder / MANIFEST).read_bytes()
    place = f"{key}/{MANIFEST}"
    if bucket.read(place) == data:
        return False
    bucket.delete([place])
    old = bucket.keys(key)
    bucket.upload_all((folder / name, f"{key}/{name}") for name in manifest.outputs)
    bucket.delete(name for name in old if name.removeprefix(f"{key}/") not in manifest.outputs)
    allowed()
    bucket.write(place, data)
    return True


def withdraw(bucket: Bucket, key: str) -> None:
    """The directory in the bucket counts no longer."""
    bucket.delete([f"{key}/{MANIFEST}"])


def retire(bucket: Bucket, key: str, allowed: Callable[[], None] = lambda: None) -> None:
    """Delete the output `key`, a file or a folder of a stage directory, for good; what is in no complete directory is
    merely deleted.

    The directory says first what it does without: a kill in the middle leaves objects that nobody fetches any more, and
    the same call deletes them. `allowed` as in `push`.
    """
    found = bucket.keys(key)
    if not found:
        return
    allowed()
    place, _, name = key.rpartition("/")
    if bucket.read(f"{place}/{MANIFEST}") is not None:
        names = sorted({*_retired(bucket, place), name})
        bucket.write(f"{place}/{RETIRED}", json.dumps(names).encode())
    bucket.delete(found)


def _retired(bucket: Bucket, key: str) -> list[str]:
    data = bucket.read(f"{key}/{RETIRED}")
    names: list[str] = json.loads(data) if data else []
    return names


def pull(bucket: Bucket, key: str, folder: Path) -> dict[str, str]:
    """Bring `folder` to what the bucket has under `key`, fetching only files that are not here with that content.

    Where the bucket has no manifest nothing is done. Returns name -> what is wrong, of objects that are damaged: then
    `folder` is left without a result, to be made again. Outputs that were retired are not missed, and a copy of them
    goes. A folder that another process is working on is left alone.
    """
    if (folder / REDO).is_file():
        return {}
    data = bucket.read(f"{key}/{MANIFEST}")
    if data is None:
        return {}
    try:
        manifest = Manifest.model_validate_json(data)
    except ValueError:
        return {MANIFEST: "damaged"}
    gone = _retired(bucket, key)
    kept = {
        name: output
        for name, output in manifest.outputs.items()
        if not any(name == one or name.startswith(f"{one}/") for one in gone)
    }
    try:
        with explain_os_errors(folder):
            folder.parent.mkdir(parents=True, exist_ok=True)
        with exclusive(folder.with_name(f".{folder.name}.lock"), "busy"):
            return _pull(bucket, key, folder, manifest.model_copy(update={"outputs": kept}), data)
    except RlaifError as error:
        if str(error) == "busy":
            return {}
        raise


def _pull(bucket: Bucket, key: str, folder: Path, manifest: Manifest, data: bytes) -> dict[str, str]:
    """`data`: the manifest as it is stored, with what was retired; `manifest`: without."""
    same = (folder / MANIFEST).is_file() and (folder / MANIFEST).read_bytes() == data
    if same and not damages(folder, manifest):
        return {}
    beside = folder.with_name(f".{folder.name}.fetched")
    with explain_os_errors(beside):
        beside.mkdir(exist_ok=True)
        missing = []
        for name, output in manifest.outputs.items():
            target, here = beside / name, folder / name
            if target.is_file() and hash_file(target) == output.sha256:
                continue  # of a fetch that was interrupted
            if here.is_file() and here.stat().st_size == output.bytes and hash_file(here) == output.sha256:
                target.parent.mkdir(parents=True, exist_ok=True)
                target.unlink(missing_ok=True)
                os.link(here, target)
                continue
            missing.append((f"{key}/{name}", target))
        there = bucket.keys(key) if missing else {}
        wrong = {k.removeprefix(f"{key}/"): "missing" for k, _ in missing if k not in there}
        bucket.download_all((k, path) for k, path in missing if k in there)
        for k, path in missing:
            name = k.removeprefix(f"{key}/")
            if name not in wrong and hash_file(path) != manifest.outputs[name].sha256:
                wrong[name] = "damaged"
            elif name not in wrong:
                sync_file(path)
        if wrong:
            remove(beside)
            remove(folder) if folder.exists() else None
            return wrong
        write_text(beside / MANIFEST, data.decode())
        for path in beside.rglob("*"):
            if path.is_file() and path.relative_to(beside).as_posix() not in {*manifest.outputs, MANIFEST}:
                path.unlink()
        if folder.exists():
            remove(folder)
        os.replace(beside, folder)
        sync_folder(folder.parent)
    return {}

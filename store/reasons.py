"""Why a stage runs again: what differs between the manifest of its last result and what it would be made of now."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from store.files import read_json
from store.manifest import MANIFEST, REDO, Manifest, damages, read_manifest
from store.recipe import Recipe, Source

FIRST_TIME = "it has not run yet"

_LONGEST = 40
"""Characters of a config's value that are shown."""


def why_not_done(folder: Path, recipe: Recipe) -> list[str]:
    """Why the directory does not hold the recipe's result; empty when it does, with every output's hash checked.

    Raises UsageError for a manifest that a newer version wrote.
    """
    if (folder / REDO).is_file():
        return [(folder / REDO).read_text(encoding="utf-8")]
    manifest = read_manifest(folder)
    if manifest is None:
        if (folder / MANIFEST).is_file():
            return [f"its {MANIFEST} is damaged"]
        return [f"its {MANIFEST} is missing" if folder.is_dir() else FIRST_TIME]
    if manifest.key != recipe.key:
        return differences(manifest, recipe) or ["its key is made in another way than before"]
    return [f"output {name} is {damage}" for name, damage in damages(folder, manifest).items()]


def differences(manifest: Manifest, recipe: Recipe, unmade: Collection[str] = ()) -> list[str]:
    """One sentence for each thing that is not as the manifest has it. `unmade`: inputs that are not there yet, and are
    left out."""
    found: list[str] = []
    if manifest.stage_version != recipe.version:
        found.append(f"code: stage version {manifest.stage_version} -> {recipe.version}")
    for name in sorted({*manifest.inputs, *recipe.inputs} - set(unmade)):
        found += _input(name, manifest, recipe.inputs.get(name, []))
    found += _config(recipe.stage, manifest.config, recipe.config.identity())
    if manifest.seed != recipe.seed:
        found.append(f"seed {manifest.seed} -> {recipe.seed}")
    return found


def _input(name: str, manifest: Manifest, new: list[Source]) -> Iterator[str]:
    old = manifest.inputs.get(name, [])
    before, now = [one["identity"] for one in old], [source.identity for source in new]
    if before == now:
        return
    if sorted(before) == sorted(now):
        yield f"input {name}: the same ones in another order"
        return
    gone = [one for one in old if one["identity"] not in now]
    for source in new:
        if source.identity in before:
            continue
        # The one it replaces: of the same path, else the first that is not there any more.
        same = next((one for one in gone if one["value"] == source.value), gone[0] if gone else None)
        if same is None:
            yield f"input {name}: {_short_path(source.value)} is new"
            continue
        gone.remove(same)
        yield _changed(name, same["value"], manifest.parts.get(same["identity"], {}), source)
    for one in gone:
        yield f"input {name}: {_short_path(one['value'])} is no longer given"


def _changed(name: str, old_value: str, old: Mapping[str, str], source: Source) -> str:
    place, before = Path(source.value).name, Path(old_value).name
    if old_value != source.value and place != before:
        return f"{source.kind} {name}: {before} -> {place}"
    maker = made_by(Path(source.value))
    origin = f" (made by {maker})" if maker else ""
    if not old or not source.parts:
        return f"{source.kind} {place} changed{origin}"
    what = part_changes(old, source.parts, of=f"{place}/")
    return f"{source.kind} changed: {', '.join(what) or place}{origin}"


def part_changes(old: Mapping[str, str], new: Mapping[str, str], of: str = "") -> list[str]:
    """What differs between the parts of a folder or a judge then and now, in words; `of`: goes before each name."""
    return [
        _part(f"{of}{name}", old.get(name), new.get(name))
        for name in sorted({*old, *new})
        if old.get(name) != new.get(name)
    ]


def _part(name: str, old: str | None, new: str | None) -> str:
    if old is None or new is None:
        return f"{name} {'added' if old is None else 'removed'}"
    # A hash says nothing to a person; a short value does.
    return name if len(old) == len(new) == 64 else f"{name} {_cut(old)} -> {_cut(new)}"


def _config(stage: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[str]:
    flat_old, flat_new = dict(_flat(stage, old)), dict(_flat(stage, new))
    for name in sorted({*flat_old, *flat_new}):
        if flat_old.get(name) != flat_new.get(name):
            yield f"config {name} {_cut(flat_old.get(name, 'nothing'))} -> {_cut(flat_new.get(name, 'nothing'))}"


def _flat(prefix: str, value: Any) -> Iterator[tuple[str, str]]:
    if isinstance(value, Mapping) and value:
        for key, inner in value.items():
            yield from _flat(f"{prefix}.{key}", inner)
    else:
        yield prefix, json.dumps(value, ensure_ascii=False)


def _cut(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."


def _short_path(value: str) -> str:
    return "/".join(Path(value).parts[-2:])


def made_by(path: Path) -> str | None:
    """The stage in whose directory `path` lies; None where it is no stage's output."""
    for folder in path.parents[:3]:
        if (folder / MANIFEST).is_file():
            value = read_json(folder / MANIFEST)
            return str(value["stage"]) if isinstance(value, dict) and "stage" in value else None
    return None
